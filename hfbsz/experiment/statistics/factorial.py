"""Two by two: what each of two factors does over both levels of the other, and whether they depend on each other."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from hfbsz.experiment.statistics.paired import FEWEST_SEEDS, NAN, Contrast, contrast, holm
from hfbsz.experiment.statistics.trials import MEASURES, Arm, Trial, by_arm, per_seed


@dataclass(frozen=True)
class Effect:
    """A difference of means over a 2 × 2, paired by seed; `p_holm`: of the t-test, adjusted over all three effects."""

    words: str
    contrast: Contrast
    p_holm: float  # NaN below 3 seeds


def effects(trials: Iterable[Trial], measure: str = "final_loss") -> list[Effect]:
    """The main effects of batch and variant, and their interaction; empty where the arms are not two batches × two
    variants. Raises ValueError as `by_arm` does."""
    runs = by_arm(trials)
    grid = _grid(list(runs))
    if grid is None:
        return []
    (a, b), (c, d) = grid  # rows: variants; columns: batches
    seen = (
        (f"batch {b.batch} − {a.batch} sequences, mean over both variants", (-0.5, 0.5, -0.5, 0.5)),
        (f"{c.variant} − {a.variant}, mean over both batches", (-0.5, -0.5, 0.5, 0.5)),
        ("interaction: the second difference at the larger batch − at the smaller", (1.0, -1.0, -1.0, 1.0)),
    )
    found = []
    for words, weights in seen:
        _, values = per_seed(runs, (a, b, c, d), measure, lambda *losses, w=weights: _sum(w, losses))
        found.append(Effect(words, contrast(values, exact=MEASURES[measure].exact), NAN))
    adjusted = holm([one.contrast.p if one.contrast.n >= FEWEST_SEEDS else NAN for one in found])
    return [replace(one, p_holm=p) for one, p in zip(found, adjusted, strict=True)]


def _sum(weights: Sequence[float], values: Sequence[float]) -> float:
    return sum(weight * value for weight, value in zip(weights, values, strict=True))


def _grid(arms: Sequence[Arm]) -> tuple[tuple[Arm, Arm], tuple[Arm, Arm]] | None:
    """Four arms as rows of one variant each, batches ascending; None where they do not make a grid."""
    variants = list(dict.fromkeys(arm.variant for arm in arms))
    rows = [sorted((arm for arm in arms if arm.variant == variant), key=lambda arm: arm.batch) for variant in variants]
    batches = {tuple(arm.batch for arm in row) for row in rows}
    if len(arms) != 4 or len(variants) != 2 or len(batches) != 1 or len(set(*batches)) != 2:
        return None
    return (rows[0][0], rows[0][1]), (rows[1][0], rows[1][1])
