"""Tools, and the calls of them in conversations, in the one form that chat templates expect."""

import ast
import json
from collections.abc import Mapping
from typing import Any

from hfbsz.data.sources.texts import is_missing


def tools_of(value: Any) -> list[dict[str, Any]] | None:
    """The tools of a conversation, from a list, one tool or JSON text of either: `{"type": "function", "function":
    {"name": …}}` each; None for null and nothing. Raises ValueError for others."""
    found = parsed(value, "a list of tools") if isinstance(value, str) else _without_nulls(value)
    if is_missing(found) or found in ([], {}):
        return None
    tools = [parsed(tool, "a tool") if isinstance(tool, str) else tool for tool in listed(found)]
    return [_tool(tool) for tool in tools]


def _tool(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"a tool is a function with a name, this is a {type(value).__name__}")
    tool = intact(dict(value))
    function = tool.get("function", tool)
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ValueError(f"a tool is a function with a name, this has only {', '.join(map(str, tool)) or 'no keys'}")
    return tool if "function" in tool else {"type": "function", "function": tool}


def calls_of(value: Any) -> list[dict[str, Any]]:
    """The calls of a message, from a list, one call or JSON text of either, their arguments as mappings."""
    found = parsed(value, "a list of tool calls") if isinstance(value, str) and value.strip() else _without_nulls(value)
    if is_missing(found) or found in ("", [], {}):
        return []
    calls = [parsed(call, "a tool call") if isinstance(call, str) else call for call in listed(_from_columns(found))]
    return [_call(call) for call in calls if not is_missing(call)]


def calls_in(text: str) -> list[dict[str, Any]] | None:
    """The calls that a text holds as JSON, one with a name or a list of such; None where it holds none."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    calls = listed(found)
    named = [call for call in calls if isinstance(call, Mapping) and ("name" in call or "function" in call)]
    return [_call(call) for call in calls] if calls and len(named) == len(calls) else None


def _from_columns(found: Any) -> Any:
    """The calls of a mapping of lists; anything else as it is."""
    if not isinstance(found, Mapping):
        return found
    function = found.get("function")
    if isinstance(function, Mapping) and isinstance(function.get("name"), list | tuple):
        found = {**found, "function": rows_of(function, "tool calls")}
    if any(isinstance(found.get(key), list | tuple) for key in ("name", "function")):
        return rows_of(found, "tool calls")
    return found


def _call(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"a tool call is a mapping with a name, this is a {type(value).__name__}")
    call = {key: entry for key, entry in value.items() if entry is not None}
    function = call.get("function", call)
    if isinstance(function, str):  # {"function": name, "arguments": …}
        function = {**call, "name": function}
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str) or not name:
        raise ValueError(f"a tool call names no function, it has only {', '.join(map(str, call)) or 'no keys'}")
    given: Any = next((function[key] for key in ("arguments", "parameters") if function.get(key) is not None), {})
    kept = {key: call[key] for key in ("id", "index") if key in call}
    return intact({**kept, "type": "function", "function": {"name": name, "arguments": _arguments(name, given)}})


def _arguments(name: str, given: Any) -> Mapping[str, Any]:
    """Templates write arguments as JSON: a text of JSON would stand in quotes there, escaped once more."""
    if isinstance(given, str):
        try:
            given = json.loads(given) if given.strip() else {}
        except (ValueError, RecursionError):
            raise ValueError(f"the call of {name!r} has arguments that are no JSON: {given[:40]!r}") from None
    if not isinstance(given, Mapping):
        raise ValueError(f"the call of {name!r} has arguments that are a {type(given).__name__}, not a mapping")
    return given


def _without_nulls(value: Any) -> Any:
    """The value without what is null in its mappings: Arrow, and so Parquet, gives the mappings of a column the keys of
    all of them. JSON text keeps its nulls."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(entry) for key, entry in value.items() if entry is not None}
    if isinstance(value, list | tuple):
        return [_without_nulls(entry) for entry in value]
    return value


def rows_of(columns: Mapping[str, Any], what: str) -> list[dict[str, Any]]:
    """Mappings from a mapping of lists, the form that `datasets` gives to a list of mappings; `what` one of them is.

    Raises ValueError where lists are of several lengths."""
    lists = {key: entry for key, entry in columns.items() if isinstance(entry, list | tuple)}
    if len({len(entry) for entry in lists.values()}) > 1:
        sizes = ", ".join(f"{len(entry)} of {key}" for key, entry in lists.items())
        raise ValueError(f"{what} in columns have one entry of each for every one, these have {sizes}")
    return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]


def listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def parsed(text: str, what: str) -> Any:
    """The value of JSON text, or of a Python list's, which pandas writes into CSV files; None for empty text. Raises
    ValueError for other text."""
    text = text.strip()
    if not text:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text if text[0] in "[{" else "")
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise ValueError(f"{what} as text is JSON, this is {text[:40]!r}") from None


def intact(value: Any) -> Any:
    """The value with halves of surrogate pairs, which no tokenizer takes, replaced in all of its texts."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "replace").decode()
    if isinstance(value, Mapping):
        return {intact(key): intact(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [intact(entry) for entry in value]
    return value
