"""What came out of a comparison, in words: which arm ended best, and whether paired tests bear it."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from hfbsz.experiment.results import ArmResult, Experiment
from hfbsz.experiment.statistics.factorial import Effect
from hfbsz.experiment.statistics.paired import ALPHA, FEWEST_SEEDS
from hfbsz.experiment.statistics.trials import Arm, Comparison, Summary, compare, summarise


def arm_names(results: Sequence[ArmResult]) -> dict[str, str]:
    """A name for each arm by its words: the batch, and what else it takes to tell the arms apart."""
    known = {result.words: _parts(result.arm) for result in results if result.arm is not None}
    kept: list[int] = [0]
    for place in range(1, len(_PARTS)):
        if _distinct(known, [*kept, place]) > _distinct(known, kept):
            kept.append(place)
    unique = _distinct(known, kept) == len(known)
    return {
        result.words: "\u00a0· ".join(filter(None, (known[result.words][place] for place in kept)))
        if unique and result.words in known
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
    lambda arm: f"{arm.accumulation} passes a step" if (arm.accumulation or 1) > 1 else "",
)


def _parts(arm: Arm) -> list[str]:
    return [part(arm) for part in _PARTS]


def _distinct(known: Mapping[str, Sequence[str]], kept: Sequence[int]) -> int:
    return len({tuple(parts[place] for place in kept) for parts in known.values()})


def what_came_out(experiment: Experiment, named: Mapping[str, str]) -> list[str]:
    """Plain sentences; no verdict that the tests do not bear."""
    trials = [trial for result in experiment.distinct for trial in result.trials]
    if not trials:
        return ["No run has finished yet: nothing can be said."]
    names = {result.arm: named[result.words] for result in experiment.arms if result.arm is not None}
    try:
        ranked, others = ranking(experiment)
        arms = {summary.arm for summary in ranked}
        pairs = compare([trial for trial in trials if trial.arm in arms])
    except ValueError:
        return ["Nothing can be ranked: the runs differ in more than their arms and seeds, so no difference is theirs."]
    if not ranked:
        return ["Nothing can be ranked: no arm has a finite loss for every seed that it finished."]
    sentences = [_lead(ranked, names, experiment.finished)]
    if len(ranked) > 1:
        sentences.append(_borne(ranked, pairs, names))
    if others:
        left = ", ".join(names[summary.arm] for summary in others)
        sentences.append(f"Not ranked, for seeds that diverged or have not finished: {left}.")
    return sentences


def ranking(experiment: Experiment) -> tuple[list[Summary], list[Summary]]:
    """Arms of the same seeds, as many as any has, all finite, lowest mean first; and the others.

    Means over unlike seeds do not compare. Raises ValueError where runs are of different settings.
    """
    summaries = summarise([trial for result in experiment.distinct for trial in result.trials])
    most = max((summary.n for summary in summaries), default=0)
    alike = Counter(summary.seeds for summary in summaries if summary.n == most).most_common(1)
    ranked = [one for one in summaries if one.seeds == alike[0][0] and math.isfinite(one.mean)]
    others = [summary for summary in summaries if summary not in ranked]
    return sorted(ranked, key=lambda summary: summary.mean), others


def _lead(ranked: Sequence[Summary], names: Mapping[Arm, str], finished: bool) -> str:
    best = ranked[0]
    seeds = f"{best.n} seeds" if best.n > 1 else "1 seed"
    opening = "Lowest mean loss of the kept model" + ("" if finished else " so far")
    text = f"{opening}: {names[best.arm]}, {best.mean:.4f} nats/target over {seeds}"
    if len(ranked) == 1:
        return f"{text}; there is no other arm to compare it with{'' if finished else ' yet'}."
    return f"{text}, {ranked[1].mean - best.mean:.4f} below the next, {names[ranked[1].arm]}."


def _borne(ranked: Sequence[Summary], pairs: Sequence[Comparison], names: Mapping[Arm, str]) -> str:
    """What paired tests say of the best. It was chosen for its loss, so Holm's correction runs over all pairs."""
    best, *others = (summary.arm for summary in ranked)
    tested = [one for one in pairs if not math.isnan(one.p_holm)]
    if not tested:
        few = max((one.contrast.n for one in pairs), default=0) < FEWEST_SEEDS
        why = f"fewer than {FEWEST_SEEDS} shared seeds" if few else "losses that do not vary over seeds"
        return f"No paired test is possible with {why}: no arm is surely better."
    family_words = f"Holm over {len(tested)} pair{'s' * (len(tested) > 1)}"
    beaten = {_loser(one) for one in tested if one.p_holm < ALPHA and best in (one.left, one.right)} - {best}
    if len(beaten) == len(others):
        largest = max(one.p_holm for one in tested if best in (one.left, one.right))
        return f"Paired tests bear it against every other arm (largest p = {p_text(largest)} after {family_words})."
    if not any(one.p_holm < ALPHA for one in tested):
        return (
            f"The paired tests do not bear this lead (every p ≥ {ALPHA} after {family_words}): no arm is surely better."
        )
    if not beaten:
        return f"No arm is surely the best: paired tests hold this one better than no other ({family_words})."
    equal = [names[arm] for arm in others if arm not in beaten]
    rest = ", ".join(equal[:3]) + (f" and {len(equal) - 3} more" if len(equal) > 3 else "")
    surely = f"surely beats {len(beaten)} of the {len(others)} others (p < {ALPHA} after {family_words})"
    return f"No arm is surely the best: by paired tests this one {surely}, but not {rest}."


def _loser(one: Comparison) -> Arm:
    return one.left if one.contrast.mean > 0 else one.right


def said_of_test(one: Comparison | Effect) -> str:
    """What a paired test says, in a few words."""
    found = one.contrast
    if not found.finite:
        lost = sum(not math.isfinite(value) for value in found.differences)
        return f"{lost} of {found.n} seeds diverged: no test"
    if found.n < FEWEST_SEEDS:
        return f"fewer than {FEWEST_SEEDS} seeds: no test"
    if math.isnan(one.p_holm):
        return "no spread over seeds: no test"
    if one.p_holm >= ALPHA:
        return "not sure"
    return "surely higher" if found.mean > 0 else "surely lower"


def p_text(p: float) -> str:
    return "–" if math.isnan(p) else "< 0.0001" if p < 1e-4 else f"{p:.3g}"
