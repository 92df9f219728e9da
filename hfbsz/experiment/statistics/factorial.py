"""Main effects and interaction of a 2 × 2 design: two batches × two variants."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from hfbsz.experiment.statistics.paired import MIN_SEEDS, NAN, Contrast, contrast, holm
from hfbsz.experiment.statistics.trials import MEASURES, Arm, Trial, by_arm, per_seed


@dataclass(frozen=True)
class Effect:
    """A contrast of the four arms, paired by seed; `p_holm`: p of the t-test, adjusted over the three effects."""

    words: str
    contrast: Contrast
    p_holm: float  # NaN below 3 seeds


def effects(trials: Iterable[Trial], measure: str = "final_loss") -> list[Effect]:
    """The main effects of batch and variant, and their interaction; empty if the arms are not two batches × two
    variants. Raises ValueError as `by_arm` does."""
    runs = by_arm(trials)
    grid = _grid(list(runs))
    if grid is None:
        return []
    (a, b), (c, d) = grid  # rows: variants; columns: batches
    weighted = (
        (f"batch {b.batch} − {a.batch} sequences, mean over both variants", (-0.5, 0.5, -0.5, 0.5)),
        (f"{c.variant} − {a.variant}, mean over both batches", (-0.5, -0.5, 0.5, 0.5)),
        ("interaction: variant effect at the larger batch − at the smaller batch", (1.0, -1.0, -1.0, 1.0)),
    )
    untested = []
    for words, weights in weighted:
        _, values = per_seed(runs, (a, b, c, d), measure, lambda *losses, w=weights: _weighted_sum(w, losses))
        untested.append(Effect(words, contrast(values, exact=MEASURES[measure].exact), NAN))
    adjusted = holm([effect.contrast.p if effect.contrast.n >= MIN_SEEDS else NAN for effect in untested])
    return [replace(effect, p_holm=p) for effect, p in zip(untested, adjusted, strict=True)]


def _weighted_sum(weights: Sequence[float], values: Sequence[float]) -> float:
    return sum(weight * value for weight, value in zip(weights, values, strict=True))


def _grid(arms: Sequence[Arm]) -> tuple[tuple[Arm, Arm], tuple[Arm, Arm]] | None:
    """Four arms as rows of one variant each, batches ascending; None if they do not form a 2 × 2 grid."""
    variants = list(dict.fromkeys(arm.variant for arm in arms))
    rows = [sorted((arm for arm in arms if arm.variant == variant), key=lambda arm: arm.batch) for variant in variants]
    batches = {tuple(arm.batch for arm in row) for row in rows}
    if len(arms) != 4 or len(variants) != 2 or len(batches) != 1 or len(set(*batches)) != 2:
        return None
    return (rows[0][0], rows[0][1]), (rows[1][0], rows[1][1])
