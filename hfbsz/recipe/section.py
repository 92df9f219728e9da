"""The base class of all sections of a recipe, and the types of their fields."""

import os
from typing import Annotated

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    PlainSerializer,
    Tag,
    WithJsonSchema,
)

from hfbsz.recipe.amounts import PATTERN, Amount
from hfbsz.recipe.law_name import NAMES, LawName
from hfbsz.recipe.ramp import Ramp

AmountField = Annotated[
    Amount,
    BeforeValidator(Amount.parse),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string", "pattern": f"^{PATTERN}$", "description": "a number and a unit"}),
]
LawField = Annotated[
    LawName,
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"enum": [f"law:{name}" for name in NAMES]}),
    Tag("law"),
]
# selects one option of the union, so that an invalid number gives no second error about laws
NumberOrLaw = Discriminator(lambda value: "law" if isinstance(value, LawName) else "number")


def validate_ramp(text: object) -> object:
    """The text unchanged. Raises ValueError if it is not None and `Ramp.parse` cannot read it."""
    if text is not None:
        Ramp.parse(str(text))
    return text


def amount_or_law(text: object) -> object:
    """The law that a text names (`law:NAME`), else the amount that it gives. Raises ValueError if it is neither."""
    named = LawName.parse(text)
    return named if isinstance(named, LawName) else Amount.parse(text)


def off_from_false(value: object) -> object:
    """`off` for false: YAML reads an unquoted `off` as false."""
    return "off" if value is False else value


def none_from_off(value: object) -> object:
    """An empty list for `off`, which YAML reads as false."""
    return [] if value is False or value in ("off", ["off"]) else value


def validate_micro_max(value: object) -> object:
    """A micro-batch: a whole number from 1, or auto. Raises ValueError."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and value >= 1 and value == int(value)
    if value == "auto" or is_number or (isinstance(value, str) and value.isdecimal() and int(value) >= 1):
        return value
    raise ValueError("it is a whole number above 0, or auto")


def expand_home(text: object) -> object:
    """Expand `~` and `~name` at the start of a path, or of each path in a list, as a shell does."""
    if isinstance(text, list):
        return [expand_home(path) for path in text]
    return os.path.expanduser(text) if isinstance(text, str) and text.startswith("~") else text


PathField = Annotated[str, BeforeValidator(expand_home)]
PathsField = Annotated[str | list[str], BeforeValidator(expand_home)]


class Section(BaseModel):
    """A frozen section of a recipe, which accepts no unknown fields and no NaN or infinity."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", arbitrary_types_allowed=True, protected_namespaces=(), allow_inf_nan=False
    )


PINNED = r"^[A-Za-z0-9._-]+==[A-Za-z0-9.+!_-]+$"  # a package and its version
