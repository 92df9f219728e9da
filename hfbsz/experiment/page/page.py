"""One self-contained HTML page about a comparison of batch sizes, while it runs and after; it needs no network.

The same `Experiment` gives the same bytes. The words stand in `comparison.html.jinja`, what came out in `verdict`, the
pictures in `figures` and `curves`.
"""

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfbsz.experiment.page.curves import curves, tuning
from hfbsz.experiment.page.figures import families, forest, looks, over_batch, values
from hfbsz.experiment.page.verdict import arm_names, p_text, ranking, said_of_test, what_came_out
from hfbsz.experiment.results import ArmResult, Experiment, Outcome
from hfbsz.experiment.statistics.evidence import Finding, Verdict
from hfbsz.experiment.statistics.factorial import Effect
from hfbsz.experiment.statistics.trials import MEASURES, Arm, Comparison
from hfbsz.report.page.figures import style
from hfbsz.report.page.page import environment

MEASURE = "final_loss"  # of the tests
MARKS = {
    Verdict.SUPPORTED: "✓",
    Verdict.CONTRADICTED: "✗",
    Verdict.NOT_SUPPORTED: "○",
    Verdict.NOT_ENOUGH_RUNS: "…",
}
Cell = tuple[str, str]  # what stands there, and a note in small print beneath it


@dataclass(frozen=True)
class Column:
    """A column of the table; `cell` gives None where the arm has no such number."""

    heading: str
    unit: str
    cell: Callable[[ArmResult], Cell | None]


def render(experiment: Experiment) -> str:
    """The page of a comparison as it stands, as HTML."""
    named = arm_names(experiment.arms) | {result.words: result.words for result in experiment.before}
    everything = (*experiment.before, *experiment.arms)
    by_arm = {result.arm: named[result.words] for result in experiment.arms if result.arm is not None}
    columns, rows = _table(experiment)
    return (
        environment(Path(__file__).parent)
        .get_template("comparison.html.jinja")
        .render(
            experiment=experiment,
            named=named,
            state=_state(experiment),
            share=_share(experiment),
            planned=_planned(experiment),
            ended=sum(outcome.ended for outcome in experiment.outcomes),
            failures=[(named[result.words], *failure) for result in everything for failure in _failures(result)],
            progress=[(named[result.words], _runs(result)) for result in everything],
            came_out=what_came_out(experiment, named),
            best=_lowest(experiment),
            columns=columns,
            rows=rows,
            families=[(name, style(place)[0]) for place, name in enumerate(families(experiment.arms))],
            grows=any(result.arm.grows for result in experiment.arms if result.arm),
            over_batch=over_batch(experiment),
            legend=_legend(experiment),
            curves=[*curves(experiment), *tuning(experiment)],
            baseline=by_arm.get(experiment.baseline) if experiment.baseline else None,
            tests=[_test(one, by_arm[one.left]) for one in experiment.comparisons],
            effects=[_test(one, one.words) for one in experiment.effects],
            measure=MEASURES[MEASURE],
            forest=forest(experiment.comparisons, by_arm),
            beliefs=[_belief(finding) for finding in experiment.findings],
        )
    )


def _state(experiment: Experiment) -> tuple[str, str]:
    """The state of all runs together: its class of style, and in words."""
    states = [outcome.state for outcome in experiment.outcomes]
    counts = {state: states.count(state) for state in ("failed", "diverged")}
    but = "".join(f", {count} run{'s' * (count > 1)} {state}" for state, count in counts.items() if count)
    if not states:
        return "unknown", "no runs planned"
    if experiment.finished:
        return ("failed" if but else "finished"), f"finished{but}"
    if "running" in states:
        return "running", f"running{but}"
    return "preempted", f"not finished, no run is at work{but}"


def _share(experiment: Experiment) -> float:
    """How much of all runs is done, 0 to 1."""
    shares = [1.0 if outcome.ended else outcome.share for outcome in experiment.outcomes]
    return sum(shares) / _planned(experiment) if shares else 0.0


def _planned(experiment: Experiment) -> int:
    """Runs in all, those too whose numbers are still to be found."""
    return max(experiment.planned, len(experiment.outcomes))


def _runs(result: ArmResult) -> list[tuple[str, Outcome]]:
    seeds = [(f"seed {outcome.seed}", outcome) for outcome in result.outcomes]
    return seeds + [(f"tried {one.value:g}", one.outcome) for one in result.tried if one.outcome is not None]


def _failures(result: ArmResult) -> list[tuple[str, str]]:
    """Which runs of an arm failed, one entry for each reason."""
    found: dict[str, list[str]] = {}
    for label, outcome in _runs(result):
        if outcome.state in ("failed", "diverged"):
            found.setdefault(f"{outcome.state}: {outcome.why or 'no reason is known'}", []).append(label)
    return [(", ".join(labels), why) for why, labels in found.items()]


def _lowest(experiment: Experiment) -> Arm | None:
    """The arm of the lowest mean loss, where there are others that it can be ranked with."""
    try:
        ranked, _ = ranking(experiment)
    except ValueError:
        return None
    return ranked[0].arm if len(ranked) > 1 else None


def _table(experiment: Experiment) -> tuple[list[Column], list[tuple[ArmResult, list[Cell]]]]:
    """The columns that any arm fills, and their cells."""
    target = "" if experiment.target is None else f", {experiment.target:.3f} nats/target"
    columns = [
        Column("Batch", "sequences; micro × passes", _batch),
        Column("Rule", "of the rate", lambda result: (result.arm.rule, "") if result.arm else None),
        Column("Rate", "peak, no unit", _rate),
        Column("Seeds", "finished", _seeds),
        Column("Quality", "loss, nats/target, mean ± sd", _mean("final_loss", ".4f")),
        Column("Accuracy", "share of rows, mean ± sd", _mean("accuracy", ".3f")),
        Column("Gap at the end", "nats/target, mean ± sd", _mean("gap", "+.3f")),
        Column("Onset of overfitting", "epoch, median", _onset),
        Column("Best evaluation", "epoch, median", _over_seeds("best_epoch", ".2f", statistics.median)),
        Column("Time to best", "s, median", _over_seeds("seconds_to_best", ",.0f", statistics.median)),
        Column("Steps to target", f"steps, median{target}", _to_target),
        Column("Padding", "% of positions, mean", _padding),
        Column("Optimizer steps", "steps, mean", _over_seeds("optimizer_steps", ",.0f", statistics.fmean)),
        Column("Speed", "tokens/s, mean", _over_seeds("tokens_per_second", ",.0f", statistics.fmean)),
        Column("Peak memory", "GiB, largest", _memory),
    ]
    cells = [[column.cell(result) for column in columns] for result in experiment.arms]
    kept = [place for place in range(len(columns)) if any(row[place] for row in cells)]
    rows = [[row[place] or ("–", "") for place in kept] for row in cells]
    return [columns[place] for place in kept], list(zip(experiment.arms, rows, strict=True))


def _batch(result: ArmResult) -> Cell | None:
    arm = result.arm
    if arm is None:
        return None
    split = f"{arm.micro_batch} × {arm.accumulation}" if arm.micro_batch else ""
    return (f"{arm.start} → {arm.batch}" if arm.grows else f"{arm.batch}"), split


def _rate(result: ArmResult) -> Cell | None:
    if result.arm is None:
        return None
    how = "tuned" if result.arm.tuned else "best tried, at an end" if result.arm.searched else ""
    return f"{result.arm.learning_rate:.3g}", how


def _seeds(result: ArmResult) -> Cell:
    done, planned = len(result.trials), len(result.outcomes)
    return str(done), "" if done == planned else f"of {planned}"


def _mean(name: str, form: str) -> Callable[[ArmResult], Cell | None]:
    def cell(result: ArmResult) -> Cell | None:
        found = values(result, name)
        lost = sum(not math.isfinite(value) for value in found)
        if not found or lost:
            return ("diverged", f"{lost} of {len(found)} seeds") if found else None
        mean = format(statistics.fmean(found), form)
        sd = format(statistics.stdev(found), form.lstrip("+")) if len(found) > 1 else ""
        return mean, f"± {sd}" if sd else "1 seed"

    return cell


def _over_seeds(name: str, form: str, over: Callable[[list[float]], float]) -> Callable[[ArmResult], Cell | None]:
    def cell(result: ArmResult) -> Cell | None:
        found = [value for value in values(result, name) if math.isfinite(value)]
        return (format(over(found), form), "") if found else None

    return cell


def _onset(result: ArmResult) -> Cell | None:
    """Not seen is an answer only where training rows were watched, which the gap shows."""
    found, watched = values(result, "onset_epoch"), len(values(result, "gap"))
    if not found:
        return ("not seen", "") if watched else None
    runs = max(watched, len(found))
    return f"{statistics.median(found):.2f}", "" if len(found) == runs else f"{len(found)} of {runs} seeds"


def _to_target(result: ArmResult) -> Cell | None:
    found = values(result, "steps_to_target")
    missed = sum(not math.isfinite(value) for value in found)
    if not found or missed == len(found):
        return ("not reached", "") if found else None
    median = statistics.median(value if math.isfinite(value) else math.inf for value in found)
    shown = f"{median:,.0f}" if math.isfinite(median) else "not reached"
    return shown, f"{missed} of {len(found)} seeds missed it" if missed else ""


def _padding(result: ArmResult) -> Cell | None:
    found = values(result, "padding")
    return (f"{100 * statistics.fmean(found):.1f}", "") if found else None


def _memory(result: ArmResult) -> Cell | None:
    found = values(result, "peak_memory_bytes")
    return (f"{max(found) / 2**30:.2f}", "") if found else None


def _legend(experiment: Experiment) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """Families with their arms that have curves or trials of tuning: (name, colour, dashes)."""
    look, legend = looks(experiment), []
    for family, several in families(experiment.arms).items():
        short = arm_names(several)
        arms = [(short[one.words], look[one.words][0], " ".join(map(str, look[one.words][1]))) for one in several]
        legend.append((family, arms))
    return legend


def _test(one: Comparison | Effect, name: str) -> dict[str, Any]:
    found, kind = one.contrast, MEASURES[MEASURE]
    interval = f"{kind.show(found.low)} to {kind.show(found.high)}" if math.isfinite(found.low) else "–"
    return {
        "name": name,
        "difference": kind.show(found.mean).replace("-", "−") if math.isfinite(found.mean) else "–",
        "interval": interval.replace("-", "−"),
        "n": found.n,
        "effect": f"{found.effect:+.2f}".replace("-", "−") if math.isfinite(found.effect) else "–",
        "p": p_text(one.p_holm),
        "sign_flip": p_text(found.sign_flip_p),
        "says": said_of_test(one),
    }


def _belief(finding: Finding) -> dict[str, Any]:
    """A finding with what it needs apart from its sentence, at whose end it stands too."""
    sentence = finding.sentence.partition(finding.needs)[0] if finding.needs else finding.sentence
    return {
        "statement": finding.statement[:1].upper() + finding.statement[1:],
        "verdict": finding.verdict,
        "mark": MARKS[finding.verdict],
        "sentence": sentence.removesuffix("; ").removesuffix(": it needs ").rstrip(".") + ".",
        "source": finding.source,
        "needs": finding.needs,
    }
