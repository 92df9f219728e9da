"""Fields of which a recipe takes one: a later one takes the place of an earlier one, with all that belongs to it."""

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

_PACKAGE = ("package", "file", "sha256")


class Group(NamedTuple):
    """One way to say a thing: the fields that name it, and those that belong to them."""

    heads: tuple[str, ...]
    members: tuple[str, ...] = ()


_MODEL = (Group(("path",)), Group(("package",), _PACKAGE), Group(("shape",)))
_SOURCE = (
    Group(("files",), ("exclude",)),
    Group(("package",), _PACKAGE),
    Group(("hub",), ("hub_config", "split", "revision", "stream", "validation_split")),
)
_TURNS = (Group(("messages",)), Group(("prompt", "response"), ("template", "system")))
_VALIDATION = (Group(("validation_files",)), Group(("validation_split",)))
_SET = re.compile(r"eval\.sets\.[^.]+")


def _choices(part: str) -> tuple[tuple[Group, ...], ...]:
    if part == "model":
        return (_MODEL,)
    if part == "data":
        return (_SOURCE, _TURNS, _VALIDATION)
    return (_SOURCE, _TURNS) if _SET.fullmatch(part) else ()


def displaced(key: str, source: str, sources: Mapping[str, str]) -> Iterator[tuple[str, bool]]:
    """The fields that `key`, given by `source`, takes the place of, and whether each names what is displaced.

    What the same source gave stays: two of a kind are then told as a contradiction.
    """
    part, _, name = key.rpartition(".")
    if key == "model.shape.model_type":
        part, name = "model", "shape"
    for groups in _choices(part):
        if not any(name in group.heads for group in groups):
            continue
        for group in groups:
            if name in group.heads:
                continue
            for field in (*group.heads, *group.members):
                whole = f"{part}.{field}"
                for earlier, origin in sources.items():
                    if origin != source and (earlier == whole or earlier.startswith(f"{whole}.")):
                        yield earlier, field in group.heads
