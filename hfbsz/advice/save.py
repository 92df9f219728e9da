"""Saves an advice: the recipe that pretrain and finetune take, its numbers, and a page."""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from hfbsz.advice.advice import MEANING, Advice
from hfbsz.advice.progress import critical_at
from hfbsz.display import one_line
from hfbsz.errors import UserError
from hfbsz.plan.explain import explain
from hfbsz.recipe.amounts import duration, sized, unit_of
from hfbsz.recipe.load import load
from hfbsz.report.page.page import environment
from hfbsz.report.page.style import INK, PALETTE, page_axes, svg, tick
from hfbsz.system.files import refuse_others, write_text

_MARKS = (b"# Advised by hfbsz", b'"recipe"', b"<title>Advice on ")  # in the beginning of recipe, numbers and page
_RANGE = 0.02  # share of the run from which critical batches are drawn


def save(advice: Advice, words: Sequence[str], folder: Path) -> tuple[Path, Path]:
    """Save the advice to a folder; returns the paths of the recipe and of the page. `words`: those that describe the
    recipe. Raises UserError for a folder that cannot be written, or that has other files of these names."""
    files = [folder / name for name in (f"{advice.name}_advised.yaml", "advice.json", "report.html")]
    recipe, numbers, page = files
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, mark in zip(files, _MARKS, strict=True):
            refuse_others("out", path, mark)
        write_text(recipe, _recipe_text(advice, words, recipe))
        write_text(numbers, json.dumps(finite(advice.to_dict()), indent=1))
        write_text(page, render(advice, recipe))
    except OSError as problem:
        raise UserError(f"out={folder}: {problem.strerror}") from None
    return recipe, page


def _recipe_text(advice: Advice, words: Sequence[str], path: Path) -> str:
    """The recipe as YAML: the changes to its base where that describes it, else all of its fields."""
    head = f"# Advised by hfbsz: {one_line(advice.command)}\n"
    nested: dict[str, Any] = {}
    for word in (*words, *advice.changes):
        key, _, value = word.lstrip("-").partition("=")
        if key == "recipe":
            nested["base"] = str(Path(value).resolve()) if Path(value).is_file() else value
            continue
        section, *names = key.split(".")
        if names:
            if not isinstance(nested.get(section), dict):
                nested[section] = {"preset": nested[section]} if section in nested else {}
            nested[section][".".join(names)] = _typed(value)
        else:
            nested[section] = _typed(value)
    text = head + yaml.safe_dump(nested, sort_keys=False, allow_unicode=True, width=1000)
    write_text(path, text)
    try:
        if load([f"recipe={path}"]).recipe == advice.plan.recipe:
            return text
    except UserError:
        pass
    return head + yaml.safe_dump(advice.plan.recipe.to_dict(), sort_keys=False, allow_unicode=True, width=1000)


def finite(data: Any) -> Any:
    """Plain data for JSON, with null for numbers that are not finite."""
    if isinstance(data, dict):
        return {key: finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def _typed(text: str) -> Any:
    """The value of a word as YAML writes it."""
    if text == "null":
        return None
    try:
        return float(text) if "e" in text.lower() or "." in text else int(text)
    except ValueError:
        return text


def render(advice: Advice, recipe: Path) -> str:
    """The HTML page of an advice."""
    return (
        environment(Path(__file__).parent)
        .get_template("advice.html.jinja")
        .render(
            advice=advice,
            recipe=recipe,
            meaning=MEANING,
            plan_text=explain(advice.plan),
            pictures=list(_pictures(advice)),
            time=duration,
            sized=sized,
        )
    )


def _pictures(advice: Advice) -> Iterator[tuple[str, Markup, str]]:
    """(heading, figure, caption) of each figure."""
    if advice.estimates:
        yield _critical_picture(advice)
    if advice.frontier is not None and len(advice.frontier.points) > 1:
        yield _devices_picture(advice)


def _critical_picture(advice: Advice) -> tuple[str, Markup, str]:
    plan, total = advice.plan, float(advice.plan.total)
    with page_axes("critical") as (figure, axes):
        shares = [_RANGE * (1 / _RANGE) ** (number / 40) for number in range(41)]
        tokens = [share * total * plan.tokens_per_row for share in shares]
        for index, one in enumerate(advice.estimates[:4]):
            color = PALETTE[index % len(PALETTE)]
            axes.plot(tokens, [critical_at(one.value, share) for share in shares], color=color, label=one.name)
            if index == 0 and math.isfinite(one.high):
                low, high = ([critical_at(end, share) for share in shares] for end in (max(one.low, 1e-3), one.high))
                axes.fill_between(tokens, low, high, color=color, alpha=0.15, linewidth=0)
        clocks = [0.0, *(phase.clock for phase in plan.phases[1:] if phase.steps), total]
        batches = [phase.batch for phase in plan.phases if phase.steps]
        x = [max(clock * plan.tokens_per_row, tokens[0]) for clock in clocks]
        axes.stairs(batches, x, color=INK, linewidth=2.2, label="advised batch", baseline=None)
        axes.set(xscale="log", yscale="log", xlabel="training tokens (log scale)", ylabel="sequences (log scale)")
        _ticks(axes)
        axes.legend(frameon=False, fontsize=9)
        drawn = svg(figure, "critical batch and advised batch over training tokens")
    return (
        "The batch and the critical batch",
        drawn,
        "The critical batch grows with training. Below it, twice the batch needs nearly half the steps; above it, "
        "tokens are lost. The shaded range is that of the estimate in use.",
    )


def _devices_picture(advice: Advice) -> tuple[str, Markup, str]:
    frontier = advice.frontier
    assert frontier is not None
    devices = [each.devices for each in frontier.points]
    with page_axes("devices") as (figure, axes):
        unit, size = unit_of(min(each.device_seconds for each in frontier.points))
        times = [each.seconds / size for each in frontier.points]
        cost = [each.device_seconds / size for each in frontier.points]
        axes.plot(devices, times, "o-", color=PALETTE[0], markersize=4, label=f"time ({unit})")
        axes.plot(devices, cost, "s--", color=PALETTE[1], markersize=4, label=f"cost (device-{unit})")
        axes.axvline(advice.plan.world_size, color=INK, linewidth=1, alpha=0.6)
        axes.set(xscale="log", yscale="log", xlabel="devices (log scale)", ylabel="to the recipe's loss (log scale)")
        _ticks(axes)
        axes.legend(frameon=False, fontsize=9)
        drawn = svg(figure, "time and cost to the loss over the number of devices")
    return "Time and cost over devices", drawn, "At the best batch of each; the line marks the devices taken."


def _ticks(axes: Axes) -> None:
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=9))
        axis.set_major_formatter(FuncFormatter(tick))
        axis.set_minor_locator(NullLocator())
