"""Measure how sharp the minima are that runs reached: eigenvalues, worst cases, noise and landscapes of the loss.

    hfbsz sharpness RUN [RUN …] [rows=64] [micro_batch=8] [seconds=30] [seed=0] [shifted=FILES] [out=FOLDER]
        [format=text|json]

RUN: the folder of a finished run, or of a checkpoint in one. All are measured on the same evenly spread training rows,
in evaluation mode and float32: the three largest eigenvalues of the Hessian and its trace, the rise of the loss in the
worst case of a ball (SAM), of an adaptive ball (ASAM) and of Keskar's box, under random noise, along a random direction
and between the first run and the others. Results are cached beside the weights.

rows: training rows, and as many of validation and of each evaluation set of the recipe. shifted: paths or a glob of
further text on which the loss is measured, such as of another kind than the training text. seconds: for the trace of
each run, whose error bar they narrow. out: the folder of the page (default: sharpness/RUN).
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfbsz.commands.options import run_folders, wants_json, whole_number
from hfbsz.display import one_line, visible, with_minus
from hfbsz.errors import MISUSED, UserError, exit_code
from hfbsz.measure.rank_correlation import RankCorrelation, rank_correlation
from hfbsz.recipe.amounts import shown_batches, sized
from hfbsz.recipe.words import split_options
from hfbsz.records.run_data import short_paths
from hfbsz.records.sharpness import CONTESTED, MINIMUM_FILE
from hfbsz.run.cli import asks_for_help
from hfbsz.system.disk import sha256
from hfbsz.system.files import read_object, refuse_others, write_text

if TYPE_CHECKING:
    from hfbsz.data.rows import Rows
    from hfbsz.measure.minimum import Minimum
    from hfbsz.run.weights import Weights

Correlations = dict[str, dict[str, RankCorrelation | None]]  # by measure: with the batch, with the gap
_OPTIONS = ("rows", "micro_batch", "seconds", "seed", "shifted", "out", "format")
_DEFAULTS = {"rows": 64, "micro_batch": 8, "seconds": 30, "seed": 0}
_FROM_0 = ("seconds", "seed")  # options that may be 0
_WIDTHS = (9, 8, 8, 8, 16, 8, 8, 8, 18)  # of the columns, in characters


def main(words: list[str]) -> int:
    """Measure the runs, print the results and save a page; returns the exit code."""
    if asks_for_help(words) or not words:
        print(__doc__.strip())
        return 0 if words else MISUSED
    options, paths = split_options(words, _OPTIONS)
    work = partial(_sharpness, options, paths)
    return exit_code(work, "interrupted: the measurements of runs that were finished are cached")


def _sharpness(options: Mapping[str, str], words: list[str]) -> None:
    given = {name: whole_number(options, name, least=0 if name in _FROM_0 else 1) for name in _DEFAULTS}
    numbers = {name: default if (value := given[name]) is None else value for name, default in _DEFAULTS.items()}
    is_text, paths = not wants_json(options), run_folders("sharpness", words)
    if len({path.resolve() for path in paths}) < len(paths):
        raise UserError("a run is named twice")
    folder = Path(options.get("out") or f"sharpness/{paths[0].name}")
    from hfbsz.report.console import Console
    from hfbsz.report.page.sharpness import FILES, Shown, save

    for name, mark in FILES.items():
        refuse_others("out", folder / name, mark)
    with Console() if is_text else nullcontext() as console:
        minima, batches, lines = _measured(paths, numbers, options.get("shifted"), console)
    names = short_paths([path.resolve() for path in paths])
    shown = [
        Shown(name, shown_batches(sizes), {**minimum.to_dict(), "gap": minimum.gap})
        for name, sizes, minimum in zip(names, batches, minima, strict=True)
    ]
    correlations, between = _correlations(minima, batches), dict(zip(names[1:], lines, strict=True))
    data = {
        "runs": {one.name: {**one.minimum, "batch": one.batch} for one in shown},
        "between": between,
        "correlations": {name: {key: None if one is None else asdict(one) for key, one in pair.items()}
                         for name, pair in correlations.items()},
        "rows": numbers["rows"],
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    page = save(shown, between, correlations, CONTESTED, folder, json.dumps(data, indent=1))
    if not is_text:
        print(json.dumps(data, indent=1))
    else:
        print(visible("\n".join([*_lines(shown), f"note      {CONTESTED}", f"page      {one_line(str(page))}"])))


def _measured(
    paths: Sequence[Path], numbers: Mapping[str, int], shifted: str | None, console: Any
) -> tuple[list["Minimum"], list[list[int]], list[list[tuple[float, float]]]]:
    """The measures of each run, its batches in sequences, and the loss between the first and each other."""
    from hfbsz.measure.landscape import between
    from hfbsz.run.weights import load_weights

    minima, batches, lines = [], [], []
    first: list[Any] = []
    for index, path in enumerate(paths):
        name = f"run {index + 1} of {len(paths)}: "

        def show(what: str, done: int, total: int, name: str = name) -> None:
            if console is not None:
                console.work(f"{name}{what}", done, total)

        loaded = load_weights(path, show, shifted)
        minima.append(_minimum(path, loaded, numbers, show))
        batches.append([phase.batch for phase in loaded.setup.plan.phases if phase.steps])
        weights = [weight.detach().clone() for weight in loaded.model.parameters() if weight.requires_grad]
        if not index:
            first, start = weights, loaded
        elif [one.shape for one in weights] != [one.shape for one in first]:
            raise UserError(f"{path}: another model than {paths[0]}: compare runs of one model")
        else:
            points = between(
                _objective(start, numbers, start.setup.data.train),
                weights,
                show=lambda done, total: show("line", done, total),
            )
            lines.append(points)
    return minima, batches, lines


def _minimum(path: Path, loaded: "Weights", numbers: Mapping[str, int], show: Any) -> "Minimum":
    """The measures of a run: those in the cache beside its weights, if they are of these weights and options."""
    from hfbsz.measure.hessian import NotFinite
    from hfbsz.measure.minimum import Minimum, measure
    from hfbsz.run.weights import WEIGHTS

    data = loaded.setup.data
    sets = {name: [rows.path.parent.name, rows.path.name] for name, rows in data.sets.items()}
    key = {**numbers, "weights": sha256(path / WEIGHTS), "data": data.facts.data_hash, "sets": sets}
    cached = read_object(path / MINIMUM_FILE) or {}
    if cached.get("key") == key:
        try:
            return Minimum.from_dict(cached["minimum"])
        except (KeyError, TypeError, ValueError):
            pass  # of another version: measured again
    training, validation = (_objective(loaded, numbers, rows) for rows in (data.train, data.validation))
    further = {name: _objective(loaded, numbers, rows) for name, rows in data.sets.items()}
    try:
        result = measure(training, validation, further, numbers["seconds"], numbers["seed"], show)
    except NotFinite as problem:
        raise UserError(f"{path}: {problem}") from None
    write_text(path / MINIMUM_FILE, json.dumps({"key": key, "minimum": result.to_dict()}, indent=1))
    return result


def _objective(loaded: "Weights", numbers: Mapping[str, int], rows: "Rows") -> Any:
    from hfbsz.measure.hessian import Objective

    batches = list(loaded.batches(rows, numbers["rows"], numbers["micro_batch"]))
    return Objective(loaded.model, loaded.setup.task.loss_sum, batches)


def _correlations(minima: Sequence["Minimum"], batches: Sequence[Sequence[int]]) -> Correlations:
    """Rank correlations of each measure with the largest batch and with the gap; empty for fewer than four runs."""
    if len(minima) < 4:
        return {}
    sizes = [float(max(run)) for run in batches]
    gaps = [one.gap for one in minima]
    measures = {
        "largest eigenvalue": [one.eigenvalues[0] for one in minima],
        "trace": [one.trace.value for one in minima],
        "SAM, radius 0.05": [one.sam["0.05"] for one in minima],
        "adaptive SAM, radius 0.5": [one.adaptive_sam["0.5"] for one in minima],
        "Keskar's φ": [one.keskar for one in minima],
        "10 % noise": [one.noise["0.1"].value for one in minima],
    }
    return {
        name: {"batch": rank_correlation(values, sizes), "gap": rank_correlation(values, gaps)}
        for name, values in measures.items()
        if all(map(math.isfinite, values))
    }


def _lines(runs: Sequence[Any]) -> Iterator[str]:
    heads = ("batch", "loss", "gap", "λ max", "trace", "SAM", "ASAM", "φ (%)", "10 % noise")
    yield f"{'run':<34}" + "".join(f" {head:>{width}}" for head, width in zip(heads, _WIDTHS, strict=True))
    for run in runs:
        one = run.minimum
        trace, noise = one["trace"], one["noise"]["0.1"]
        values = (
            run.batch,
            f"{one['loss']:.4f}",
            with_minus(f"{one['gap']:.3f}"),
            sized(one["eigenvalues"][0]),
            f"{sized(trace['value'])} ± {sized(trace['error'])}",
            f"{one['sam']['0.05']:.3g}",
            f"{one['adaptive_sam']['0.5']:.3g}",
            f"{one['keskar']:.3g}",
            f"{noise['value']:.3g} ± {noise['error']:.2g}",
        )
        yield f"{one_line(run.name):<34}" + "".join(
            f" {value:>{width}}" for value, width in zip(values, _WIDTHS, strict=True)
        )
