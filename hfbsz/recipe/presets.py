"""Recipes and presets by name: the YAML files below `recipes/`."""

import os
from collections.abc import Sequence
from pathlib import Path

from hfbsz.display import command, shortened
from hfbsz.errors import UserError, did_you_mean
from hfbsz.recipe.fields import PRESETS

_ENDINGS = (
    *(".csv", ".tsv", ".tab", ".txt", ".json", ".jsonl", ".ndjson", ".parquet", ".arrow"),
    *(".gz", ".bz2", ".xz", ".zst", ".zip"),
)
_PACKAGE = Path(__file__).resolve().parents[1]
_OWN = next(path for path in (_PACKAGE / "recipes", _PACKAGE.parent / "recipes") if path.is_dir())  # installed, a clone
ROOTS = (Path("recipes"), _OWN)


def find_preset(roots: Sequence[Path], name: str, kind: str) -> Path:
    """The file of a preset by name, or by path; raises UserError with the nearest name."""
    if not name:
        raise UserError(f"{kind}: the value is empty: {kind}=NAME{f', or {kind}=null' if kind in PRESETS else ''}")
    if "/" in name or name.endswith((".yaml", ".yml")):
        if os.path.isfile(path := os.path.expanduser(name)):  # False, not an error, for a name that is too long
            return Path(path)
        raise UserError(f"{kind}={shortened(name)}: no such file{_or_field(name, kind)}")
    for root in roots:
        if os.path.isfile(root / f"{name}.yaml"):
            return root / f"{name}.yaml"
    known = names_of(roots)
    near = _or_field(name, kind) or did_you_mean(name, known)
    hub = {"model": "; weights of the Hub: ", "data": "; a data set of the Hub: "}
    words = {"model": f"model.path={name}", "data": f"data.hub={name}"}
    elsewhere = "" if near.startswith(":") or kind not in hub else hub[kind] + command(words[kind])
    raise UserError(
        f"{kind}={shortened(name)}: no such preset{near}; there are {', '.join(known) or 'none'}{elsewhere}"
    )


def _or_field(name: str, kind: str) -> str:
    """The field that is meant where something else than a preset is named."""
    path = Path(os.path.expanduser(name))
    if kind in ("recipe", "base") and os.path.isfile(path / "recipe.yaml"):
        return f": the recipe of a run's folder is {command(f'{kind}={path}/recipe.yaml')}"
    if kind == "model" and (os.path.isdir(path) or ("/" in name and not name.endswith((".yaml", ".yml")))):
        return f": weights of a folder or of the Hub are {command(f'model.path={name}')}"
    if kind == "data" and seems_data(name):
        return f": files are {command(f'data.files={name}')}"
    if kind == "data" and ("/" in name and not name.endswith((".yaml", ".yml"))):
        return f": a folder or Hub data set is {command(f'data.hub={name}')}"
    return ""


def seems_data(text: str) -> bool:
    """Whether a text is a file, a glob, or ends as files of rows do."""
    return os.path.isfile(os.path.expanduser(text)) or any(sign in text for sign in "*?") or text.endswith(_ENDINGS)


def names_of(roots: Sequence[Path]) -> list[str]:
    return sorted({path.stem for root in roots for path in root.glob("*.yaml")})


def list_recipes() -> list[tuple[str, str]]:
    """(name, first line of the file's head) of every recipe."""
    found = {path.stem: path for root in reversed(ROOTS) for path in root.glob("*.yaml")}
    heads = {name: path.read_text(errors="replace").partition("\n")[0] for name, path in sorted(found.items())}
    return [(name, head.lstrip("# ")) for name, head in heads.items()]
