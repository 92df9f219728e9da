"""The names of scaling laws, which a recipe may write where a number would stand; plan/laws.py has the laws."""

from dataclasses import dataclass

NAMES = ("step_law", "deepseek", "power_lines")


@dataclass(frozen=True)
class Named:
    """`law:NAME` where a recipe could have a number."""

    name: str

    @classmethod
    def parse(cls, text: object) -> object:
        """A Named from `law:NAME`; anything else is given back as it is. An unknown name raises ValueError."""
        if not (isinstance(text, str) and text.startswith("law:")):
            return text
        name = text.removeprefix("law:")
        if name not in NAMES:
            raise ValueError(f"{text!r} is no law; there are {', '.join(f'law:{known}' for known in NAMES)}")
        return cls(name)

    def __str__(self) -> str:
        return f"law:{self.name}"
