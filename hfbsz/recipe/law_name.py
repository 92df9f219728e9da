"""Names of scaling laws, which a recipe may use instead of a number; plan/laws.py implements the laws."""

from dataclasses import dataclass

NAMES = ("step_law", "deepseek", "power_lines")


@dataclass(frozen=True)
class LawName:
    """A scaling law by name: `law:NAME` in a recipe, instead of a number."""

    name: str

    @classmethod
    def parse(cls, text: object) -> object:
        """Parse `law:NAME`; returns anything else unchanged. Raises ValueError for an unknown name."""
        if not (isinstance(text, str) and text.startswith("law:")):
            return text
        name = text.removeprefix("law:")
        if name not in NAMES:
            raise ValueError(f"{text!r} is not a scaling law; there are {', '.join(f'law:{known}' for known in NAMES)}")
        return cls(name)

    def __str__(self) -> str:
        return f"law:{self.name}"
