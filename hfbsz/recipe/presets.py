"""Find recipes and presets by name: the YAML files in `recipes/`, `recipes/model/` and `recipes/data/`."""

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
# in an installed package, or in a clone
_BUNDLED = next(path for path in (_PACKAGE / "recipes", _PACKAGE.parent / "recipes") if path.is_dir())
ROOTS = (Path("recipes"), _BUNDLED)  # searched in this order


def find_preset(roots: Sequence[Path], name: str, kind: str) -> Path:
    """The YAML file of a recipe or preset, given by name or by path.

    `kind` is the key that names it: recipe, base, model or data. Raises UserError with the closest name.
    """
    if not name:
        raise UserError(f"{kind}: the value is empty: {kind}=NAME{f', or {kind}=null' if kind in PRESETS else ''}")
    if "/" in name or name.endswith((".yaml", ".yml")):
        if os.path.isfile(path := os.path.expanduser(name)):  # unlike Path.is_file, no error if too long
            return Path(path)
        raise UserError(f"{kind}={shortened(name)}: no such file{_field_advice(name, kind)}")
    for root in roots:
        if os.path.isfile(root / f"{name}.yaml"):
            return root / f"{name}.yaml"
    known = names_of(roots)
    advice = _field_advice(name, kind)
    near = advice or did_you_mean(name, known)
    hub = {"model": "; weights from the Hub: ", "data": "; a data set from the Hub: "}
    words = {"model": f"model.path={name}", "data": f"data.hub={name}"}
    elsewhere = "" if advice or kind not in hub else hub[kind] + command(words[kind])
    raise UserError(
        f"{kind}={shortened(name)}: no such preset{near}; there are {', '.join(known) or 'none'}{elsewhere}"
    )


def _field_advice(name: str, kind: str) -> str:
    """`: write FIELD=…` if the name is that of weights, of data or of a run's folder; empty if not."""
    path = Path(os.path.expanduser(name))
    if kind in ("recipe", "base") and os.path.isfile(path / "recipe.yaml"):
        return f": for the recipe of a run, write {command(f'{kind}={path}/recipe.yaml')}"
    if kind == "model" and (os.path.isdir(path) or ("/" in name and not name.endswith((".yaml", ".yml")))):
        return f": for weights from a folder or the Hub, write {command(f'model.path={name}')}"
    if kind == "data" and looks_like_data(name):
        return f": for files, write {command(f'data.files={name}')}"
    if kind == "data" and ("/" in name and not name.endswith((".yaml", ".yml"))):
        return f": for a data set from a folder or the Hub, write {command(f'data.hub={name}')}"
    return ""


def looks_like_data(text: str) -> bool:
    """Whether a text is an existing file, a glob, or has the extension of a data file."""
    return os.path.isfile(os.path.expanduser(text)) or any(sign in text for sign in "*?") or text.endswith(_ENDINGS)


def names_of(roots: Sequence[Path]) -> list[str]:
    """The sorted names of all recipes or presets in some folders."""
    return sorted({path.stem for root in roots for path in root.glob("*.yaml")})


def list_recipes() -> list[tuple[str, str]]:
    """(name, description) of every recipe, sorted by name; the description is the first line of the file."""
    paths = {path.stem: path for root in reversed(ROOTS) for path in root.glob("*.yaml")}
    lines = {name: path.read_text(errors="replace").partition("\n")[0] for name, path in sorted(paths.items())}
    return [(name, line.lstrip("# ")) for name, line in lines.items()]
