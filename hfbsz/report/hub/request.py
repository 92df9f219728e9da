"""What the process that pushes a run is asked, and what it answers."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Request:
    """One push."""

    folder: Path  # of the run
    model: Path  # folder of the model and its card: that of the run once it has ended
    repository: str
    private: bool
    seconds: float  # time limit

    def text(self) -> str:
        """The request as JSON."""
        return json.dumps(asdict(self) | {"folder": str(self.folder), "model": str(self.model)})

    @classmethod
    def parse(cls, text: str) -> "Request":
        """The request in a text of `text()`."""
        values = json.loads(text)
        return cls(**values | {"folder": Path(values["folder"]), "model": Path(values["model"])})


@dataclass(frozen=True)
class Outcome:
    """What came of a push."""

    url: str | None = None  # of the repository
    is_new: bool = False  # whether it made a commit; False: nothing had changed
    notes: tuple[str, ...] = ()
    error: str | None = None  # why nothing was pushed, one line
