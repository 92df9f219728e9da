"""First guesses of batch and learning rate from published scaling laws: a starting point for tuning, not its result.

N is the number of weights outside the embeddings, D the number of tokens of the run, and C = 6·N·D its FLOPs, without
those of attention scores. Every law was fitted with AdamW on English or mixed web text, over the ranges in `Law`.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from hfbsz.plan.given import Given
from hfbsz.recipe.amounts import short
from hfbsz.recipe.law_name import LawName

Range = tuple[float, float]
ANY: Range = (0.0, float("inf"))


@dataclass(frozen=True)
class Law:
    """A published scaling law.

    `batch` gives the batch in tokens and `rate` the peak learning rate at that batch, both from N and D.
    `batch_needs_size`: whether the batch depends on N. `parameters`, `tokens` and `flops` are the ranges of the fit.
    """

    source: str
    batch: Callable[[float, float], float]
    batch_formula: str
    batch_needs_size: bool
    rate: Callable[[float, float], float] | None = None
    rate_formula: str = ""
    parameters: Range = ANY
    tokens: Range = ANY
    flops: Range = ANY

    def outside(self, parameters: float | None, tokens: float) -> list[str]:
        """The sizes of a run that are outside the range of the fit, as text; unknown parameters are not checked."""
        sizes = [("tokens", tokens, self.tokens)]
        if parameters is not None:
            sizes += [
                ("parameters outside the embeddings", parameters, self.parameters),
                ("FLOPs", flops(parameters, tokens), self.flops),
            ]
        return [
            f"{value:.3g} {name}, fitted on {low:.3g} to {high:.3g}" if high < ANY[1] else
            f"{value:.3g} {name}, fitted from {low:.3g}"
            for name, value, (low, high) in sizes
            if not low <= value <= high
        ]  # fmt: skip


def flops(parameters: float, tokens: float) -> float:
    """The training FLOPs C = 6·N·D of N parameters and D tokens (Kaplan et al. 2020, arXiv 2001.08361, sec. 2.1)."""
    return 6 * parameters * tokens


LAWS: dict[str, Law] = {
    "step_law": Law(
        source="Li et al. 2025 (Step Law)",
        batch=lambda n, d: 0.581 * d**0.5709,
        batch_formula="0.581·D^0.5709 tokens",
        batch_needs_size=False,
        rate=lambda n, d: 1.797 * n**-0.7129 * d**0.3075,
        rate_formula="1.797·N^−0.7129·D^0.3075",
        parameters=(6e7, 1.1e9),
        tokens=(2e9, 1e11),
    ),
    "deepseek": Law(
        source="DeepSeek-AI 2024 (DeepSeek LLM)",
        batch=lambda n, d: 0.2920 * flops(n, d) ** 0.3271,
        batch_formula="0.2920·C^0.3271 tokens",
        batch_needs_size=True,
        rate=lambda n, d: 0.3118 * flops(n, d) ** -0.125,
        rate_formula="0.3118·C^−0.125",
        flops=(1e17, 2e19),
    ),
    "power_lines": Law(
        source="Bergsma et al. 2025 (Power Lines; models of 111 M to 3.3 B)",
        batch=lambda n, d: 0.0306 * d**0.383 * 2048,
        batch_formula="0.0306·D^0.383 sequences of 2,048 tokens",
        batch_needs_size=False,
        tokens=(2.2e9, ANY[1]),
    ),
}


# The critical batch b ÷ a of S(B) = a + b ÷ B. The numbers are recalled, not checked against the paper.
CRITICAL = Law(
    source="Bergsma et al. 2025 (Power Lines, recalled)",
    batch=lambda n, d: 0.0471 * d**0.462 * 2048,
    batch_formula="0.0471·D^0.462 sequences of 2,048 tokens",
    batch_needs_size=False,
    tokens=(2.2e9, ANY[1]),
)


def law_of(named: LawName) -> Law:
    """The law that a recipe names."""
    return LAWS[named.name]


def problems(given: Given, field: str, named: LawName, needs_size: bool) -> Iterator[str]:
    """The problems with a field whose value is a law: D is unknown, or N is unknown and needed."""
    duration = given.recipe.duration
    if duration.unit in ("steps", "%"):
        yield f"{field}: {named} depends on the tokens of the run: write duration in tokens, not in {duration.unit}"
    elif unknown := list(given.amount_problems("duration", duration)):
        yield from unknown
    elif not given.sequences(duration):
        yield f"duration: '{duration}' is less than one token"
    if needs_size and given.facts.parameters is None:
        yield f"{field}: {named} depends on the size of the model: set parameters=N (outside the embeddings)"


def batch_tokens(given: Given, named: LawName) -> float:
    """The batch of a law, in tokens. Valid only if `problems` yields nothing."""
    return law_of(named).batch(*_size_and_tokens(given))


def batch_of(given: Given, named: LawName) -> int:
    """`batch.size=law:…` in sequences: the batch of the law, rounded to a power of two on a logarithmic scale."""
    return int(2 ** max(0, round(math.log2(batch_tokens(given, named) / given.tokens_per_row))))


def rate_of(given: Given, named: LawName) -> float:
    """The peak learning rate of a law at the law's own batch. Valid only if `problems` yields nothing."""
    rate = law_of(named).rate
    assert rate is not None  # checked by optimizer.rate_problems
    return rate(*_size_and_tokens(given))


def _size_and_tokens(given: Given) -> tuple[float, float]:
    """N and D. If N is unknown it is 1: `problems` has refused the laws that depend on it."""
    return float(given.facts.parameters or 1), given.sequences(given.recipe.duration) * given.tokens_per_row


def guesses(given: Given) -> Iterator[str]:
    """The values that a recipe takes from laws, one line each with formula and source."""
    size, rate = given.recipe.batch.size, given.recipe.optim.lr
    if isinstance(size, LawName):
        law, tokens = law_of(size), batch_tokens(given, size)
        yield (
            f"batch.size={size}: {law.batch_formula} = {short(tokens)} tokens, rounded to "
            f"{batch_of(given, size):,} sequences, a power of two   {law.source}"
        )
    if isinstance(rate, LawName):
        law = law_of(rate)
        yield f"optim.lr={rate}: {law.rate_formula} = {rate_of(given, rate):.3g} at the law's own batch   {law.source}"


def warnings(given: Given) -> Iterator[str]:
    """A warning for each law whose fitted range does not include the run."""
    for named in dict.fromkeys((given.recipe.batch.size, given.recipe.optim.lr)):
        if isinstance(named, LawName):
            for outside in law_of(named).outside(given.facts.parameters, _size_and_tokens(given)[1]):
                yield f"{named} is outside its fitted range ({outside}): a first guess to tune from"
