"""Worlds in which the truth is known, and how often it is found: `python -m hfbsz.experiment.statistics.simulation`."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hfbsz.experiment.statistics.beliefs import BELIEFS, Smallest
from hfbsz.experiment.statistics.evidence import findings
from hfbsz.experiment.statistics.paired import ALPHA, FEWEST_SEEDS, NAN, Array, contrast, holm, power
from hfbsz.experiment.statistics.trials import Arm, Trial

Pair = tuple[Array, Array]  # losses of two arms, by seed
Decide = Callable[[Sequence[Pair]], Sequence[bool]]  # which of a family's pairs differ


@dataclass(frozen=True)
class Design:
    """A comparison as it is run. The spreads are those that AdamW on a million parameters showed (LOG.md)."""

    seeds: int = 5
    effect: float = 0.08  # planted, nats/target
    sd_differences: float = 0.025  # of paired differences, nats/target
    sd_seeds: float = 0.1  # of what a seed does to all arms, nats/target
    comparisons: int = 10  # the family

    @property
    def stated_power(self) -> float:
        """The chance to find the effect in one of the comparisons, at Holm's first and hardest step."""
        return power(self.effect, self.sd_differences, self.seeds, ALPHA / self.comparisons)


@dataclass(frozen=True)
class Rates:
    found: float  # share of families in which the one planted effect was found
    false: float  # share of families without any effect in which one or more were found


def paired_and_corrected(pairs: Sequence[Pair]) -> list[bool]:
    """The way this package judges: paired t-tests, Holm over the family, three seeds or more."""
    p_values = [contrast(left - right).p if len(left) >= FEWEST_SEEDS else NAN for left, right in pairs]
    return [p < ALPHA for p in holm(p_values)]


def rates(design: Design, decide: Decide = paired_and_corrected, experiments: int = 100, seed: int = 0) -> Rates:
    """How often `decide` finds an effect planted in one comparison of a family, and one in a family without any."""
    generator = np.random.default_rng(seed)
    planted = [decide(_family(design, design.effect, generator))[0] for _ in range(experiments)]
    null = [any(decide(_family(design, 0.0, generator))) for _ in range(experiments)]
    return Rates(sum(planted) / experiments, sum(null) / experiments)


def _family(design: Design, effect: float, generator: np.random.Generator) -> list[Pair]:
    """The effect is the first comparison's."""
    sizes = [effect] + [0.0] * (design.comparisons - 1)
    pairs = []
    for size in sizes:
        shared = generator.normal(4.4, design.sd_seeds, design.seeds)
        left, right = generator.normal(0, design.sd_differences / np.sqrt(2), (2, design.seeds))
        pairs.append((shared + size + left, shared + right))
    return pairs


def world(design: Design, holds: bool, generator: np.random.Generator) -> list[Trial]:
    """Trials of all arms that the beliefs need, in a world where every belief holds by `design.effect`, or none does.

    Where none holds nothing differs, but that small micro-batches take less memory and growth fewer steps, at a loss
    worse by just its margin. Tokens/s and steps to the target, whose noise is 1 %, differ by much where they differ.
    """
    batches, effect = (8, 16, 32, 64), design.effect if holds else 0.0
    losses = {Arm(batch, 2e-3, batch, rule="sqrt", tuned=True): effect * (batch == 64) for batch in batches}
    losses |= {
        Arm(64, 2e-3, 64): 2 * effect,
        Arm(64, 5.6e-3, 64, rule="sqrt"): effect,
        Arm(64, 2e-3, 8, accumulation=8, rule="sqrt", tuned=True): effect,
        Arm(64, 5.6e-3, 8, 8, "sqrt", True, start=8, ramp="doubling:75%"): 0.0,
        Arm(64, 2e-3, 8, 8, "none", True, start=8, ramp="doubling:75%", decays=False): (
            -effect if holds else Smallest().loss
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
    )


def verdicts(design: Design, holds: bool, experiments: int = 100, seed: int = 0) -> dict[str, Counter[str]]:
    """How often each belief got each verdict; `any` counts the worlds with a belief supported or contradicted."""
    generator = np.random.default_rng(seed)
    counts: dict[str, Counter[str]] = {name: Counter() for name in (*BELIEFS, "any")}
    for _ in range(experiments):
        found = {finding.name: str(finding.verdict) for finding in findings(world(design, holds, generator))}
        for name, verdict in found.items():
            counts[name][verdict] += 1
        counts["any"]["found"] += not {"supported", "contradicted"}.isdisjoint(found.values())
    return counts


def main() -> None:
    for design in (Design(), Design(seeds=3, comparisons=1, effect=0.1), Design(seeds=3), Design(seeds=8, effect=0.05)):
        found = rates(design, experiments=1000)
        print(f"{design}: power {design.stated_power:.2f} stated, {found.found:.3f} found, {found.false:.3f} false")
    for holds in (True, False):
        print(f"all beliefs {'hold' if holds else 'fail'}:")
        for name, count in verdicts(Design(), holds).items():
            print(f"  {name}: {dict(count)}")


if __name__ == "__main__":
    main()
