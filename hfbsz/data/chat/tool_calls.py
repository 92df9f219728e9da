"""Parsing of tools and tool calls into the form that chat templates expect."""

import ast
import json
from collections.abc import Mapping
from typing import Any

from hfbsz.data.sources.texts import is_missing


def parse_tools(value: Any) -> list[dict[str, Any]] | None:
    """The tools of a conversation, from a list, one tool or JSON text of either; each as `{"type": "function",
    "function": {"name": …}}`. None for null and empty values. Raises ValueError for other forms."""
    parsed = parse_text(value, "a list of tools") if isinstance(value, str) else _without_nulls(value)
    if is_missing(parsed) or parsed in ([], {}):
        return None
    tools = [parse_text(tool, "a tool") if isinstance(tool, str) else tool for tool in as_list(parsed)]
    return [_tool(tool) for tool in tools]


def _tool(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"a tool must be a function with a name, this is a {type(value).__name__}")
    tool = replace_surrogates(dict(value))
    function = tool.get("function", tool)
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ValueError(
            f"a tool must be a function with a name, this has only {', '.join(map(str, tool)) or 'no keys'}"
        )
    return tool if "function" in tool else {"type": "function", "function": tool}


def parse_calls(value: Any) -> list[dict[str, Any]]:
    """The tool calls of a message, from a list, one call or JSON text of either; arguments become mappings. Raises
    ValueError for other forms."""
    if isinstance(value, str) and value.strip():
        parsed = parse_text(value, "a list of tool calls")
    else:
        parsed = _without_nulls(value)
    if is_missing(parsed) or parsed in ("", [], {}):
        return []
    calls = [parse_text(call, "a tool call") if isinstance(call, str) else call for call in as_list(_rows(parsed))]
    return [_call(call) for call in calls if not is_missing(call)]


def calls_in_text(text: str) -> list[dict[str, Any]] | None:
    """The tool calls in a text that is JSON of one call or a list of calls; None if it is anything else."""
    try:
        calls = as_list(json.loads(text))
    except (ValueError, RecursionError):
        return None
    named = [call for call in calls if isinstance(call, Mapping) and ("name" in call or "function" in call)]
    return [_call(call) for call in calls] if calls and len(named) == len(calls) else None


def _rows(calls: Any) -> Any:
    """Calls in columns (a mapping of lists) as a list of calls; any other value unchanged."""
    if not isinstance(calls, Mapping):
        return calls
    function = calls.get("function")
    if isinstance(function, Mapping) and isinstance(function.get("name"), list | tuple):
        calls = {**calls, "function": rows_from_columns(function, "tool calls")}
    if any(isinstance(calls.get(key), list | tuple) for key in ("name", "function")):
        return rows_from_columns(calls, "tool calls")
    return calls


def _call(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"a tool call must be a mapping with a name, this is a {type(value).__name__}")
    call = {key: entry for key, entry in value.items() if entry is not None}
    function = call.get("function", call)
    if isinstance(function, str):  # {"function": name, "arguments": …}
        function = {**call, "name": function}
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str) or not name:
        raise ValueError(f"a tool call names no function, it has only {', '.join(map(str, call)) or 'no keys'}")
    value = next((function[key] for key in ("arguments", "parameters") if function.get(key) is not None), {})
    ids = {key: call[key] for key in ("id", "index") if key in call}
    parsed = {**ids, "type": "function", "function": {"name": name, "arguments": _arguments(name, value)}}
    return replace_surrogates(parsed)


def _arguments(name: str, value: Any) -> Mapping[str, Any]:
    """Arguments as a mapping: templates render them as JSON, so JSON text would be quoted and escaped twice."""
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else {}
        except (ValueError, RecursionError):
            raise ValueError(f"the call of {name!r} has arguments that are not JSON: {value[:40]!r}") from None
    if not isinstance(value, Mapping):
        raise ValueError(f"the call of {name!r} has arguments that are a {type(value).__name__}, not a mapping")
    return value


def _without_nulls(value: Any) -> Any:
    """The value without null entries of its mappings: in Arrow and Parquet, every mapping of a column has the keys of
    all of them. Nulls in JSON text are kept."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(entry) for key, entry in value.items() if entry is not None}
    if isinstance(value, list | tuple):
        return [_without_nulls(entry) for entry in value]
    return value


def rows_from_columns(columns: Mapping[str, Any], what: str) -> list[dict[str, Any]]:
    """A list of mappings from a mapping of lists, in which `datasets` stores it. `what` names them in errors.

    Raises ValueError if the lists differ in length."""
    lists = {key: entry for key, entry in columns.items() if isinstance(entry, list | tuple)}
    if len({len(entry) for entry in lists.values()}) > 1:
        sizes = ", ".join(f"{len(entry)} of {key}" for key, entry in lists.items())
        raise ValueError(f"{what} in columns must have lists of the same length, these have {sizes}")
    return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]


def as_list(value: Any) -> list[Any]:
    """A list or tuple as a list; any other value as a list of one."""
    return list(value) if isinstance(value, list | tuple) else [value]


def parse_text(text: str, what: str) -> Any:
    """The value of JSON text, or of a Python literal's, which pandas writes into CSV files; None for empty text. `what`
    names the value in errors. Raises ValueError for other text."""
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
        raise ValueError(f"{what} as text must be JSON, this is {text[:40]!r}") from None


def replace_surrogates(value: Any) -> Any:
    """A nested value with unpaired surrogates, which tokenizers do not accept, replaced by `?` in all strings."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "replace").decode()
    if isinstance(value, Mapping):
        return {replace_surrogates(key): replace_surrogates(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [replace_surrogates(entry) for entry in value]
    return value
