"""From trials to findings: which common beliefs about batch sizes the runs support, contradict, or do not decide.

Every claim is tested by a two-sided paired t-test at α = 0.05 after Holm's correction over all claims of one call: the
family-wise error rate, the probability of one or more false `supported` or `contradicted`, is at most 0.05. Verdict
`not supported`: an equivalence test (two one-sided t-tests at 0.05 after Holm over all claims) shows that the effect is
within ± the smallest effect of interest. Otherwise, and always below 3 seeds per arm, the belief is `not decided`.

With five seeds, ten claims and a standard deviation of differences of 0.025 nats, an effect of 0.08 nats is detected
with power 0.8. Three seeds detect 0.1 nats with power 0.9 if there is one claim, and 0.08 nats among ten claims with
power 0.15. With three seeds the sign-flip p is never below 0.25, so a verdict then relies on normal differences
(`hfbsz.experiment.statistics.paired`). `hfbsz.experiment.statistics.simulation` measures these rates.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from hfbsz.experiment.statistics.beliefs import BELIEFS, Belief, Case, Claim, Kind, SmallestEffects
from hfbsz.experiment.statistics.paired import (
    ALPHA,
    MIN_SEEDS,
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
    """What the tests say of a belief."""

    SUPPORTED = "supported"
    CONTRADICTED = "contradicted"
    NOT_SUPPORTED = "not supported"  # equivalence: the effect is smaller than the smallest effect of interest
    NOT_DECIDED = "not decided"


@dataclass(frozen=True)
class Result:
    """A tested claim; p-values are adjusted by Holm over `family` claims."""

    claim: Claim
    contrast: Contrast
    p_holm: float  # null hypothesis: mean = threshold
    p_equivalence: float  # null hypothesis: mean outside ± the margin; NaN for a non-inferiority claim
    family: int

    @property
    def verdict(self) -> Verdict:
        """The verdict on this claim alone."""
        if self.p_equivalence < ALPHA:
            return Verdict.NOT_SUPPORTED
        if not self.p_holm < ALPHA:
            return Verdict.NOT_DECIDED
        return Verdict.SUPPORTED if self.contrast.mean > self.contrast.threshold else Verdict.CONTRADICTED


@dataclass(frozen=True)
class Finding:
    """The verdict on a belief: what was measured, what is needed to decide it (if not decided), and all tests."""

    name: str
    statement: str
    source: str
    verdict: Verdict
    measured: str = ""  # empty: arms are missing
    needs: str = ""
    results: tuple[Result, ...] = ()

    @property
    def sentence(self) -> str:
        """The verdict, the measurements and what is needed, as text."""
        parts = [f"{self.verdict.capitalize()}: {self.statement}"]
        if self.measured:
            parts.append(f"Measured: {self.measured}")
        if self.needs:
            parts.append(f"To decide it: {self.needs}")
        return ". ".join(parts) + "."


def findings(trials: Iterable[Trial], smallest: SmallestEffects | None = None) -> list[Finding]:
    """One finding per belief. `smallest`: the smallest effects of interest, by default 0.02 nats/target and 5 %.

    Raises ValueError if the trials have different settings, or if a trial is given twice.
    """
    runs = by_arm(trials)
    cases = {name: belief.cases(runs, smallest or SmallestEffects()) for name, belief in BELIEFS.items()}
    claims = [claim for belief_cases in cases.values() for case in belief_cases for claim in case.claims]
    results = iter(evaluate_claims(claims))
    return [
        _finding(name, BELIEFS[name], [(case, tuple(next(results) for _ in case.claims)) for case in belief_cases])
        for name, belief_cases in cases.items()
    ]


def evaluate_claims(claims: Sequence[Claim]) -> list[Result]:
    """Test claims as one family. Claims with fewer than three seeds are not tested and do not count in the family."""
    contrasts, equivalences = [], []
    for claim in claims:
        superiority = claim.kind is Kind.SUPERIORITY
        contrasts.append(contrast(claim.values, 0.0 if superiority else -claim.margin, claim.exact))
        enough = superiority and len(claim.values) >= MIN_SEEDS
        equivalences.append(equivalence(claim.values, claim.margin, claim.exact) if enough else NAN)
    p_values = [test.p if test.n >= MIN_SEEDS else NAN for test in contrasts]
    family = sum(map(math.isfinite, p_values))
    return [Result(*row, family) for row in zip(claims, contrasts, holm(p_values), holm(equivalences), strict=True)]


def _finding(name: str, belief: Belief, cases: Sequence[tuple[Case, tuple[Result, ...]]]) -> Finding:
    verdicts = [_judge(case, results) for case, results in cases]
    verdict = _any(verdicts)
    if not cases:
        return Finding(name, belief.statement, belief.source, verdict, needs=belief.needs)
    case, results = cases[verdicts.index(verdict)]
    measured = "; ".join(map(_describe, results))
    needs = _obstacle(case, results) if verdict is Verdict.NOT_DECIDED else ""
    everything = tuple(result for _, case_results in cases for result in case_results)
    return Finding(name, belief.statement, belief.source, verdict, measured, needs, everything)


def _judge(case: Case, results: Sequence[Result]) -> Verdict:
    """The verdict on a case. Its guard is tested separately at α, since it can only withdraw a verdict."""
    verdict = _all(results)
    guard = _guard(case, verdict)
    return verdict if guard is None or guard.verdict is Verdict.SUPPORTED else Verdict.NOT_DECIDED


def _guard(case: Case, verdict: Verdict) -> Result | None:
    guards = {Verdict.SUPPORTED: case.supports_guard, Verdict.CONTRADICTED: case.contradicts_guard}
    guard = guards.get(verdict)
    return evaluate_claims([guard])[0] if guard else None


def _all(results: Sequence[Result]) -> Verdict:
    """All claims of a case must hold (intersection-union, Berger 1982)."""
    verdicts = {result.verdict for result in results}
    order = (Verdict.CONTRADICTED, Verdict.NOT_SUPPORTED, Verdict.NOT_DECIDED, Verdict.SUPPORTED)
    return next(verdict for verdict in order if verdict in verdicts)


def _any(verdicts: Sequence[Verdict]) -> Verdict:
    """One supported case supports a belief; it is contradicted or not supported only if no case is open."""
    if Verdict.SUPPORTED in verdicts:
        return Verdict.SUPPORTED
    if not verdicts or Verdict.NOT_DECIDED in verdicts:
        return Verdict.NOT_DECIDED
    return Verdict.CONTRADICTED if set(verdicts) == {Verdict.CONTRADICTED} else Verdict.NOT_SUPPORTED


def _describe(result: Result) -> str:
    """What was measured for a claim: mean, 95 % confidence interval, seeds, and p-values."""
    claim, test = result.claim, result.contrast
    if math.isnan(test.mean):
        return claim.words
    text = f"{claim.words}, mean {claim.show(test.mean)} {claim.unit}"
    if math.isnan(test.sd):
        return f"{text} (1 seed)"
    if test.sd == 0:
        return f"{text} (the same for all {test.n} seeds)"
    text += f" (95 % CI {claim.show(test.low)} to {claim.show(test.high)}, {test.n} seeds"
    if not math.isnan(result.p_holm):
        tests = f"{result.family} test{'s' * (result.family > 1)}"
        text += f", paired t-test p = {result.p_holm:.2g} after Holm over {tests}"
    if not math.isnan(test.sign_flip_p):
        text += f", exact sign-flip p = {test.sign_flip_p:.2g}"
    if claim.kind is Kind.NON_INFERIORITY:
        text += f", both tested against a margin of {claim.show(-claim.margin)}"
    elif result.p_equivalence < ALPHA:
        text += f", equivalent to 0 within ±{_margin(claim)} at {100 * ALPHA:.0f} %"
    return text + ")"


def _margin(claim: Claim) -> str:
    return f"{claim.show(claim.margin).lstrip('+')} {claim.unit}"


def _obstacle(case: Case, results: Sequence[Result]) -> str:
    """What a case that is not decided lacks."""
    for result in results:
        if result.verdict is Verdict.NOT_DECIDED:
            return _shortfall(result)
    guard = _guard(case, _all(results))
    return f"the better arm must be shown to fit no worse, which these runs do not: {_describe(guard)}" if guard else ""


def _shortfall(result: Result) -> str:
    claim, test = result.claim, result.contrast
    if test.n < MIN_SEEDS:
        return f"at least {MIN_SEEDS} shared seeds; there are {test.n}"
    if not test.finite:
        lost = sum(not math.isfinite(value) for value in test.differences)
        return f"finite values for all seeds; {lost} of {test.n} seeds diverged or missed the target"
    if test.sd == 0 and not claim.exact:
        return "differences that vary over seeds; these do not: the scale is too coarse, or the seed has no effect"
    needed = seeds_needed(claim.margin, test.sd, ALPHA / result.family) if test.sd > 0 else None
    seeds = f"about {needed} seeds" if needed else "more than 10,000 seeds"
    return f"{seeds}, which detect {_margin(claim)} with power {POWER} at this standard deviation"
