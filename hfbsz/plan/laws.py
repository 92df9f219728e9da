"""First guesses of batch and learning rate from scaling laws that others fitted: a start for tuning, not its result.

N is the number of weights outside the embeddings, D the tokens of the run, C = 6·N·D its FLOPs (attention's own left
out). Every law was fitted with AdamW on English or mixed web text, on the range that it names.
"""

from collections.abc import Callable
from dataclasses import dataclass

from hfbsz.recipe.law_name import Named

Range = tuple[float, float]
ANY: Range = (0.0, float("inf"))


@dataclass(frozen=True)
class Law:
    """A published law. `batch` gives tokens, `rate` the peak learning rate at that batch; each takes N and D.

    `*_needs_size`: whether N enters. The ranges are those of the fit.
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
        """What of a run lies outside the range of the fit, in words."""
        seen = [("tokens", tokens, self.tokens)]
        if parameters is not None:
            seen += [
                ("parameters outside the embeddings", parameters, self.parameters),
                ("FLOPs", flops(parameters, tokens), self.flops),
            ]
        return [
            f"{value:.3g} {name}, fitted on {low:.3g} to {high:.3g}" if high < ANY[1] else
            f"{value:.3g} {name}, fitted from {low:.3g}"
            for name, value, (low, high) in seen
            if not low <= value <= high
        ]  # fmt: skip


def flops(parameters: float, tokens: float) -> float:
    """C = 6·N·D (Kaplan et al. 2020)."""
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


def law_of(named: Named) -> Law:
    """The law that a recipe names."""
    return LAWS[named.name]
