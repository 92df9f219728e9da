"""What strangers' files may look like: right ones with a few places changed."""

import json
from collections.abc import Callable
from copy import deepcopy

from hypothesis import strategies as st

ODD_TEXTS = [
    "", " ", "null", "~", "true", "no", "0", "-1", "1e999", "nan", "inf", "0x10", "1_000", "٣",
    "${oc.env:HOME}", "${batch.size}",
    "law:step_law", "law:none", "linear", "0 sequences", "-5%", "101%", "1e30 tokens", "9" * 400,
    "a" * 5000, "[", "{", "[[[[",
    "{a: 1}", "[1, 2]", "[1, [2, {b: 3}]]", "&a [*a]", "!!python/object:os.system x", "'", '"',
    ":", "#", "- x", "\t", "\x00",
    "\x1b[31m", "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"), "‮", "é", "🙂", "../x",
    "/dev/null", "~", "~nobody/x",
    "0:8 50%:16", "doubling:75%", "linear:8,64,50%", "seesaw:2", "0:8 0:8", "64", "64 sequences",
    "3 epochs", "7 steps",
]  # fmt: skip

ODD_VALUES = [
    None, True, False, 0, -1, 1e308, float("nan"), float("inf"), 2**63, 10**40, "", " ", "text",
    "\x00", "\ud800", "\u2028", [], {},
    [[]], [None], {"a": None}, [{"role": "user"}], {"role": 3, "content": "x"}, [1, "a", None], "a" * 3000,
    b"\xff".decode("latin-1"),
    [{"role": "assistant", "content": "yes"}], [{"role": "user", "content": "q"},
    {"role": "assistant", "content": None}],
    {"from": "human", "value": "q"}, "{\"a\": 1}", "[[", "<|endoftext|>", "-1", "1.0", "NaN",
]  # fmt: skip


@st.composite
def edited(draw: Callable, text: str, inserts: list[str] = ODD_TEXTS) -> str:
    """A text with up to four edits: of characters, of lines, of the values behind a colon."""
    for _ in range(draw(st.integers(1, 4))):
        lines = text.split("\n")
        place = draw(st.integers(0, max(0, len(lines) - 1)))
        kind = draw(st.sampled_from(["drop", "double", "swap", "value", "insert", "cut", "character"]))
        if kind == "drop":
            del lines[place]
        elif kind == "double":
            lines.insert(place, lines[place])
        elif kind == "swap":
            other = draw(st.integers(0, max(0, len(lines) - 1)))
            lines[place], lines[other] = lines[other], lines[place]
        elif kind == "value" and ":" in lines[place]:
            lines[place] = lines[place].partition(":")[0] + ": " + draw(st.sampled_from(inserts))
        elif kind == "insert":
            at = draw(st.integers(0, len(lines[place])))
            lines[place] = lines[place][:at] + draw(st.sampled_from(inserts)) + lines[place][at:]
        elif kind == "cut":
            lines = lines[: place + 1]
        else:
            at = draw(st.integers(0, len(lines[place])))
            lines[place] = lines[place][:at] + draw(st.characters(codec="utf-8")) + lines[place][at + 1 :]
        text = "\n".join(lines)
    return text


@st.composite
def damaged(draw: Callable, raw: bytes) -> bytes:
    """Bytes with up to four changes: bits, cuts, blocks of zeros, parts doubled."""
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(raw) - 1)))
        kind = draw(st.sampled_from(["bit", "cut", "zeros", "double", "random", "drop"]))
        size = draw(st.integers(1, 64))
        if kind == "bit" and raw:
            raw = raw[:place] + bytes([raw[place] ^ (1 << draw(st.integers(0, 7)))]) + raw[place + 1 :]
        elif kind == "cut":
            raw = raw[:place]
        elif kind == "zeros":
            raw = raw[:place] + bytes(size) + raw[place + size :]
        elif kind == "double":
            raw = raw[:place] + raw[place : place + size] + raw[place:]
        elif kind == "random":
            raw = raw[:place] + draw(st.binary(min_size=1, max_size=16)) + raw[place:]
        else:
            raw = raw[:place] + raw[place + size :]
    return raw


@st.composite
def mutated(draw: Callable, value: object, odd: list = ODD_VALUES) -> object:
    """JSON data with up to three values replaced, removed, renamed or moved a level down."""
    value = json.loads(json.dumps(value))
    for _ in range(draw(st.integers(1, 3))):
        places = list(walk(value))
        if not places:
            return deepcopy(draw(st.sampled_from(odd)))
        holder, key = draw(st.sampled_from(places))
        kind = draw(st.sampled_from(["replace", "remove", "rename", "wrap", "double"]))
        if kind == "replace":
            holder[key] = deepcopy(draw(st.sampled_from(odd)))
        elif kind == "remove":
            del holder[key]
        elif kind == "rename" and isinstance(holder, dict):
            holder[draw(st.sampled_from(["text", "label", "content", "role", "value", "", "x", "Text "]))] = holder.pop(
                key
            )
        elif kind == "wrap":
            holder[key] = [holder[key]]
        elif kind == "double" and isinstance(holder, list):
            holder.insert(key, deepcopy(holder[key]))
    return value


def walk(value: object):
    """(holder, key) of everything inside."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield value, key
        yield from walk(inner)
