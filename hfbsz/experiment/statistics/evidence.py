"""From finished runs to findings: which common beliefs about batch sizes they bear out, and which they cannot judge.

Every claim is a paired t-test at α = 0.05, two-sided, after Holm's correction over all claims of one call: the rate of
one or more false `supported` or `contradicted` among them is at most 0.05. `not supported` is a finding of its own: two
one-sided t-tests, at 0.05 after Holm over all claims, place the effect within ± its smallest size of interest. All else
is `not enough runs`, and so is everything below 3 seeds an arm.

With five seeds, ten claims and differences of 0.025 nats standard deviation, an effect of 0.08 nats is found with power
0.8. Three seeds find 0.1 nats with power 0.9 where the claim stands alone, and 0.08 among ten with power 0.15. They
never give a sign-flip p below 0.25: from so few, a verdict rests on the normality of differences
(`hfbsz.experiment.statistics.paired`). `hfbsz.experiment.statistics.simulation` measures these rates.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from hfbsz.experiment.statistics.beliefs import BELIEFS, Belief, Case, Claim, Kind, Smallest
from hfbsz.experiment.statistics.paired import (
    ALPHA,
    FEWEST_SEEDS,
    NAN,
    POWER,
    Contrast,
    contrast,
    equivalence,
    holm,
    seeds_needed,
)
from hfbsz.experiment.statistics.trials import Trial, by_arm


class Verdict(StrEnum):
    SUPPORTED = "supported"
    CONTRADICTED = "contradicted"
    NOT_SUPPORTED = "not supported"  # an effect of a size of interest is excluded
    NOT_ENOUGH_RUNS = "not enough runs"


@dataclass(frozen=True)
class Result:
    """A claim, its numbers and what they say; p-values are adjusted by Holm over `family` claims."""

    claim: Claim
    contrast: Contrast
    p_holm: float  # mean = threshold
    p_equivalence: float  # mean outside ± the margin; NaN for a claim of `no less`
    family: int

    @property
    def verdict(self) -> Verdict:
        if self.p_equivalence < ALPHA:
            return Verdict.NOT_SUPPORTED
        if not self.p_holm < ALPHA:
            return Verdict.NOT_ENOUGH_RUNS
        return Verdict.SUPPORTED if self.contrast.mean > self.contrast.threshold else Verdict.CONTRADICTED


@dataclass(frozen=True)
class Finding:
    """What the runs say of a belief: the verdict, one sentence, the tests behind it, and the arms still needed."""

    name: str
    statement: str
    source: str
    verdict: Verdict
    sentence: str
    results: tuple[Result, ...] = ()
    needs: str = ""


def findings(trials: Iterable[Trial], smallest: Smallest | None = None) -> list[Finding]:
    """A finding for every belief. `smallest`: the effects too small to matter, by default 0.02 nats/target and 5 %.

    Raises ValueError where trials of different settings, or one trial twice, are given.
    """
    runs = by_arm(trials)
    cases = {name: belief.cases(runs, smallest or Smallest()) for name, belief in BELIEFS.items()}
    results = iter(examine([claim for found in cases.values() for case in found for claim in case.claims]))
    return [
        _finding(name, BELIEFS[name], [(case, tuple(next(results) for _ in case.claims)) for case in found])
        for name, found in cases.items()
    ]


def examine(claims: Sequence[Claim]) -> list[Result]:
    """Test claims as one family. Below three seeds there is no test, and the others do not pay for it."""
    contrasts, inside = [], []
    for claim in claims:
        more = claim.kind is Kind.MORE
        contrasts.append(contrast(claim.values, 0.0 if more else -claim.margin, claim.exact))
        enough = more and len(claim.values) >= FEWEST_SEEDS
        inside.append(equivalence(claim.values, claim.margin, claim.exact) if enough else NAN)
    differ = [one.p if one.n >= FEWEST_SEEDS else NAN for one in contrasts]
    family = sum(map(math.isfinite, differ))
    return [Result(*row, family) for row in zip(claims, contrasts, holm(differ), holm(inside), strict=True)]


def _finding(name: str, belief: Belief, cases: Sequence[tuple[Case, tuple[Result, ...]]]) -> Finding:
    verdicts = [_judge(case, results) for case, results in cases]
    verdict = _any(verdicts)
    if not cases:
        sentence = f"{_opening(belief, verdict)}: it needs {belief.needs}."
        return Finding(name, belief.statement, belief.source, verdict, sentence, (), belief.needs)
    case, results = cases[verdicts.index(verdict)]
    needs = _obstacle(case, results) if verdict is Verdict.NOT_ENOUGH_RUNS else ""
    sentence = f"{_opening(belief, verdict)}: " + "; ".join([*map(_say, results), *([needs] if needs else [])]) + "."
    everything = tuple(result for _, several in cases for result in several)
    return Finding(name, belief.statement, belief.source, verdict, sentence, everything, needs)


def _judge(case: Case, results: Sequence[Result]) -> Verdict:
    """The guard of a verdict must hold with it. Guards are tested one by one at α: they can only take verdicts away."""
    verdict = _all(results)
    guard = _guard(case, verdict)
    return verdict if guard is None or guard.verdict is Verdict.SUPPORTED else Verdict.NOT_ENOUGH_RUNS


def _guard(case: Case, verdict: Verdict) -> Result | None:
    guards = {Verdict.SUPPORTED: case.supports_guard, Verdict.CONTRADICTED: case.contradicts_guard}
    guard = guards.get(verdict)
    return examine([guard])[0] if guard else None


def _all(results: Sequence[Result]) -> Verdict:
    """All claims of a case must hold (intersection-union, Berger 1982)."""
    found = {result.verdict for result in results}
    order = (Verdict.CONTRADICTED, Verdict.NOT_SUPPORTED, Verdict.NOT_ENOUGH_RUNS, Verdict.SUPPORTED)
    return next(verdict for verdict in order if verdict in found)


def _any(verdicts: Sequence[Verdict]) -> Verdict:
    """One case that holds supports a belief; only all of them together speak against it."""
    if Verdict.SUPPORTED in verdicts:
        return Verdict.SUPPORTED
    if not verdicts or Verdict.NOT_ENOUGH_RUNS in verdicts:
        return Verdict.NOT_ENOUGH_RUNS
    return Verdict.CONTRADICTED if set(verdicts) == {Verdict.CONTRADICTED} else Verdict.NOT_SUPPORTED


def _opening(belief: Belief, verdict: Verdict) -> str:
    if verdict is Verdict.NOT_ENOUGH_RUNS:
        return f"Not enough runs to say whether {belief.statement}"
    return f"That {belief.statement} is {verdict}"


def _say(result: Result) -> str:
    """A claim's numbers in words."""
    claim, found = result.claim, result.contrast
    if math.isnan(found.mean):
        return claim.words
    text = f"{claim.words}, {claim.show(found.mean)} {claim.unit}"
    if math.isnan(found.sd):
        return f"{text} (1 seed)"
    if found.sd == 0:
        return f"{text} (the same for {found.n} seeds)"
    text += f" (95 % CI {claim.show(found.low)} to {claim.show(found.high)}, {found.n} seeds"
    if not math.isnan(result.p_holm):
        text += f", p = {result.p_holm:.2g} after Holm over {result.family}"
    if not math.isnan(found.sign_flip_p):
        text += f", sign-flip p = {found.sign_flip_p:.2g}"
    if claim.kind is Kind.NO_LESS:
        text += f", both against {claim.show(-claim.margin)}"
    elif result.p_equivalence < ALPHA:
        text += f", within ±{_margin(claim)}"
    return text + ")"


def _margin(claim: Claim) -> str:
    return f"{claim.show(claim.margin).lstrip('+')} {claim.unit}"


def _obstacle(case: Case, results: Sequence[Result]) -> str:
    """Why a case gives no verdict, and what would."""
    for result in results:
        if result.verdict is Verdict.NOT_ENOUGH_RUNS:
            return _shortfall(result)
    guard = _guard(case, _all(results))
    return f"the better arm must also be shown to fit no worse, and is not: {_say(guard)}" if guard else ""


def _shortfall(result: Result) -> str:
    claim, found = result.claim, result.contrast
    if found.n < FEWEST_SEEDS:
        return f"{found.n} shared seeds of at least {FEWEST_SEEDS}"
    if not found.finite:
        lost = sum(not math.isfinite(value) for value in found.differences)
        return f"{lost} of {found.n} seeds diverged or missed the target, which no mean can weigh"
    if found.sd == 0 and not claim.exact:
        return "the numbers do not vary over seeds: the scale is too coarse, or the seed changed nothing"
    wanted = seeds_needed(claim.margin, found.sd, ALPHA / result.family) if found.sd > 0 else None
    seeds = f"about {wanted} seeds" if wanted else "more than 10,000 seeds"
    return f"at this spread {seeds} would find {_margin(claim)} with power {POWER}"
