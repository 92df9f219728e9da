"""The planned arms of a comparison, including arms for which a field is tuned."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hfbsz.errors import UserError
from hfbsz.experiment import search
from hfbsz.experiment.jobs import Job, by_arm
from hfbsz.experiment.request import Tune


@dataclass
class PlannedArm:
    """One arm. `base`: its runs, one per seed; a tuned arm runs them with the selected value."""

    words: str
    base: list[Job]
    tuned: bool = False
    tried: dict[float, Job] = field(default_factory=dict)
    chosen: float | None = None

    def jobs(self, key: str) -> list[Job]:
        """The runs of the arm; empty for a tuned arm until its search has ended. `key`: the tuned field."""
        if not self.tuned:
            return self.base
        return [] if self.chosen is None else [job.with_words(f"{key}={self.chosen:g}") for job in self.base]

    def start_search(self, tune: Tune) -> None:
        """Plan the first values of a search, centered on the recipe's value. Raises UserError if that is not a positive
        number."""
        self.tried = {}
        for value in search.first_values(_recipe_value(self.base[0], tune.field), tune.count):
            self.add_value(tune.field, value)

    def add_value(self, key: str, value: float) -> None:
        """Plan a run with `key=value` on the first seed."""
        self.tried[value] = self.base[0].with_words(f"{key}={value:g}")


def plan_arms(
    jobs: Sequence[Job], tune: Tune | None, display: Callable[[Sequence[str]], Sequence[str]]
) -> list[PlannedArm]:
    """The arms of jobs. `display` maps choices to what the reader sees.

    With `tune`, one tuned arm is added for each set of choices other than the scaling rule; it uses the last rule that
    scales with the batch. If the rule is not varied, tuned arms replace the others. Raises UserError if the tuned field
    is not a positive number.
    """
    arms = [PlannedArm(" ".join(display(arm)) or "(one recipe)", arm_jobs) for arm, arm_jobs in by_arm(jobs).items()]
    if tune is None:
        return arms
    tuned: dict[tuple[str, ...], PlannedArm] = {}
    for arm in arms:
        choices = tuple(choice for choice in arm.base[0].arm if not choice.startswith("scaling.rule="))
        if choices not in tuned or arm.base[0].loaded.recipe.scaling.rule != "none":
            tuned[choices] = PlannedArm(f"{arm.words} {tune.field} tuned", arm.base, tuned=True)
    for arm in tuned.values():
        arm.start_search(tune)
    return list(tuned.values()) if len(tuned) == len(arms) else [*arms, *tuned.values()]


def _recipe_value(job: Job, key: str) -> float:
    value: Any = job.loaded.recipe
    for name in key.split("."):
        value = getattr(value, name, None)
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise UserError(f"tune={key}: the recipe's value must be a number above 0, not {value}")
    return float(value)
