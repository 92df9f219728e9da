"""What pydantic finds wrong with a value, as a line for a person."""

from collections.abc import Mapping

from pydantic_core import ErrorDetails

from hfbsz.display import quoted
from hfbsz.errors import did_you_mean
from hfbsz.recipe.values import SET, known_fields

_LISTS = ("list_type", "tuple_type")
_MAPPINGS = ("dict_type", "model_type")
_BELOW = {  # what is typed in place of a value where a mapping is wanted
    "model.lora": "={}",
    "model.shape": ".model_type=llama",
    "data.skip": ".COLUMN=VALUE",
    "eval.sets": ".NAME=FILES",
}


def explain_misfit(detail: ErrorDetails, sources: Mapping[str, str]) -> str:
    """What a field does not take, what would be right, and where the value came from."""
    place = [str(part) for part in detail["loc"]]
    name = ".".join(place)
    known = known_fields(name)
    if detail["type"] == "extra_forbidden":
        return f"{name}: no such field{did_you_mean(name, known)}"
    while len(place) > 1 and name not in known and not SET.fullmatch(name):
        place.pop()
        name = ".".join(place)
    where = f" ({sources[name]})" if name in sources else ""
    message = detail["msg"].removeprefix("Value error, ")
    shown = repr(detail["input"])
    given = "" if shown in message or isinstance(detail["input"], dict) else f", not {quoted(detail['input'])}"
    if detail["type"] in _LISTS and isinstance(detail["input"], str):
        given += f": write {name}=[{detail['input'].strip('[](){}')}]"
    if detail["type"] in _MAPPINGS and name in _BELOW:
        message, given = "it is a mapping of fields", f"{given}: write {name}{_BELOW[name]}"
    return f"{name}: {message}{given}{where}".removeprefix(": ")
