"""The README and the docs: commands run or load, the tree has every file, links lead somewhere."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, records

TEXT = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(text):
    """The commands of the bash blocks of a page."""
    blocks = re.findall(r"```bash\n(.*?)```", text, re.S)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]


COMMANDS = commands(TEXT)


@pytest.mark.parametrize(
    "whole", [pytest.param(False, marks=pytest.mark.process), pytest.param(True, marks=pytest.mark.slow)]
)
def test_the_main_job_ends_with_a_model_that_loads_and_generates(hfbsz, environment, tmp_path, whole):
    """The README's command itself, in a folder of its own; not `whole`: a twentieth of it."""
    command = COMMANDS[0].split(" && ")[-1].strip()
    assert command == "accelerate launch scripts/pretrain.py recipe=large_batch"
    words = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        *shlex.split(command)[2:],
        f"output_dir={tmp_path}/run",
        *([] if whole else ["duration=60ktok"]),
    ]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    ends, meta = records(tmp_path / "run", "eval"), json.loads((tmp_path / "run" / "status.json").read_text())
    unigram = float(re.search(r"token frequencies alone: ([\d.]+)", meta["reached"]["bits per byte"])[1])
    assert ends[0]["eval/bits_per_byte"] > unigram and ends[-1]["eval/loss"] < ends[0]["eval/loss"] - 0.5
    assert not whole or unigram > ends[-1]["eval/bits_per_byte"] * 1.3
    machine = json.loads((tmp_path / "run" / "machine.json").read_text())
    assert machine["threads"] == len(os.sched_getaffinity(0))  # all cores, though the launcher sets OMP_NUM_THREADS=1
    evaluating = sum(record["eval/seconds"] for record in ends[1:-1])
    assert not whole or evaluating < 0.1 * ends[-1]["train/seconds"]
    assert {"report.html", "README.md", "plan.json", "recipe.yaml"} <= {
        path.name for path in (tmp_path / "run").iterdir()
    }
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = (kind.from_pretrained(tmp_path / "run") for kind in (AutoModelForCausalLM, AutoTokenizer))
    inputs = tokenizer("def main(", return_tensors="pt")
    text = tokenizer.decode(model.generate(**inputs, max_new_tokens=20, pad_token_id=tokenizer.pad_token_id)[0])
    assert text.startswith("def main(") and len(text) > 12
    drawn = hfbsz("report.py", tmp_path / "run", f"out={tmp_path}/page.html")
    assert drawn.code == 0 and (tmp_path / "page.html").stat().st_size > 10_000


@pytest.mark.parametrize(
    "command",
    [
        line
        for page in PAGES
        for line in commands(page.read_text())
        if line.startswith(("python scripts/plan", "python scripts/pretrain")) and "picture=" not in line
    ],
)
def test_the_light_commands(command, environment):
    done = subprocess.run(
        [sys.executable, *shlex.split(command)[1:]], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout


def test_every_other_command_names_files_that_exist_and_arguments_that_are_valid():
    from hfbsz.experiment.request import parse
    from hfbsz.recipe.load import load

    checked = 0
    for command in (command for page in PAGES for command in commands(page.read_text())):
        words = shlex.split(command.split(" && ")[-1])
        for word in words:
            assert not word.startswith(("scripts/", "accelerate_configs/", "sweeps/")) or (ROOT / word).is_file(), word
        for number, word in enumerate(words):
            if word in ("scripts/pretrain.py", "scripts/finetune.py", "scripts/slurm.sh"):
                load([argument for argument in words[number + 1 :] if argument != "--help"])
                checked += 1
            elif word == "scripts/compare.py":
                parse(words[number + 1 :])
                checked += 1
    assert checked >= 10


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page):
    for target in re.findall(r"\]\(([^)\s]+)(?: \"\w+\")?\)", page.read_text()):
        name, _, heading = target.partition("#")
        if not name.startswith("https:"):
            path = page.parent / name if name else page
            assert path.is_file(), target
            titles = re.findall(r"^#+ (.*)", path.read_text(), re.MULTILINE) if heading else []
            anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
            assert not heading or heading in anchors, target


def paths_of(tree):
    """The paths in a tree block, nested by indentation; `#` begins a comment."""
    folders, paths = [], []
    for line in filter(str.strip, tree.splitlines()):
        depth = (len(line) - len(line.lstrip())) // 2
        folder = "".join(folders[:depth])
        for name in line.split("#")[0].split():
            paths.append(folder + name)
            if name.endswith("/"):
                folders[depth:] = [name]
    return paths


def test_every_fault_has_a_test():
    rows = [line for line in (ROOT / "docs" / "faults.md").read_text().splitlines() if line.startswith("| ")]
    faults = [row for row in rows if not row.startswith(("| --- ", "| fault ", "| change "))]
    assert len(faults) > 50
    for row in faults:
        tests = re.findall(r"\]\(\.\./(\S+) \"(\w+)\"\)", row.split(" | ")[-1])
        assert tests and all(f"def {name}(" in (ROOT / path).read_text() for path, name in tests), row


def test_the_tree_has_every_file_and_nothing_else():
    tree = re.search(r"```\n(recipes/ .*?)```", (ROOT / "docs/development.md").read_text(), re.DOTALL)[1]
    paths = paths_of(tree)
    assert len(paths) == len(set(paths))
    for path in paths:
        assert (ROOT / path).is_dir() if path.endswith("/") else (ROOT / path).is_file(), path
    folders = [ROOT / name for name in ("accelerate_configs", "docs", "hfbsz", "scripts", "sweeps")]
    folders += [path for path in (ROOT / "hfbsz").iterdir() if path.is_dir()]
    built = {"__pycache__", "recipes"}  # the latter in an installed package
    files = [path for folder in folders if folder.name not in built for path in folder.iterdir()]
    listed = [path for path in files if path.name not in built and not path.name.startswith(("_", "."))]
    expected = {f"{path.relative_to(ROOT)}{'/' if path.is_dir() else ''}" for path in listed}
    assert expected - set(paths) == set()


@pytest.mark.process
def test_a_small_comparison_runs_skips_and_draws(hfbsz, ragged, tmp_path):
    words = ["recipe=tests/tiny.yaml", f"data.files={ragged}", "duration=24seq", "seed=0,1", f"out={tmp_path}/t.json"]
    words += ["launch=python", f"picture={tmp_path}/t.png", "jobs=2", "optim.lr=1.234e-3"]
    first, second = (hfbsz("compare.py", *words) for _ in range(2))
    assert first.code == 0 and first.out.count(": finished (") == 2, first.out + first.err
    assert second.code == 0 and "2 of 2 runs" in second.out and ": finished (" not in second.out
    (row,) = json.loads((tmp_path / "t.json").read_text())["arms"]
    assert row["seeds"] == len({run["loss"] for run in row["runs"]}) == 2 and row["steps"] == 3 and row["loss_sd"] > 0
    assert (tmp_path / "t.png").read_bytes()[:4] == b"\x89PNG"
    for folder in re.findall(r"\((runs/tiny-\w+)\)", first.out):
        subprocess.run(["rm", "-rf", ROOT / folder, ROOT / f"{folder}.log"], check=True)
    (page,) = set(re.findall(r"comparisons/[\w-]+/report.html", first.out))
    assert "paired" in (ROOT / page).read_text().lower()
    shutil.rmtree((ROOT / page).parent)
