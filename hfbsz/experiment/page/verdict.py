"""The conclusions of a comparison in sentences: which arm has the lowest loss, and whether paired tests confirm it."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from enum import StrEnum

from hfbsz.experiment.results import ArmResult, Experiment
from hfbsz.experiment.statistics.factorial import Effect
from hfbsz.experiment.statistics.paired import ALPHA, MIN_SEEDS
from hfbsz.experiment.statistics.trials import Arm, Comparison, Summary, compare, summarize


def arm_names(results: Sequence[ArmResult]) -> dict[str, str]:
    """A short name for each arm, by its words: the batch, and the properties needed to distinguish the arms."""
    parts = {result.words: [part(result.arm) for part in _PARTS] for result in results if result.arm is not None}
    used: list[int] = [0]
    for index in range(1, len(_PARTS)):
        if _count_distinct(parts, [*used, index]) > _count_distinct(parts, used):
            used.append(index)
    unique = _count_distinct(parts, used) == len(parts)
    return {
        result.words: "\u00a0· ".join(filter(None, (parts[result.words][index] for index in used)))
        if unique and result.words in parts
        else result.words
        for result in results
    }


_PARTS = (
    lambda arm: arm.name,
    lambda arm: arm.variant,
    lambda arm: f"rule {arm.rule}",
    lambda arm: "rate tuned" if arm.tuned else "best rate tried" if arm.searched else "",
    lambda arm: f"rate {arm.learning_rate:.3g}",
    lambda arm: "" if arm.decays else "no decay",
    lambda arm: f"{arm.accumulation} passes per step" if (arm.accumulation or 1) > 1 else "",
)


def _count_distinct(parts: Mapping[str, Sequence[str]], indices: Sequence[int]) -> int:
    return len({tuple(arm_parts[index] for index in indices) for arm_parts in parts.values()})


def conclusions(experiment: Experiment, named: Mapping[str, str]) -> list[str]:
    """Sentences on the ranking of the arms and its significance. `named`: arm names by words, as of `arm_names`."""
    trials = [trial for result in experiment.distinct_arms for trial in result.trials]
    if not trials:
        return ["No results: no run has finished yet."]
    names = {result.arm: named[result.words] for result in experiment.arms if result.arm is not None}
    try:
        ranked, others = ranking(experiment)
        arms = {summary.arm for summary in ranked}
        pairs = compare([trial for trial in trials if trial.arm in arms])
    except ValueError:
        return ["No ranking: the runs differ in more than arm and seed (see the notes), so they cannot be compared."]
    if not ranked:
        return ["No ranking: no arm has a finite loss for all of its finished seeds."]
    sentences = [_lowest_mean(ranked, names, experiment.finished)]
    if len(ranked) > 1:
        sentences.append(_significance(ranked, pairs, names))
    if others:
        unranked = ", ".join(names[summary.arm] for summary in others)
        sentences.append(f"Not ranked because of diverged or unfinished seeds: {unranked}.")
    return sentences


def ranking(experiment: Experiment) -> tuple[list[Summary], list[Summary]]:
    """The arms that can be ranked, lowest mean first, and the others.

    Ranked arms share the same seeds, the most that any arm has, and have finite losses: means over different seeds are
    not comparable. Raises ValueError if the runs have different settings.
    """
    summaries = summarize([trial for result in experiment.distinct_arms for trial in result.trials])
    most = max((summary.n for summary in summaries), default=0)
    seeds = Counter(summary.seeds for summary in summaries if summary.n == most).most_common(1)
    ranked = [summary for summary in summaries if summary.seeds == seeds[0][0] and math.isfinite(summary.mean)]
    others = [summary for summary in summaries if summary not in ranked]
    return sorted(ranked, key=lambda summary: summary.mean), others


def lowest(experiment: Experiment) -> Arm | None:
    """The arm with the lowest mean loss, if at least two arms can be ranked."""
    try:
        ranked, _ = ranking(experiment)
    except ValueError:
        return None
    return ranked[0].arm if len(ranked) > 1 else None


def _lowest_mean(ranked: Sequence[Summary], names: Mapping[Arm, str], finished: bool) -> str:
    best = ranked[0]
    seeds = f"{best.n} seeds" if best.n > 1 else "1 seed"
    opening = "Lowest mean validation loss of the saved model" + ("" if finished else " so far")
    text = f"{opening}: {names[best.arm]}, {best.mean:.4f} nats/target over {seeds}"
    if len(ranked) == 1:
        return f"{text}; there is no other arm to compare with{'' if finished else ' yet'}."
    return f"{text}, {ranked[1].mean - best.mean:.4f} below the next arm, {names[ranked[1].arm]}."


def _significance(ranked: Sequence[Summary], pairs: Sequence[Comparison], names: Mapping[Arm, str]) -> str:
    """Paired tests of the best arm. It was selected by its loss, so Holm's correction covers all pairs of arms."""
    best, *others = (summary.arm for summary in ranked)
    tested = [pair for pair in pairs if not math.isnan(pair.p_holm)]
    if not tested:
        few = max((pair.contrast.n for pair in pairs), default=0) < MIN_SEEDS
        why = f"fewer than {MIN_SEEDS} shared seeds" if few else "the differences do not vary over seeds"
        return f"Not tested ({why}): whether the differences are significant is not decided."
    count = f"{len(tested)} pair{'s' * (len(tested) > 1)}"
    method = (
        f"paired t-tests on {ranked[0].n} seeds, Holm over {count} of arms, family-wise error rate {100 * ALPHA:.0f} %"
    )
    beaten = {_higher(pair) for pair in tested if pair.p_holm < ALPHA and best in (pair.left, pair.right)} - {best}
    if len(beaten) == len(others):
        largest = max(pair.p_holm for pair in tested if best in (pair.left, pair.right))
        every = {1: "the other arm", 2: "both other arms"}.get(len(others), f"all {len(others)} other arms")
        return f"It is significantly lower than {every} (largest adjusted {_p_equals(largest)}; {method})."
    smallest = min(pair.p_holm for pair in tested)
    if smallest >= ALPHA:
        return (
            f"No difference between arms is significant (smallest adjusted {_p_equals(smallest)}; {method}): which arm "
            "is best is not decided."
        )
    if not beaten:
        return f"It is not significantly lower than any other arm ({method}): which arm is best is not decided."
    remaining = [names[arm] for arm in others if arm not in beaten]
    rest = ", ".join(remaining[:3]) + (f" and {len(remaining) - 3} more" if len(remaining) > 3 else "")
    return (
        f"It is significantly lower than {len(beaten)} of the {len(others)} other arms, but not than {rest} "
        f"({method}): which arm is best is not decided."
    )


def _higher(pair: Comparison) -> Arm:
    return pair.left if pair.contrast.mean > 0 else pair.right


class Significance(StrEnum):
    """The result of a paired test at 5 % after Holm's correction."""

    HIGHER = "significantly higher"
    LOWER = "significantly lower"
    NONE = "not significant"
    NOT_TESTED = "not tested"


def significance(tested: Comparison | Effect) -> tuple[Significance, str | None]:
    """The result of a paired test, and why it was not tested."""
    contrast = tested.contrast
    if not contrast.finite:
        lost = sum(not math.isfinite(value) for value in contrast.differences)
        return Significance.NOT_TESTED, f"{lost} of {contrast.n} seeds diverged"
    if contrast.n < MIN_SEEDS:
        return Significance.NOT_TESTED, f"fewer than {MIN_SEEDS} seeds"
    if math.isnan(tested.p_holm):
        return Significance.NOT_TESTED, "no variation over seeds"
    if tested.p_holm >= ALPHA:
        return Significance.NONE, None
    return (Significance.HIGHER if contrast.mean > 0 else Significance.LOWER), None


def result_of_test(tested: Comparison | Effect) -> str:
    """The result of a paired test in a few words."""
    result, why = significance(tested)
    return result if why is None else f"{result}: {why}"


def p_text(p: float) -> str:
    """A p-value with three digits; `–` if it is NaN."""
    return "–" if math.isnan(p) else "< 0.0001" if p < 1e-4 else f"{p:.3g}"


def _p_equals(p: float) -> str:
    return f"p {p_text(p)}" if p < 1e-4 else f"p = {p_text(p)}"
