"""Recipes and presets by name: the YAML files below `recipes/`."""

import os
from collections.abc import Sequence
from pathlib import Path

from hfbsz.errors import UserError, did_you_mean
from hfbsz.recipe import PRESETS

_ENDINGS = (
    *(".csv", ".tsv", ".tab", ".txt", ".json", ".jsonl", ".ndjson", ".parquet", ".arrow"),
    *(".gz", ".bz2", ".xz", ".zst", ".zip"),
)
ROOTS = (Path("recipes"), Path(__file__).resolve().parent.parent / "recipes")


def find_preset(roots: Sequence[Path], name: str, kind: str) -> Path:
    """The file of a preset by name, or by path; raises UserError with the nearest name."""
    if not name:
        raise UserError(f"{kind}: the value is empty: {kind}=NAME{f', or {kind}=null' if kind in PRESETS else ''}")
    if "/" in name or name.endswith((".yaml", ".yml")):
        if (path := Path(os.path.expanduser(name))).is_file():
            return path
        raise UserError(f"{kind}={name}: no such file{_or_field(name, kind)}")
    for root in roots:
        if (root / f"{name}.yaml").is_file():
            return root / f"{name}.yaml"
    known = names_of(roots)
    near = _or_field(name, kind) or did_you_mean(name, known)
    hub = {"model": f"; weights of the Hub: model.path={name}", "data": f"; a data set of the Hub: data.hub={name}"}
    elsewhere = "" if near.startswith(":") else hub.get(kind, "")
    raise UserError(f"{kind}={name}: no such preset{near}; there are {', '.join(known) or 'none'}{elsewhere}")


def _or_field(name: str, kind: str) -> str:
    """The field that is meant where something else than a preset is named."""
    path = Path(os.path.expanduser(name))
    if kind in ("recipe", "base") and (path / "recipe.yaml").is_file():
        return f": the recipe of a run's folder is {kind}={name.rstrip('/')}/recipe.yaml"
    if kind == "model" and (path.is_dir() or ("/" in name and not name.endswith((".yaml", ".yml")))):
        return f": weights of a folder or of the Hub are model.path={name}"
    if kind == "data" and seems_data(name):
        return f": files are data.files={name}"
    if kind == "data" and ("/" in name and not name.endswith((".yaml", ".yml"))):
        return f": a folder or Hub data set is data.hub={name}"
    return ""


def seems_data(text: str) -> bool:
    """Whether a text is a file, a glob, or ends as files of rows do."""
    return Path(os.path.expanduser(text)).is_file() or any(sign in text for sign in "*?") or text.endswith(_ENDINGS)


def names_of(roots: Sequence[Path]) -> list[str]:
    return sorted({path.stem for root in roots for path in root.glob("*.yaml")})


def list_recipes() -> list[tuple[str, str]]:
    """(name, first line of the file's head) of every recipe."""
    found = {path.stem: path for root in reversed(ROOTS) for path in root.glob("*.yaml")}
    return [(name, path.read_text().splitlines()[0].lstrip("# ")) for name, path in sorted(found.items())]
