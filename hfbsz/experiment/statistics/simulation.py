"""Power and error rates measured on simulated runs: `python -m hfbsz.experiment.statistics.simulation`."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hfbsz.experiment.statistics.beliefs import BELIEFS, SmallestEffects
from hfbsz.experiment.statistics.evidence import findings
from hfbsz.experiment.statistics.paired import ALPHA, MIN_SEEDS, NAN, Array, contrast, holm, power
from hfbsz.experiment.statistics.trials import Arm, Trial

Pair = tuple[Array, Array]  # losses of two arms, by seed
Decide = Callable[[Sequence[Pair]], Sequence[bool]]  # for each pair of a family, whether it is called different


@dataclass(frozen=True)
class Design:
    """A simulated comparison. Standard deviations as measured for AdamW and a million parameters (LOG.md)."""

    seeds: int = 5
    effect: float = 0.08  # true difference, nats/target
    sd_differences: float = 0.025  # of paired differences, nats/target
    sd_seeds: float = 0.1  # of the part that a seed has in common over arms, nats/target
    comparisons: int = 10  # size of the family

    @property
    def stated_power(self) -> float:
        """The power to detect the effect in one comparison, at Holm's first and strictest step."""
        return power(self.effect, self.sd_differences, self.seeds, ALPHA / self.comparisons)


@dataclass(frozen=True)
class Rates:
    """Detection rates over simulated families of comparisons."""

    power: float  # share of families in which the one true effect was detected
    false_positives: float  # family-wise error rate: share of families without effects in which any was detected


def paired_and_corrected(pairs: Sequence[Pair]) -> list[bool]:
    """The decision rule of this package: paired t-tests, Holm over the family, at least three seeds."""
    p_values = [contrast(left - right).p if len(left) >= MIN_SEEDS else NAN for left, right in pairs]
    return [p < ALPHA for p in holm(p_values)]


def rates(design: Design, decide: Decide = paired_and_corrected, experiments: int = 100, seed: int = 0) -> Rates:
    """Power and family-wise error rate of `decide`, from families with one true effect and families without any."""
    generator = np.random.default_rng(seed)
    planted = [decide(_family(design, design.effect, generator))[0] for _ in range(experiments)]
    null = [any(decide(_family(design, 0.0, generator))) for _ in range(experiments)]
    return Rates(sum(planted) / experiments, sum(null) / experiments)


def _family(design: Design, effect: float, generator: np.random.Generator) -> list[Pair]:
    """Losses of the pairs of arms; only the first pair has the effect."""
    sizes = [effect] + [0.0] * (design.comparisons - 1)
    pairs = []
    for size in sizes:
        shared = generator.normal(4.4, design.sd_seeds, design.seeds)
        left, right = generator.normal(0, design.sd_differences / np.sqrt(2), (2, design.seeds))
        pairs.append((shared + size + left, shared + right))
    return pairs


def world(design: Design, holds: bool, generator: np.random.Generator) -> list[Trial]:
    """Simulated trials of all arms that the beliefs need, where every belief holds by `design.effect` or none does.

    If none holds, arms do not differ, except that small micro-batches use less memory and that growing batches take
    fewer steps, at a loss worse by exactly the margin. Tokens/s, steps to the target and sharpness have 1 % noise and,
    if beliefs hold, differ by much more.
    """
    batches, effect = (8, 16, 32, 64), design.effect if holds else 0.0
    losses = {Arm(batch, 2e-3, batch, rule="sqrt", tuned=True): effect * (batch == 64) for batch in batches}
    losses |= {
        Arm(64, 2e-3, 64): 2 * effect,
        Arm(64, 5.6e-3, 64, rule="sqrt"): effect,
        Arm(64, 2e-3, 8, accumulation=8, rule="sqrt", tuned=True): effect,
        Arm(64, 5.6e-3, 8, 8, "sqrt", True, start=8, ramp="doubling:75%"): 0.0,
        Arm(64, 2e-3, 8, 8, "none", True, start=8, ramp="doubling:75%", decays=False): (
            -effect if holds else SmallestEffects().loss
        ),
    }
    trials = []
    for seed in range(design.seeds):
        shared = generator.normal(4.4, design.sd_seeds)
        for arm, loss in losses.items():
            trials.append(_trial(design, arm, seed, shared + loss, holds, generator))
    return trials


def _trial(design: Design, arm: Arm, seed: int, loss: float, holds: bool, generator: np.random.Generator) -> Trial:
    def noise() -> float:
        return float(generator.normal(0, design.sd_differences / np.sqrt(2)))

    def scaled(value: float) -> float:
        return float(value * np.exp(generator.normal(0, 0.01)))

    large = design.effect * (arm.batch == 64 and holds)
    final, octaves = loss + noise(), float(np.log2(arm.batch / 8))
    sharpness = 1.5 if large else 1.0
    saved = 1.0 * min(octaves, 2.0) if holds else octaves  # halvings of the steps
    speed = 2.0 ** min(octaves, 2.0) * (0.8 if arm.accumulation != 1 else 1) if holds else 1.0
    return Trial(
        arm,
        seed,
        final_loss=final,
        gap=0.3 + large + noise(),
        shifted_loss=final + 0.5 + large + noise(),
        steps_to_target=scaled(1000 * 2**-saved),
        tokens_per_second=scaled(15_000 * speed),
        peak_memory_bytes=1e9 + 1e7 * (arm.micro_batch or 0),
        optimizer_steps=825 if arm.grows else 1172,
        eigenvalue=scaled(20 * sharpness),
        adaptive_sam=scaled(0.3 * sharpness),
    )


def verdicts(design: Design, holds: bool, experiments: int = 100, seed: int = 0) -> dict[str, Counter[str]]:
    """Number of experiments per belief and verdict; `any` counts those with a belief supported or contradicted."""
    generator = np.random.default_rng(seed)
    counts: dict[str, Counter[str]] = {name: Counter() for name in (*BELIEFS, "any")}
    for _ in range(experiments):
        by_belief = {finding.name: str(finding.verdict) for finding in findings(world(design, holds, generator))}
        for name, verdict in by_belief.items():
            counts[name][verdict] += 1
        counts["any"]["found"] += not {"supported", "contradicted"}.isdisjoint(by_belief.values())
    return counts


def main() -> None:
    """Print measured rates for several designs, and the verdicts where all beliefs hold and where none does."""
    for design in (Design(), Design(seeds=3, comparisons=1, effect=0.1), Design(seeds=3), Design(seeds=8, effect=0.05)):
        measured = rates(design, experiments=1000)
        power_text = f"power {design.stated_power:.2f} stated, {measured.power:.3f} measured"
        print(f"{design}: {power_text}, family-wise error rate {measured.false_positives:.3f}")
    for holds in (True, False):
        print(f"all beliefs {'hold' if holds else 'are false'}:")
        for name, count in verdicts(Design(), holds).items():
            print(f"  {name}: {dict(count)}")


if __name__ == "__main__":
    main()
