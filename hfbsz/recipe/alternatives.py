"""Mutually exclusive fields: setting one replaces the alternatives that an earlier source has set."""

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

_PACKAGE = ("package", "file", "sha256")


class Group(NamedTuple):
    """One of several alternatives: the fields that select it, and further fields that only make sense with it."""

    heads: tuple[str, ...]
    members: tuple[str, ...] = ()


_MODEL = (Group(("path",)), Group(("package",), _PACKAGE), Group(("shape",)))
_SOURCE = (
    Group(("files",), ("exclude",)),
    Group(("package",), _PACKAGE),
    Group(("hub",), ("hub_config", "split", "revision", "stream", "validation_split")),
)
_CONVERSATION = (Group(("messages",)), Group(("prompt", "response"), ("template", "system")))
_VALIDATION = (Group(("validation_files",)), Group(("validation_split",)))
_SET = re.compile(r"eval\.sets\.[^.]+")


def _alternatives(section: str) -> tuple[tuple[Group, ...], ...]:
    if section == "model":
        return (_MODEL,)
    if section == "data":
        return (_SOURCE, _CONVERSATION, _VALIDATION)
    return (_SOURCE, _CONVERSATION) if _SET.fullmatch(section) else ()


def displaced(key: str, source: str, sources: Mapping[str, str]) -> Iterator[tuple[str, bool]]:
    """The set fields that `key`, set by `source`, replaces, each with whether it is the head of its group.

    `sources` has the source of every field that is set. Fields that `source` itself has set are not replaced: two
    alternatives from one source are a contradiction, which the validation reports.
    """
    section, _, name = key.rpartition(".")
    if key == "model.shape.model_type":
        section, name = "model", "shape"
    for groups in _alternatives(section):
        if not any(name in group.heads for group in groups):
            continue
        for group in groups:
            if name in group.heads:
                continue
            for field in (*group.heads, *group.members):
                replaced = f"{section}.{field}"
                for earlier, origin in sources.items():
                    if origin != source and (earlier == replaced or earlier.startswith(f"{replaced}.")):
                        yield earlier, field in group.heads
