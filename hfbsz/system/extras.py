"""Optional packages: the extras of pyproject.toml."""

import importlib.util

from hfbsz.errors import UserError


def require(field: str, module: str, extra: str) -> None:
    """Raise UserError if the package that a field or command needs is not installed; it is not imported."""
    if importlib.util.find_spec(module) is None:
        raise UserError(f"{field}: the package it needs is not installed: pip install 'hfbsz[{extra}]'")
