"""Where rows, and files of packages, are kept."""

import os
from pathlib import Path


def cache_folder() -> Path:
    return Path(os.environ.get("HFBSZ_CACHE", "~/.cache/hfbsz")).expanduser()
