"""The arms of a comparison as they are asked for, those whose number is searched among them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hfbsz.errors import UserError
from hfbsz.experiment import search
from hfbsz.experiment.jobs import Job, by_arm
from hfbsz.experiment.request import Tune


@dataclass
class Line:
    """One arm. `base`: its runs by seed; a tuned one's are the base's with the value found."""

    words: str
    base: list[Job]
    tuned: bool = False
    tried: dict[float, Job] = field(default_factory=dict)
    chosen: float | None = None

    def jobs(self, key: str) -> list[Job]:
        """What is known to be run; none of a tuned arm until its search has ended. `key`: the field that is tuned."""
        if not self.tuned:
            return self.base
        return [] if self.chosen is None else [job.but(f"{key}={self.chosen:g}") for job in self.base]

    def begin(self, tune: Tune) -> None:
        """Plan the first values of a search, around the recipe's own. Raises UserError where that is no number."""
        self.tried = {}
        for value in search.first_values(_own(self.base[0], tune.field), tune.count):
            self.add(tune.field, value)

    def add(self, key: str, value: float) -> None:
        """Plan a further value, on the first seed."""
        self.tried[value] = self.base[0].but(f"{key}={value:g}")


def lines_of(jobs: Sequence[Job], tune: Tune | None, shown: Callable[[Sequence[str]], Sequence[str]]) -> list[Line]:
    """A line for every arm. With `tune` there is one whose number is searched for each set of choices other than the
    rule, on top of the last rule that follows the batch: beside the others or, where the rule is not varied, in their
    place. `shown`: choices as a reader sees them."""
    lines = [Line(" ".join(shown(arm)) or "(one recipe)", of_arm) for arm, of_arm in by_arm(jobs).items()]
    if tune is None:
        return lines
    tuned: dict[tuple[str, ...], Line] = {}
    for line in lines:
        arm = tuple(choice for choice in line.base[0].arm if not choice.startswith("scaling.rule="))
        if arm not in tuned or line.base[0].loaded.recipe.scaling.rule != "none":
            tuned[arm] = Line(f"{line.words} {tune.field} tuned", line.base, tuned=True)
    for line in tuned.values():
        line.begin(tune)
    return list(tuned.values()) if len(tuned) == len(lines) else [*lines, *tuned.values()]


def _own(job: Job, key: str) -> float:
    """The recipe's own value of a field."""
    value: Any = job.loaded.recipe
    for name in key.split("."):
        value = getattr(value, name, None)
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise UserError(f"tune={key}: its value must be a number above 0, not {value}")
    return float(value)
