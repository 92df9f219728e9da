"""Recipes and presets by name: the YAML files below `recipes/`."""

from collections.abc import Sequence
from pathlib import Path

from hfbsz.errors import UserError, did_you_mean

ROOTS = (Path("recipes"), Path(__file__).resolve().parent.parent / "recipes")


def find_preset(roots: Sequence[Path], name: str, kind: str) -> Path:
    """The file of a preset by name, or by path; raises UserError with the nearest name."""
    if "/" in name or name.endswith((".yaml", ".yml")):
        if Path(name).expanduser().is_file():
            return Path(name).expanduser()
        raise UserError(f"{kind}={name}: no such file{_or_field(name, kind)}")
    for root in roots:
        if (root / f"{name}.yaml").is_file():
            return root / f"{name}.yaml"
    known = names_of(roots)
    near = _or_field(name, kind) or did_you_mean(name, known)
    raise UserError(f"{kind}={name}: no such preset{near}; there are {', '.join(known) or 'none'}")


def _or_field(name: str, kind: str) -> str:
    """The field that is meant where something else than a preset is named."""
    path = Path(name).expanduser()
    if kind in ("recipe", "base") and (path / "recipe.yaml").is_file():
        return f": the recipe of a run's folder is {kind}={name.rstrip('/')}/recipe.yaml"
    if kind == "model" and (path.is_dir() or ("/" in name and not name.endswith((".yaml", ".yml")))):
        return f": weights of a folder or of the Hub are model.path={name}"
    if kind == "data" and (path.is_file() or any(sign in name for sign in "*?")):
        return f": files are data.files={name}"
    if kind == "data" and ("/" in name and not name.endswith((".yaml", ".yml"))):
        return f": a folder or Hub data set is data.hub={name}"
    return ""


def names_of(roots: Sequence[Path]) -> list[str]:
    return sorted({path.stem for root in roots for path in root.glob("*.yaml")})


def list_recipes() -> list[tuple[str, str]]:
    """(name, first line of the file's head) of every recipe."""
    found = {path.stem: path for root in reversed(ROOTS) for path in root.glob("*.yaml")}
    return [(name, path.read_text().splitlines()[0].lstrip("# ")) for name, path in sorted(found.items())]
