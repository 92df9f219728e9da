"""The layers of the package: a folder imports only from lower layers, and heavy packages only where allowed."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

from conftest import ROOT

HOUSE = ROOT / "hfbsz"
# from the lowest layer up; folders in the same layer do not import each other
FLOORS = (
    "display errors",
    "system",
    "recipe",
    "plan",
    "records",
    "data report",
    "train",
    "measure",
    "advice run experiment trainer",
    "commands",
)
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names.split()}
LIGHT = {name for name in FLOOR if FLOOR[name] < FLOOR["records"]}  # nothing heavy is imported here
HEAVY = {"torch", "transformers", "datasets", "accelerate", "numpy"}
ALLOWED = {  # folders that may import a package
    "wandb": {"report", "experiment"},
    "huggingface_hub": {"recipe", "report", "measure"},
    "omegaconf": {"recipe", "system"},
    "pydantic": {"recipe", "records", "train"},
    "accelerate": {"train", "run"},
    "rich": {"report", "experiment"},
    "peft": {"train"},
}


def files() -> Iterator[tuple[str, Path]]:
    """Yield (folder, file) for all files of the package; a top-level file counts as a folder of its own name."""
    for path in HOUSE.rglob("*.py"):
        folder = path.relative_to(HOUSE).with_suffix("").parts[0]
        if not folder.startswith("__"):
            yield folder, path


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_folder_has_a_layer():
    assert {folder for folder, _ in files()} == set(FLOOR)


def test_imports_go_down():
    for folder, path in files():
        for name in imports(path):
            package, *rest = name.split(".")
            if package == "hfbsz" and rest and rest[0] in FLOOR and rest[0] != folder:
                assert FLOOR[rest[0]] < FLOOR[folder] or folder == "errors", f"{path} imports {name}"
            assert folder not in LIGHT or package not in HEAVY, f"{path} imports {name}"
            assert folder in ALLOWED.get(package, {folder}), f"{path} imports {name}"


def test_public_definitions_have_docstrings():
    def without(node: ast.Module | ast.ClassDef) -> Iterator[str]:
        for child in node.body:
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and child.name[0] != "_":
                if not ast.get_docstring(child):
                    yield child.name
                if isinstance(child, ast.ClassDef):
                    yield from (f"{child.name}.{name}" for name in without(child))

    assert [f"{path}: {name}" for _, path in files() for name in without(ast.parse(path.read_text()))] == []


def test_no_files_import_each_other_in_a_circle():
    modules = {".".join(("hfbsz", *path.relative_to(HOUSE).with_suffix("").parts)): path for _, path in files()}
    graph = {
        module: {name for name in (*imports(path), *(n.rpartition(".")[0] for n in imports(path))) if name in modules}
        for module, path in modules.items()
    }
    TopologicalSorter({module: names - {module} for module, names in graph.items()}).prepare()  # raises CycleError


def test_only_their_own_files_know_the_packages_of_wandb():
    knowing = {
        "wandb": {"artifacts.py", "reporter.py", "group.py", "sync.py", "trainer_axis.py"},
        "wandb_workspaces": {"dashboard.py"},
    }
    for path in [*HOUSE.rglob("*.py"), *(ROOT / "scripts").glob("*.py")]:
        for name in imports(path):
            assert path.name in knowing.get(name.split(".")[0], {path.name}), f"{path} imports {name}"


def test_a_plan_needs_none_of_the_heavy_packages():
    modules = "hfbsz.plan.resolve, hfbsz.plan.explain, hfbsz.run.cli"
    code = f"import sys, {modules}; print([m for m in {sorted(HEAVY)} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT).stdout.strip() == "[]"
