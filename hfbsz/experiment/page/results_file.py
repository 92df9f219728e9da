"""The results of a comparison as plain data (`results.json`), from the objects that its page shows."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

from hfbsz.experiment.page.verdict import arm_names, conclusions, lowest, significance
from hfbsz.experiment.results import ArmResult, Experiment, Outcome, rows
from hfbsz.experiment.statistics.evidence import Finding, Result
from hfbsz.experiment.statistics.factorial import Effect
from hfbsz.experiment.statistics.trials import MEASURES, Comparison
from hfbsz.records.comparison_results import (
    ArmResults,
    BeliefResult,
    ClaimResult,
    ComparisonResults,
    EffectResult,
    PairResult,
    RunResult,
    ScoreResult,
    TriedResult,
)
from hfbsz.records.harness import Score
from hfbsz.records.run_data import SECONDS, STEPS, TOKENS

MEASURE = "final_loss"  # the measure of the paired tests
_FROM_ROW = (
    "learning_rate", "tuned", "failed", "diverged", "loss", "loss_sd", "bits_per_byte", "seconds",
)  # fmt: skip


def results_of(experiment: Experiment) -> ComparisonResults:
    """The current results of a comparison."""
    named = arm_names(experiment.arms)
    words = {result.arm: result.words for result in experiment.arms if result.arm is not None}
    best = lowest(experiment)
    return ComparisonResults(
        name=experiment.name,
        command=experiment.command,
        task=experiment.task,
        finished=experiment.finished,
        planned=max(experiment.planned, len(experiment.outcomes)),
        ended=sum(outcome.ended for outcome in experiment.outcomes),
        tuned=experiment.tuned,
        target_loss=experiment.target,
        best=None if best is None else words[best],
        conclusions=[_plain(sentence) for sentence in conclusions(experiment, named)],
        arms=[
            _arm(experiment, result, row, _plain(named[result.words]))
            for result, row in zip(experiment.arms, rows(experiment), strict=True)
        ],
        pairs=[
            PairResult(left=words[pair.left], right=words[pair.right], **_test(pair, pair.measure))
            for pair in experiment.comparisons
        ],
        effects=[EffectResult(words=effect.words, **_test(effect, MEASURE)) for effect in experiment.effects],
        beliefs=[_belief(finding) for finding in experiment.findings],
        notes=list(experiment.notes),
        page=str(experiment.page),
        picture=None if experiment.picture is None else str(experiment.picture),
    )


def _plain(text: str) -> str:
    return text.replace("\u00a0", " ")


def _arm(experiment: Experiment, result: ArmResult, row: dict[str, Any], name: str) -> ArmResults:
    arm = result.arm
    return ArmResults(
        words=result.words,
        name=name,
        baseline=arm is not None and arm == experiment.baseline,
        batch=_whole(arm.batch) if arm else None,
        first_batch=_whole(arm.start or arm.batch) if arm else None,
        rule=arm.rule if arm else None,
        steps=_whole(row["steps"]),
        seeds=row["runs"],
        scores=[_score(scores) for scores in result.scores.values()],
        runs=[_run(outcome) for outcome in result.outcomes],
        tried=[
            TriedResult(
                value=tried.value,
                chosen=tried.chosen,
                loss=tried.loss,
                state=tried.outcome.state if tried.outcome else None,
                folder=str(tried.outcome.folder) if tried.outcome else None,
            )
            for tried in result.tried
        ],
        **{name: row[name] for name in _FROM_ROW},
    )


def _score(scores: Sequence[Score]) -> ScoreResult:
    measured, examples = [score.value for score in scores], {score.examples for score in scores}
    return ScoreResult(
        task=scores[0].task,
        measure=scores[0].measure,
        mean=statistics.fmean(measured),
        sd=statistics.stdev(measured) if len(measured) > 1 else None,
        seeds=len(measured),
        examples=examples.pop() if len(examples) == 1 else None,
    )


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)


def _run(outcome: Outcome) -> RunResult:
    run = outcome.run
    steps, tokens, seconds = (None if run is None else run.largest(axis) for axis in (STEPS, TOKENS, SECONDS))
    return RunResult(
        seed=outcome.seed,
        folder=str(outcome.folder),
        state=outcome.state,
        why=outcome.why,
        done=outcome.share,
        loss=outcome.loss if outcome.trial is None else outcome.trial.final_loss,
        steps=_whole(steps),
        tokens=_whole(tokens),
        seconds=seconds,
    )


def _test(tested: Comparison | Effect, name: str) -> dict[str, Any]:
    contrast, measure, (verdict, why) = tested.contrast, MEASURES[name], significance(tested)
    return {
        "measure": measure.words,
        "unit": measure.unit_of_difference,
        "difference": measure.in_unit(contrast.mean),
        "low": measure.in_unit(contrast.low),
        "high": measure.in_unit(contrast.high),
        "seeds": contrast.n,
        "effect": contrast.effect,
        "p": tested.p_holm,
        "sign_flip_p": contrast.sign_flip_p,
        "verdict": verdict.value,
        "why": why,
    }


def _belief(finding: Finding) -> BeliefResult:
    return BeliefResult(
        name=finding.name,
        statement=finding.statement,
        source=finding.source,
        verdict=finding.verdict.value,
        measured=finding.measured,
        needs=finding.needs,
        claims=[_claim(result) for result in finding.results],
    )


def _claim(result: Result) -> ClaimResult:
    claim, contrast = result.claim, result.contrast
    mean, low, high = (
        float(claim.show(value).replace("−", "-")) if math.isfinite(value) else None
        for value in (contrast.mean, contrast.low, contrast.high)
    )
    return ClaimResult(
        words=claim.words,
        unit=claim.unit,
        mean=mean,
        low=low,
        high=high,
        seeds=contrast.n,
        p=result.p_holm,
        p_equivalence=result.p_equivalence,
        sign_flip_p=contrast.sign_flip_p,
        tests=result.family,
        verdict=result.verdict.value,
    )
