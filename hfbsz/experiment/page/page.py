"""One self-contained HTML page for a comparison, during and after the runs; it needs no network.

The same `Experiment` gives the same bytes. The template is `comparison.html.jinja`, the conclusions are from `verdict`,
the figures from `figures` and `curves`.
"""

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfbsz.display import with_minus
from hfbsz.experiment.page.curves import curves, tuning
from hfbsz.experiment.page.figures import by_batch, families, forest, line_styles, values
from hfbsz.experiment.page.results_file import MEASURE
from hfbsz.experiment.page.sharpness import correlations
from hfbsz.experiment.page.verdict import arm_names, conclusions, lowest, p_text, result_of_test
from hfbsz.experiment.results import ArmResult, Experiment, Outcome
from hfbsz.experiment.statistics.evidence import Finding, Verdict
from hfbsz.experiment.statistics.factorial import Effect
from hfbsz.experiment.statistics.trials import MEASURES, Comparison
from hfbsz.records.sharpness import CONTESTED
from hfbsz.report.page.page import environment
from hfbsz.report.page.style import style

MARKS = {
    Verdict.SUPPORTED: "✓",
    Verdict.CONTRADICTED: "✗",
    Verdict.NOT_SUPPORTED: "○",
    Verdict.NOT_DECIDED: "…",
}
Cell = tuple[str, str]  # value, and a note in small print


@dataclass(frozen=True)
class Column:
    """A column of the table of arms; `cell` returns None if the arm has no such value."""

    heading: str
    unit: str
    cell: Callable[[ArmResult], Cell | None]


def render(experiment: Experiment) -> str:
    """The HTML page for the current state of a comparison."""
    named = arm_names(experiment.arms) | {result.words: result.words for result in experiment.pretraining}
    everything = (*experiment.pretraining, *experiment.arms)
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
            conclusions=conclusions(experiment, named),
            best=lowest(experiment),
            columns=columns,
            rows=rows,
            families=[(name, style(index)[0]) for index, name in enumerate(families(experiment.arms))],
            grows=any(result.arm.grows for result in experiment.arms if result.arm),
            by_batch=by_batch(experiment),
            legend=_legend(experiment),
            curves=[*curves(experiment), *tuning(experiment)],
            baseline=by_arm.get(experiment.baseline) if experiment.baseline else None,
            tests=[_test(pair, by_arm[pair.left]) for pair in experiment.comparisons],
            effects=[_test(effect, effect.words) for effect in experiment.effects],
            measure=MEASURES[MEASURE],
            forest=forest(experiment.comparisons, by_arm),
            beliefs=[_belief(finding) for finding in experiment.findings],
            sharpness=correlations(experiment),
            contested=CONTESTED,
        )
    )


def _state(experiment: Experiment) -> tuple[str, str]:
    """The state of the comparison: its CSS class, and in words."""
    states = [outcome.state for outcome in experiment.outcomes]
    counts = {state: states.count(state) for state in ("failed", "diverged")}
    losses = "".join(f", {count} run{'s' * (count > 1)} {state}" for state, count in counts.items() if count)
    if not states:
        return "unknown", "no runs planned"
    if experiment.finished:
        return ("failed" if losses else "finished"), f"finished{losses}"
    if "running" in states:
        return "running", f"running{losses}"
    return "preempted", f"not finished, no active run{losses}"


def _share(experiment: Experiment) -> float:
    """The share of all work that is done, 0 to 1."""
    shares = [1.0 if outcome.ended else outcome.share for outcome in experiment.outcomes]
    return sum(shares) / _planned(experiment) if shares else 0.0


def _planned(experiment: Experiment) -> int:
    """The number of runs, including those whose tuned value is not known yet."""
    return max(experiment.planned, len(experiment.outcomes))


def _runs(result: ArmResult) -> list[tuple[str, Outcome]]:
    seeds = [(f"seed {outcome.seed}", outcome) for outcome in result.outcomes]
    return seeds + [(f"tried {tried.value:g}", tried.outcome) for tried in result.tried if tried.outcome is not None]


def _failures(result: ArmResult) -> list[tuple[str, str]]:
    """The runs of an arm that failed or diverged: (labels, reason), one entry per reason."""
    by_reason: dict[str, list[str]] = {}
    for label, outcome in _runs(result):
        if outcome.state in ("failed", "diverged"):
            by_reason.setdefault(f"{outcome.state}: {outcome.why or 'reason unknown'}", []).append(label)
    return [(", ".join(labels), why) for why, labels in by_reason.items()]


def _table(experiment: Experiment) -> tuple[list[Column], list[tuple[ArmResult, list[Cell]]]]:
    """The columns that have a value for any arm, and their cells by arm."""
    target = "" if experiment.target is None else f", {experiment.target:.3f} nats/target"
    columns = [
        Column("Batch", "sequences; micro × passes", _batch),
        Column("Scaling rule", "of the rate", lambda result: (result.arm.rule, "") if result.arm else None),
        Column("Learning rate", "peak, no unit", _rate),
        Column("Seeds", "finished", _seeds),
        Column("Loss", "validation, nats/target, mean ± sd", _mean("final_loss", ".4f")),
        Column("Accuracy", "share of rows, mean ± sd", _mean("accuracy", ".3f")),
        *_score_columns(experiment),
        Column("Final gap", "nats/target, mean ± sd", _mean("gap", "+.3f")),
        Column("Onset of overfitting", "epoch, median", _onset),
        Column("Best evaluation", "epoch, median", _over_seeds("best_epoch", ".2f", statistics.median)),
        Column("Time to best", "s, median", _over_seeds("seconds_to_best", ",.0f", statistics.median)),
        Column("Steps to target", f"steps, median{target}", _to_target),
        Column("Largest eigenvalue", "no unit, mean ± sd", _mean("eigenvalue", ".3g")),
        Column("Adaptive SAM", "nats/target, mean ± sd", _mean("adaptive_sam", ".3g")),
        Column("Padding", "% of positions, mean", _padding),
        Column("Optimizer steps", "steps, mean", _over_seeds("optimizer_steps", ",.0f", statistics.fmean)),
        Column("Training time", "s, mean", _over_seeds("seconds", ",.0f", statistics.fmean)),
        Column("Speed", "tokens/s, mean", _over_seeds("tokens_per_second", ",.0f", statistics.fmean)),
        Column("Peak memory", "GiB, maximum", _memory),
    ]
    cells = [[column.cell(result) for column in columns] for result in experiment.arms]
    filled = [index for index in range(len(columns)) if any(row[index] for row in cells)]
    rows = [[row[index] or ("–", "") for index in filled] for row in cells]
    return [columns[index] for index in filled], list(zip(experiment.arms, rows, strict=True))


def _score_columns(experiment: Experiment) -> list[Column]:
    """A column for each measure of each task."""
    every = {name: scores[0] for result in experiment.arms for name, scores in result.scores.items()}
    return [
        Column(score.heading.capitalize(), f"{score.task}, mean ± sd", _mean_score(name, score.form))
        for name, score in sorted(every.items())
    ]


def _mean_score(name: str, form: str) -> Callable[[ArmResult], Cell | None]:
    return lambda result: _mean_and_sd([score.value for score in result.scores.get(name, ())], form)


def _batch(result: ArmResult) -> Cell | None:
    arm = result.arm
    if arm is None:
        return None
    split = f"{arm.micro_batch} × {arm.accumulation}" if arm.micro_batch else ""
    return (f"{arm.start} → {arm.batch}" if arm.grows else f"{arm.batch}"), split


def _rate(result: ArmResult) -> Cell | None:
    if result.arm is None:
        return None
    note = "tuned" if result.arm.tuned else "best tried, at the end of the range" if result.arm.searched else ""
    return f"{result.arm.learning_rate:.3g}", note


def _seeds(result: ArmResult) -> Cell:
    done, planned = len(result.trials), len(result.outcomes)
    return str(done), "" if done == planned else f"of {planned}"


def _mean(name: str, form: str) -> Callable[[ArmResult], Cell | None]:
    return lambda result: _mean_and_sd(values(result, name), form)


def _mean_and_sd(measured: list[float], form: str) -> Cell | None:
    lost = sum(not math.isfinite(value) for value in measured)
    if not measured or lost:
        return ("diverged", f"{lost} of {len(measured)} seeds") if measured else None
    mean = with_minus(format(statistics.fmean(measured), form))
    sd = format(statistics.stdev(measured), form.lstrip("+")) if len(measured) > 1 else ""
    return mean, f"± {sd}" if sd else "1 seed"


def _over_seeds(name: str, form: str, reduce: Callable[[list[float]], float]) -> Callable[[ArmResult], Cell | None]:
    def cell(result: ArmResult) -> Cell | None:
        finite = [value for value in values(result, name) if math.isfinite(value)]
        return (with_minus(format(reduce(finite), form)), "") if finite else None

    return cell


def _onset(result: ArmResult) -> Cell | None:
    """`none found` is a result only if training loss was measured too, in which case there is a gap."""
    onsets, watched = values(result, "onset_epoch"), len(values(result, "gap"))
    if not onsets:
        return ("none found", "") if watched else None
    runs = max(watched, len(onsets))
    return f"{statistics.median(onsets):.2f}", "" if len(onsets) == runs else f"{len(onsets)} of {runs} seeds"


def _to_target(result: ArmResult) -> Cell | None:
    steps = values(result, "steps_to_target")
    missed = sum(not math.isfinite(value) for value in steps)
    if not steps or missed == len(steps):
        return ("not reached", "") if steps else None
    median = statistics.median(value if math.isfinite(value) else math.inf for value in steps)
    shown = f"{median:,.0f}" if math.isfinite(median) else "not reached"
    return shown, f"{missed} of {len(steps)} seeds missed it" if missed else ""


def _padding(result: ArmResult) -> Cell | None:
    shares = values(result, "padding")
    return (f"{100 * statistics.fmean(shares):.1f}", "") if shares else None


def _memory(result: ArmResult) -> Cell | None:
    peaks = values(result, "peak_memory_bytes")
    return (f"{max(peaks) / 2**30:.2f}", "") if peaks else None


def _legend(experiment: Experiment) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """The families with their arms: (name, color, dashes)."""
    styles, legend = line_styles(experiment), []
    for family, results in families(experiment.arms).items():
        short = arm_names(results)
        arms = []
        for result in results:
            color, dashes = styles[result.words]
            arms.append((short[result.words], color, " ".join(map(str, dashes))))
        legend.append((family, arms))
    return legend


def _test(tested: Comparison | Effect, name: str) -> dict[str, Any]:
    contrast, kind = tested.contrast, MEASURES[MEASURE]
    interval = f"{kind.show(contrast.low)} to {kind.show(contrast.high)}" if math.isfinite(contrast.low) else "–"
    return {
        "name": name,
        "difference": kind.show(contrast.mean) if math.isfinite(contrast.mean) else "–",
        "interval": interval,
        "n": contrast.n,
        "effect": with_minus(f"{contrast.effect:+.2f}") if math.isfinite(contrast.effect) else "–",
        "p": p_text(tested.p_holm),
        "sign_flip": p_text(contrast.sign_flip_p),
        "result": result_of_test(tested),
    }


def _belief(finding: Finding) -> dict[str, Any]:
    return {
        "statement": finding.statement[:1].upper() + finding.statement[1:],
        "verdict": finding.verdict,
        "mark": MARKS[finding.verdict],
        "measured": finding.measured,
        "source": finding.source,
        "needs": finding.needs,
    }
