"""The hyperparameters of the optimizer at the batch of a run: reference batch, scaling rule, rate, betas and ε."""

import math
from collections.abc import Iterator

from hfbsz.plan import laws
from hfbsz.plan.given import Given, batch_unit_problems
from hfbsz.plan.scaling import OPTIMIZERS, POWER_EXPONENT, RULES, RateRule, beta2_half_life, sde
from hfbsz.recipe.amounts import Amount, short
from hfbsz.recipe.law_name import LawName

_FAR_BELOW = 1 / 16  # κ from which the exponent matters by more than a factor of two in the rate


def reference(given: Given, first: int) -> float:
    """The batch at which the values of `optim` apply, in sequences: that of the law in `optim.lr`, else
    `scaling.reference`, else `first`, the first batch of the run."""
    named, rate = given.recipe.scaling.reference, given.recipe.optim.lr
    if isinstance(rate, LawName):
        return laws.batch_tokens(given, rate) / given.tokens_per_row
    return float(first) if named is None else given.sequences(named)


def reference_problems(given: Given) -> Iterator[str]:
    """The problems with the reference batch of a recipe, one line each."""
    named, rate = given.recipe.scaling.reference, given.recipe.optim.lr
    if isinstance(rate, LawName):
        unknown = list(laws.problems(given, "optim.lr", rate, laws.law_of(rate).batch_needs_size))
        yield from unknown
        if named is not None and not unknown:
            tokens = short(laws.batch_tokens(given, rate))
            yield f"scaling.reference: optim.lr={rate} has its own reference batch, {tokens} tokens: leave it out"
    elif named is not None:
        yield from _batch_problems("scaling.reference", named)


def _batch_problems(field: str, amount: Amount) -> Iterator[str]:
    """The problems with a batch that need not be a whole number of sequences."""
    yield from batch_unit_problems(field, amount, "1024tok")
    if amount.value <= 0:
        yield f"{field}: '{amount}' is not above 0: write a number of sequences or tokens, such as 1024tok"


def peak_rate(given: Given) -> float:
    """The peak learning rate at the reference batch."""
    rate = given.recipe.optim.lr
    return laws.rate_of(given, rate) if isinstance(rate, LawName) else rate


def rate_problems(given: Given) -> Iterator[str]:
    """The problems with a law as the learning rate of this optimizer."""
    rate, name = given.recipe.optim.lr, given.recipe.optim.name
    if not isinstance(rate, LawName):
        return
    if laws.law_of(rate).rate is None:
        yield f"optim.lr: {rate} gives no learning rate (its runs used µP): use law:step_law or law:deepseek"
        return
    if name != "adamw":
        yield f"optim.lr: {rate} was fitted with AdamW, not {name}: set a number"
    yield from laws.problems(given, "optim.lr", rate, True)


def rate_rule(given: Given, reference: float) -> RateRule:
    """The rule by which the learning rate follows κ = batch ÷ reference: the recipe's, else the optimizer's default."""
    scaling, optimizer, name = given.recipe.scaling, given.recipe.optim.name, _rule_name(given)
    exponent = scaling.exponent or (POWER_EXPONENT if name == "power" else 1.0 if optimizer == "sgd" else 0.5)
    noise = given.sequences(scaling.noise_scale) / reference if scaling.noise_scale is not None else 1.0
    return RateRule(name, exponent, noise)


def _rule_name(given: Given) -> str:
    return given.recipe.scaling.rule or OPTIMIZERS[given.recipe.optim.name].rule


def rule_problems(given: Given) -> Iterator[str]:
    """The fields that the scaling rule of a recipe needs but that are not set, or that it does not use."""
    scaling, optimizer, name = given.recipe.scaling, given.recipe.optim.name, _rule_name(given)
    if scaling.exponent is not None and name not in ("power", "noise"):
        yield f"scaling.exponent: the rule {name} has no exponent: leave it out, or use the rule power or noise"
    if name == "sde" and optimizer != "adamw":
        yield f"scaling.rule: sde is derived for Adam, not {optimizer}: use {OPTIMIZERS[optimizer].rule}"
    if name == "sde" and scaling.beta2 != "keep":
        yield f"scaling.beta2: the rule sde sets the betas itself: leave out beta2={scaling.beta2}"
    noise = scaling.noise_scale
    if RULES[name].needs_noise and noise is None:
        yield f"scaling.noise_scale: the rule {name} needs the gradient noise scale, such as scaling.noise_scale=120seq"
    if noise is not None and not RULES[name].needs_noise:
        yield f"scaling.noise_scale: the rule {name} does not use it: leave it out, or use the rule noise or surge"
    if noise is not None:
        yield from _batch_problems("scaling.noise_scale", noise)


def betas_and_eps(given: Given, rule: RateRule, mean_ratio: float) -> tuple[tuple[float, float], float]:
    """β1, β2 and ε from the mean κ of a run. They stay constant during it, because torch's bias correction 1−β^step is
    wrong if β changes. Raises ValueError if the rule sde does not apply at this batch."""
    optim, scaling = given.recipe.optim, given.recipe.scaling
    (beta1, beta2), eps = optim.betas, optim.eps
    if not OPTIMIZERS[optim.name].has_betas:
        return (beta1, beta2), eps
    if rule.name == "sde":
        return sde(optim.betas, eps, mean_ratio)
    if scaling.beta2 == "half_life":
        beta2, _ = beta2_half_life(beta2, mean_ratio, beta1)
    return (beta1, beta2), eps


def betas_problems(given: Given, rule: RateRule, mean_ratio: float) -> Iterator[str]:
    """The problems with betas that follow the batch, or that violate β1² < β2, which Adam needs to converge (Reddi et
    al. 2018, arXiv 1904.09237)."""
    optim, scaling = given.recipe.optim, given.recipe.scaling
    if not OPTIMIZERS[optim.name].has_betas:
        if scaling.beta2 != "keep":
            yield f"scaling.beta2: {optim.name} has no β2: leave out beta2={scaling.beta2}"
        return
    try:
        (beta1, beta2), _ = betas_and_eps(given, rule, mean_ratio)
    except ValueError as problem:
        yield f"scaling.rule: sde does not apply at this batch, {problem}: use sqrt, or a smaller batch"
        beta1, beta2 = optim.betas
    if beta1**2 >= beta2:
        yield (
            f"optim.betas: β1² = {beta1**2:.4g} is not below β2 = {beta2:.4g}, which Adam needs to converge: "
            f"set β1 below {math.sqrt(beta2):.3f}"
        )


def small_batch_warnings(given: Given, mean_ratio: float) -> Iterator[str]:
    """A warning for Adam far below the reference batch, where the best rate depends on what β2 does."""
    optim, scaling = given.recipe.optim, given.recipe.scaling
    sqrt = scaling.rule == "sqrt" or (scaling.rule is None and OPTIMIZERS[optim.name].rule == "sqrt")
    if optim.name == "adamw" and sqrt and mean_ratio <= _FAR_BELOW:
        yield (
            f"κ = {mean_ratio:.3g}: so far below the reference the best rate is uncertain: Marek et al. (2025) found "
            "exponents of 0.56 with β2 kept and of 0.11 with scaling.beta2=half_life; the rule has 0.5: tune optim.lr"
        )


def betas_warnings(given: Given, mean_ratio: float) -> Iterator[str]:
    """A warning if β2 is clamped."""
    optim = given.recipe.optim
    if OPTIMIZERS[optim.name].has_betas and given.recipe.scaling.beta2 == "half_life":
        beta2, clamped = beta2_half_life(optim.betas[1], mean_ratio, optim.betas[0])
        if clamped:
            yield f"β2 would be below {beta2:.4g} at this batch and is clamped to it"
