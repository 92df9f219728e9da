"""The house: a file imports only from lower floors, and heavy packages stay where they belong."""

import ast
import subprocess
import sys

from conftest import ROOT

FLOORS = [
    {"shown"},
    {"errors", "amounts", "record", "writes"},
    {"files", "interrupt", "streams", "launch"},
    {"yaml_files"},
    {"scaling", "schedule", "laws"},
    {"recipe"},
    {"words", "presets", "alternatives"},
    {"foreign"},
    {"foreign_words"},
    {"pairs", "misfits"},
    {"loading"},
    {"schema"},
    {"plan"},
    {"tuning"},
    {"resolve", "explain"},
    {"data", "sharding"},
    {"optimizers", "heads"},
    {"pretrained"},
    {"loadable", "fitting", "lora"},
    {"model"},
    {"tasks", "inputs", "checkpoint_state"},
    {"folder", "loop", "checkpoint"},
    {"ranks"},
    {"metrics", "measure"},
    {"report"},
    {"ending", "keeping", "reports"},
    {"evaluating"},
    {"run"},
    {"cli", "experiment"},
]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
HEAVY = {"torch", "transformers", "datasets", "accelerate", "numpy"}
ALLOWED = {
    "wandb": {"report"},
    "omegaconf": {"loading", "yaml_files"},
    "pydantic": {"recipe", "words", "loading", "schema", "report", "checkpoint_state"},
    "accelerate": {"loop", "keeping", "ranks", "reports", "evaluating", "run"},
    "rich": {"report"},
    "peft": {"lora"},
}
REPORT_MAY_KNOW = {"record", "plan", "resolve", "explain", "amounts", "errors", "folder", "files", "shown", "writes"}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_imports_go_down():
    for path in (ROOT / "hfbsz").rglob("*.py"):
        part = path.relative_to(ROOT / "hfbsz").with_suffix("").parts[0]
        if part == "__init__":
            continue
        for name in imports(path):
            package, *rest = name.split(".")
            if package == "hfbsz" and rest and rest[0] in FLOOR and rest[0] != part:
                assert FLOOR[rest[0]] < FLOOR[part], f"{path} imports {name}"
                assert part != "report" or rest[0] in REPORT_MAY_KNOW, f"{path} imports {name}"
            assert FLOOR[part] > FLOOR["resolve"] or package not in HEAVY, f"{path} imports {name}"
            assert part in ALLOWED.get(package, {part}), f"{path} imports {name}"


def test_only_their_own_files_know_the_packages_of_wandb():
    knowing = {"wandb": {"wandb.py", "wandb_group.py", "wandb_sync.py"}, "wandb_workspaces": {"dashboard.py"}}
    for path in [*(ROOT / "hfbsz").rglob("*.py"), *(ROOT / "scripts").glob("*.py")]:
        for name in imports(path):
            assert path.name in knowing.get(name.split(".")[0], {path.name}), f"{path} imports {name}"


def test_a_plan_needs_none_of_the_heavy_packages():
    code = (
        f"import sys, hfbsz.resolve, hfbsz.explain, hfbsz.cli; print([m for m in {sorted(HEAVY)} if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT).stdout.strip() == "[]"
