"""The results of a comparison as JSON, for scripts: docs/compare.schema.json is made from these classes.

A number is null if it is unknown or not finite. Fields may be added to a version of the schema; a field that is removed
or changes its meaning makes a new one.
"""

import json
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA: Final = 1
MARK = '{\n "kind": "hfbsz comparison",'  # how the text begins
_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_LOSS = "validation loss of the saved model, nats/target"
State = Literal["waiting", "running", "finished", "preempted", "failed", "diverged"]
Number = float | None
Count = int | None


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, ser_json_inf_nan="null")


class RunResult(_Part):
    """A run of an arm."""

    seed: int
    folder: str
    state: State
    why: str | None = Field(description="why it failed or diverged")
    done: float = Field(description="share of its training budget, 0 to 1")
    loss: Number = Field(description=f"{_LOSS}; null until the run has ended, and if it diverged")
    steps: Count = Field(description="optimizer steps so far")
    tokens: Count = Field(description="input tokens so far, without padding")
    seconds: Number = Field(description="training time so far, s, without evaluations")


class TriedResult(_Part):
    """A value of the tuned field that was tried on the first seed."""

    value: float
    chosen: bool
    loss: Number = Field(description=_LOSS)
    state: State | None
    folder: str | None


class ScoreResult(_Part):
    """A measure of a task of lm-evaluation-harness, of the saved models of an arm."""

    task: str
    measure: str = Field(description="as the task names it: acc, exact_match, …")
    mean: Number = Field(description="over the seeds")
    sd: Number = Field(description="standard deviation over the seeds, n − 1 in the denominator")
    seeds: int
    examples: Count = Field(description="that were scored; null if the seeds differ")


class ArmResults(_Part):
    """The runs that differ in the seed alone. Means and standard deviations are over the seeds that ended, null if one
    diverged."""

    words: str = Field(description="what was varied, as requested; names the arm in this file")
    name: str = Field(description="a short name, as on the page")
    baseline: bool = Field(description="whether the tests compare the other arms with this one")
    batch: Count = Field(description="largest global batch, sequences; null until a run has a plan")
    first_batch: Count = Field(description="first global batch, sequences")
    learning_rate: Number = Field(description="peak learning rate, at the largest batch")
    rule: str | None = Field(description="how the rate scales with the batch")
    tuned: bool = Field(description="whether the rate is the best of several, not at the end of their range")
    seeds: int = Field(description="runs that finished or diverged")
    failed: int
    diverged: int
    loss: Number = Field(description=f"mean of: {_LOSS}")
    loss_sd: Number = Field(description="standard deviation of loss, n − 1 in the denominator")
    bits_per_byte: Number = Field(description="mean")
    steps: Count = Field(description="optimizer steps")
    seconds: Number = Field(description="mean training time, s")
    scores: list[ScoreResult]
    runs: list[RunResult]
    tried: list[TriedResult]


class TestResult(_Part):
    """A paired test of one number per seed."""

    __test__ = False  # for pytest

    measure: str
    unit: str = Field(description="of difference, low and high")
    difference: Number = Field(description="mean over the shared seeds")
    low: Number = Field(description="lower end of the 95 % confidence interval, not adjusted")
    high: Number = Field(description="upper end")
    seeds: int = Field(description="shared seeds")
    effect: Number = Field(description="mean ÷ standard deviation of the differences, with Hedges' correction")
    p: Number = Field(description="of the paired t-test after Holm's correction; null if not tested")
    sign_flip_p: Number = Field(description="of the exact sign-flip test, not adjusted")
    verdict: Literal["significantly higher", "significantly lower", "not significant", "not tested"]
    why: str | None = Field(description="why it was not tested")


class PairResult(TestResult):
    """An arm compared with the baseline: left − right, by their `words`."""

    left: str
    right: str


class EffectResult(TestResult):
    """A main effect or the interaction of a 2 × 2 design."""

    words: str


class ClaimResult(_Part):
    """A test of a belief: one number per seed, positive if the belief is right, rounded as on the page."""

    words: str
    unit: str
    mean: Number
    low: Number = Field(description="lower end of the 95 % confidence interval")
    high: Number = Field(description="upper end")
    seeds: int
    p: Number = Field(
        description="of the paired t-test after Holm's correction over `tests` claims; null if not tested"
    )
    p_equivalence: Number = Field(description="of the test that the effect is below the smallest effect of interest")
    sign_flip_p: Number
    tests: int
    verdict: Literal["supported", "contradicted", "not supported", "not decided"]


class BeliefResult(_Part):
    """What the runs say about a common belief."""

    name: str
    statement: str
    source: str
    verdict: Literal["supported", "contradicted", "not supported", "not decided"]
    measured: str = Field(description="the evidence in words; empty if arms are missing")
    needs: str = Field(description="what would decide it; empty if it is decided")
    claims: list[ClaimResult]


class ComparisonResults(_Part):
    """The results of `hfbsz compare`: results.json beside its page, out=FILE.json and format=json."""

    kind: Literal["hfbsz comparison"] = "hfbsz comparison"
    version: Literal[1] = Field(SCHEMA, alias="schema", description="version of this schema")
    name: str
    command: str = Field(description="starts and resumes the comparison")
    task: str
    finished: bool = Field(description="no run is left to do; some may have failed")
    planned: int = Field(description="runs, including those of tuning and pretraining")
    ended: int = Field(description="runs that finished, failed or diverged")
    tuned: str | None = Field(description="the field that was tuned")
    target_loss: Number = Field(description="loss to which steps are counted, nats/target")
    best: str | None = Field(description="words of the arm with the lowest mean loss; null if arms cannot be ranked")
    conclusions: list[str] = Field(description="as on the page")
    arms: list[ArmResults]
    pairs: list[PairResult]
    effects: list[EffectResult]
    beliefs: list[BeliefResult]
    notes: list[str]
    page: str = Field(description="path of the HTML page")
    picture: str | None = Field(description="path of the figure of picture=FILE, once it is drawn")

    def text(self) -> str:
        """The results as JSON."""
        return self.model_dump_json(by_alias=True, indent=1) + "\n"


def schema_text() -> str:
    """The JSON schema of the results."""
    schema = ComparisonResults.model_json_schema(by_alias=True, mode="serialization")
    return json.dumps({"$schema": _DIALECT, **_without_titles(schema)}, indent=1, ensure_ascii=False) + "\n"


def _without_titles(node: Any) -> Any:
    """A schema without the titles that pydantic makes from names."""
    if isinstance(node, list):
        return [_without_titles(value) for value in node]
    if not isinstance(node, dict):
        return node
    return {
        key: _without_titles(value) for key, value in node.items() if not (key == "title" and value.__class__ is str)
    }
