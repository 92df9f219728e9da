"""Hides where files are on this machine, and who the user is."""

import html
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_PATHS = frozenset(  # fields of a recipe that may be a path
    ("files", "validation_files", "hub", "tokenizer", "path", "metrics", "output_dir", "resume", "branch")
)
_USERS = frozenset(("entity",))  # fields that name a user or a team
_ABSOLUTE = re.compile("[/~]")
HIDDEN = "LOCAL"  # instead of the folders of an absolute path


class LocalPaths:
    """The folders of this machine that a run's files may name: of the run, of its output, of the user."""

    def __init__(self, folder: Path) -> None:
        runs = {folder.absolute(), folder.resolve()}
        places = {**dict.fromkeys(map(str, runs), folder.resolve().name), str(Path.cwd()): "."}
        places[os.path.expanduser("~")] = "~"
        places |= {str(run.parent): HIDDEN for run in runs}
        variants = {
            shown: replacement
            for place, replacement in places.items()
            if len(place) > 1  # neither the root nor an unknown home
            for shown in (place, html.escape(place), json.dumps(place)[1:-1])
        }
        self._places = {name: variants[name] for name in sorted(variants, key=len, reverse=True)}  # innermost first

    def in_text(self, text: str) -> str:
        """The text with these folders replaced."""
        for place, replacement in self._places.items():
            text = replacement.join(_named(place).split(text))
        return text

    def is_in(self, text: str) -> bool:
        """Whether the text still names one of these folders."""
        return any(_named(place).search(text) for place in self._places)

    def in_data(self, data: Any, field: str = "") -> Any:
        """Plain data, such as a recipe: `LOCAL/NAME` for absolute paths, null for users, other texts as `in_text`."""
        if isinstance(data, Mapping):
            return {key: self.in_data(value, str(key)) for key, value in data.items()}
        if isinstance(data, list):
            return [self.in_data(value, field) for value in data]
        if field in _USERS or not isinstance(data, str):
            return None if field in _USERS else data
        if field in _PATHS and _ABSOLUTE.match(data):
            return f"{HIDDEN}/{data.rstrip('/').rpartition('/')[2]}"
        return self.in_text(data)


def _named(place: str) -> re.Pattern[str]:
    """Matches a folder's path, not the beginning of a longer name."""
    return re.compile(rf"(?<![\w.~-]){re.escape(place)}(?![\w-])")
