"""Turn pydantic's validation errors into lines for users."""

from collections.abc import Mapping

from pydantic_core import ErrorDetails

from hfbsz.display import quoted
from hfbsz.errors import did_you_mean
from hfbsz.recipe.values import SET, known_fields, reason_for_set

_LISTS = ("list_type", "tuple_type")
_MAPPINGS = ("dict_type", "model_type")
_MAPPING_SYNTAX = {  # what to append to the name of a field that takes a mapping, instead of =VALUE
    "model.lora": "={}",
    "model.shape": ".model_type=llama",
    "data.skip": ".COLUMN=VALUE",
    "eval.sets": ".NAME=FILES",
}


def error_line(detail: ErrorDetails, sources: Mapping[str, str]) -> str:
    """A line that says what is wrong with a field, what would be right, and where the value came from."""
    path = [str(part) for part in detail["loc"]]
    name = ".".join(path)
    known = known_fields(name)
    if detail["type"] == "extra_forbidden":
        return f"{name}: no such field{reason_for_set(name) or did_you_mean(name, known)}"
    while len(path) > 1 and name not in known and not SET.fullmatch(name):
        path.pop()
        name = ".".join(path)
    source = f" ({sources[name]})" if name in sources else ""
    message = detail["msg"].removeprefix("Value error, ")
    repeats_input = repr(detail["input"]) in message or isinstance(detail["input"], dict)
    advice = "" if repeats_input else f", not {quoted(detail['input'])}"
    if detail["type"] in _LISTS and isinstance(detail["input"], str):
        advice += f": write {name}=[{detail['input'].strip('[](){}')}]"
    if detail["type"] in _MAPPINGS and name in _MAPPING_SYNTAX:
        message, advice = "it takes a mapping of fields", f"{advice}: write {name}{_MAPPING_SYNTAX[name]}"
    return f"{name}: {message}{advice}{source}".removeprefix(": ")
