"""What the optimizer's numbers become at this run's batch: reference, rule, rate, betas, ε; first guesses."""

import math
from dataclasses import dataclass, field

from hfbsz.errors import UserError
from hfbsz.plan.laws import law_of
from hfbsz.plan.plan import Facts
from hfbsz.plan.scaling import OPTIMIZERS, POWER_EXPONENT, RULES, RateRule, beta2_half_life, sde
from hfbsz.recipe.amounts import Amount, short
from hfbsz.recipe.fields import Recipe
from hfbsz.recipe.law_name import Named


@dataclass
class Ledger:
    """What a plan is worked out from, and what came up on the way. The one thing here that changes."""

    recipe: Recipe
    facts: Facts
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    guesses: list[str] = field(default_factory=list)

    @property
    def tokens_per_row(self) -> float:
        return self.facts.tokens_per_row or float(self.recipe.data.sequence_length)

    def refuse_if_any(self) -> None:
        """Raise UserError with every error so far."""
        if self.errors:
            raise UserError(dict.fromkeys(self.errors))

    def amount(self, name: str, amount: Amount | None, total: float | None) -> float | None:
        """An amount in sequences; what it lacks becomes an error of the field `name`."""
        if amount is None:
            return None
        try:
            return amount.sequences(total=total, rows=self.facts.rows, tokens_per_row=self.tokens_per_row)
        except (LookupError, ValueError) as problem:
            epochs = ", which is not known before the data is prepared: give train_rows=N"
            known = epochs if amount.unit == "epochs" else ""
            self.errors.append(f"{name}: {problem.args[0]}{known}")
            return None

    def batch(self, name: str, amount: Amount) -> float | None:
        """A batch that is only compared with, in sequences, not always whole ones."""
        if amount.unit not in ("sequences", "tokens") or amount.value <= 0:
            self.errors.append(f"{name}: '{amount}' is no batch: write sequences or tokens, such as 1024tok")
            return None
        return amount.sequences(tokens_per_row=self.tokens_per_row)


def guessed_batch(ledger: Ledger, named: Named) -> int:
    """`batch.size=law:…` in sequences: the power of two nearest to what the law gives, in ratio."""
    tokens = _law_batch(ledger, "batch.size", named)
    sequences = 2 ** max(0, round(math.log2(tokens / ledger.tokens_per_row)))
    ledger.guesses.append(
        f"batch.size={named}: {law_of(named).batch_formula} = {short(tokens)} tokens, as a power of two "
        f"{sequences:,} sequences   {law_of(named).source}"
    )
    return sequences


def reference(ledger: Ledger, start: int) -> float:
    """The reference batch in sequences, where optim was tuned: named, or brought by the rate's law, or the first."""
    named, rate = ledger.recipe.scaling.reference, ledger.recipe.optim.lr
    if isinstance(rate, Named):
        tokens = _law_batch(ledger, "optim.lr", rate)
        if named is not None:
            ledger.errors.append(
                f"scaling.reference: optim.lr={rate} brings its own reference, {short(tokens)} tokens: leave it out"
            )
        return tokens / ledger.tokens_per_row
    if named is None:
        return float(start)
    return ledger.batch("scaling.reference", named) or float(start)


def peak_rate(ledger: Ledger) -> float:
    """The peak learning rate at the reference."""
    optim = ledger.recipe.optim
    if not isinstance(optim.lr, Named):
        return optim.lr
    law = law_of(optim.lr)
    if law.rate is None:
        ledger.errors.append(
            f"optim.lr: {optim.lr} gives no rate (its runs used µP): take law:step_law or law:deepseek"
        )
        return 1.0
    if optim.name != "adamw":
        ledger.errors.append(f"optim.lr: {optim.lr} was fitted with AdamW, not {optim.name}: write a number")
    size, tokens = _law_size(ledger, "optim.lr", optim.lr, True), _run_tokens(ledger, "optim.lr", optim.lr)
    rate = law.rate(size, tokens)
    ledger.guesses.append(f"optim.lr={optim.lr}: {law.rate_formula} = {rate:.3g} at its own batch   {law.source}")
    return rate


def _law_batch(ledger: Ledger, name: str, named: Named) -> float:
    """The batch of a law, in tokens; says where the run lies outside the law's fit."""
    law = law_of(named)
    tokens, size = _run_tokens(ledger, name, named), _law_size(ledger, name, named, law.batch_needs_size)
    for outside in law.outside(ledger.facts.parameters, tokens):
        warning = f"{named} is outside its fit ({outside}): a first guess, tune from there"
        if warning not in ledger.warnings:
            ledger.warnings.append(warning)
    return law.batch(size, tokens)


def _run_tokens(ledger: Ledger, name: str, named: Named) -> float:
    """D, the tokens of the run."""
    duration = ledger.recipe.duration
    if duration.unit in ("steps", "%"):
        ledger.errors.append(f"{name}: {named} follows from the tokens of the run: write duration in tokens, not steps")
    else:
        sequences = ledger.amount("duration", duration, None)
        if sequences:
            return sequences * ledger.tokens_per_row
    ledger.refuse_if_any()
    raise UserError(f"duration: '{duration}' is less than one token")


def _law_size(ledger: Ledger, name: str, named: Named, needed: bool) -> float:
    """N, the weights outside the embeddings; 1 where the law does not ask for it."""
    if ledger.facts.parameters is not None:
        return float(ledger.facts.parameters)
    if needed:
        ledger.errors.append(f"{name}: {named} needs the size of the model: give parameters=N (outside the embeddings)")
        ledger.refuse_if_any()
    return 1.0


def rate_rule(ledger: Ledger, reference: float) -> RateRule:
    """How the rate follows κ: the recipe's rule, else the optimizer's own, with its numbers."""
    wanted, optimizer = ledger.recipe.scaling, ledger.recipe.optim.name
    name = wanted.rule or OPTIMIZERS[optimizer].rule
    if wanted.exponent is not None and name not in ("power", "noise"):
        ledger.errors.append(f"scaling.exponent: the rule {name} has none: leave it out, or take power or noise")
    if name == "sde" and optimizer != "adamw":
        ledger.errors.append(
            f"scaling.rule: sde is derived for Adam, not {optimizer}: take {OPTIMIZERS[optimizer].rule}"
        )
    if name == "sde" and wanted.beta2 != "keep":
        ledger.errors.append(f"scaling.beta2: the rule sde sets the betas itself: leave out beta2={wanted.beta2}")
    exponent = wanted.exponent or (POWER_EXPONENT if name == "power" else 1.0 if optimizer == "sgd" else 0.5)
    return RateRule(name, exponent, _noise(ledger, name, reference))


def _noise(ledger: Ledger, rule: str, reference: float) -> float:
    """The noise scale ÷ the reference batch; 1 where the rule does not ask for it."""
    amount = ledger.recipe.scaling.noise_scale
    if RULES[rule].needs_noise and amount is None:
        ledger.errors.append(
            f"scaling.noise_scale: the rule {rule} needs the gradient noise scale, such as scaling.noise_scale=120seq"
        )
    if amount is None:
        return 1.0
    if not RULES[rule].needs_noise:
        ledger.errors.append(
            f"scaling.noise_scale: the rule {rule} does not use it: leave it out, or take noise or surge"
        )
    return (ledger.batch("scaling.noise_scale", amount) or reference) / reference


def betas_and_eps(ledger: Ledger, rule: RateRule, mean_ratio: float) -> tuple[tuple[float, float], float]:
    """Set once, from the mean κ of the run: torch's bias correction 1−β^step is wrong across a change of β."""
    optim, wanted = ledger.recipe.optim, ledger.recipe.scaling
    (beta1, beta2), eps = optim.betas, optim.eps
    if not OPTIMIZERS[optim.name].has_betas:
        if wanted.beta2 != "keep":
            ledger.errors.append(f"scaling.beta2: {optim.name} has no β2: leave out beta2={wanted.beta2}")
        return (beta1, beta2), eps
    if rule.name == "sde":
        try:
            (beta1, beta2), eps = sde(optim.betas, eps, mean_ratio)
        except ValueError as problem:
            ledger.errors.append(
                f"scaling.rule: sde does not reach this batch, {problem}: take sqrt, or a smaller batch"
            )
    elif wanted.beta2 == "half_life":
        beta2, clamped = beta2_half_life(beta2, mean_ratio, beta1)
        if clamped:
            ledger.warnings.append(f"β2 would fall below {beta2:.4g} at this batch and is held there")
    if beta1**2 >= beta2:
        ledger.errors.append(
            f"optim.betas: β1² = {beta1**2:.4g} is not below β2 = {beta2:.4g}, as Adam's convergence needs: "
            f"take β1 below {math.sqrt(beta2):.3f}"
        )
    return (beta1, beta2), eps
