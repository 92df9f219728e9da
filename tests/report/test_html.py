"""The local page: what it shows is what the records say, it needs no network, and odd folders still render."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hfbsz.errors import UserError
from hfbsz.plan.plan import Facts, Plan
from hfbsz.plan.resolve import resolve
from hfbsz.recipe.load import load
from hfbsz.records import run_data as runs
from hfbsz.report.page import figures, style
from hfbsz.report.page import page as html
from hfbsz.report.page.step_parts import parts_of
from hfbsz.system.yaml import write_yaml

WORDS = [
    "batch.size=64seq",
    "batch.start=8seq",
    "batch.ramp=doubling:75%",
    "duration=1Mtok",
    "scaling.reference=1024tok",
]
FIGURES = ("tokens", "steps", "training time", "speed", "batch", "learning rate", "accumulation")


def plan_of(*words: str) -> Plan:
    return resolve(load([*WORDS, *words]).recipe, 1, Facts(rows=25000))


def step_record(plan: Plan, number: int, planned: Any, **changes: Any) -> dict[str, Any]:
    tokens = int(planned.next_clock * plan.tokens_per_row)
    return {
        "event": "step",
        "time": 1.7e9 + number,
        "train/global_step": number,
        "train/sequences": planned.next_clock,
        "train/num_input_tokens_seen": tokens,
        "train/seconds": tokens / 11_000,
        "train/loss": 4 + 4 * math.exp(-tokens / 30_000) + 0.05 * math.sin(number),
        "train/learning_rate": planned.learning_rate,
        "batch/global": planned.global_batch,
        "batch/accumulation": planned.accumulation,
        "perf/tokens_per_second": 11_000 + 100 * math.sin(number),
        "perf/peak_memory_bytes": 1.5 * 2**30,
        **changes,
    }


def records_of(plan: Plan, loss: float = 4.1142, **changes: Any) -> list[dict[str, Any]]:
    """`loss`: of the last weights, on all of validation."""
    records = []
    for number, planned in enumerate(plan.walk(), 1):
        record = step_record(plan, number, planned, **changes)
        if number % 5 == 0 or planned.next_clock >= plan.total:
            records.append(record)
        if number % 50 == 0 or planned.next_clock >= plan.total:
            axes = {name: value for name, value in record.items() if name in (runs.TOKENS, runs.STEPS, runs.SECONDS)}
            records.append({**axes, **measured("eval", record["train/loss"] + 0.1, 128), "event": "eval", "time": 0})
    final = {"event": "final", "time": 0, "model/step": axes[runs.STEPS]}
    return [*records, {**axes, **final, **measured("full", loss, 2000)}]


def measured(part: str, loss: float, rows: int) -> dict[str, float]:
    values = {"loss": loss, "perplexity": math.exp(loss), "bits_per_byte": loss / 1.8389, "rows": rows}
    return {f"{part}/{name}": value for name, value in values.items()}


def make_run(folder: Path, plan: Plan, records: list[dict[str, Any]], state: str = "finished", why: Any = None) -> Path:
    folder.mkdir(parents=True)
    write_yaml(plan.recipe.to_dict(), folder / "recipe.yaml")
    (folder / "plan.json").write_text(json.dumps(plan.to_dict()))
    (folder / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "status.json").write_text(json.dumps({"state": state, "why": why}))
    return folder


def page_of(*folders: Path) -> str:
    return html.render([runs.read_run(folder) for folder in folders])


def text_of(page: str) -> str:
    """What a person reads outside the figures, in one line."""
    bare = re.sub(r"<(svg|style)\b.*?</\1>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", bare))


def figure_of(page: str, title: str) -> str:
    return next(part for part in page.split("<figure")[1:] if f"<h3>{title}</h3>" in part).split("</figure>")[0]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    plan = plan_of()
    return make_run(tmp_path / "ramp", plan, records_of(plan))


def test_page_is_self_contained(run: Path) -> None:
    page = page_of(run)
    references = re.findall(r"""(?:src|href|action|data)\s*=\s*["']([^"']*)""", page)
    assert all(reference.startswith("#") for reference in references)
    assert not re.findall(r"<script|<link|<iframe|<img|@import|@font-face|url\((?!#)", page)
    assert "default-src 'none'" in page


def test_page_shows_what_the_records_say(run: Path) -> None:
    text = text_of(page_of(run))
    last = records_of(plan_of())[-3]
    seconds = round(last["train/seconds"])
    assert "4.1142 nats/target, all 2,000 rows of validation, step 459" in text
    assert (
        "Validation loss, fixed part 4.1161 nats/target, 128 rows, the same at every evaluation: the best is 4.0500 at"
        in text
    )
    assert f"{4.1142 / 1.8389:.4f} bits/byte" in text
    assert f"Perplexity {math.exp(4.1142):.4g}" in text
    assert "Tokens seen 1M tokens" in text
    assert "Optimizer steps 459 steps" in text
    assert f"Training time {seconds // 60} min {seconds % 60:02d} s" in text
    assert "Mean speed 11k tokens/s" in text
    assert "Peak memory 1.50 GiB" in text
    assert "Global batch 8 → 64 sequences" in text
    rates = [record["train/learning_rate"] for record in records_of(plan_of()) if "train/learning_rate" in record]
    assert f"Peak learning rate {max(rates):.3g}" in text
    assert "Batch split 8 × (1 → 8) × 1" in text


def test_page_says_what_fills_a_micro_batch(tmp_path: Path) -> None:
    plan = plan_of("batch.micro_tokens=2048", "data.pack=false")
    records = [
        record | {"batch/accumulation": 3} if "batch/accumulation" in record else record for record in records_of(plan)
    ]
    assert "Batch split ≤ 2,048 tokens × variable × 1" in text_of(page_of(make_run(tmp_path / "run", plan, records)))


def test_page_explains_plan_and_recipe(run: Path) -> None:
    text = text_of(page_of(run))
    assert "micro 8 × accumulation 8 × processes 1 = 64 sequences" in text
    assert "ramp: doubling:75%" in text


def test_every_figure_has_labeled_axes_and_a_caption(run: Path) -> None:
    figures = page_of(run).split("<figure ")[1:]
    assert len(figures) == len(FIGURES)
    units = ("nats/target", "sequences", "passes", "tokens/s", "no unit")
    for figure, word in zip(figures, FIGURES, strict=True):
        drawn, caption = figure.split("</svg>")[0], figure.split("<figcaption>")[1]
        assert word in drawn
        assert any(f"{unit})" in drawn for unit in units)
        assert any(axis in drawn for axis in ("tokens seen", "optimizer steps", "training time (s)"))
        assert len(text_of(caption)) > 60


def test_axis_is_cut_above_the_first_fall_and_says_so(run: Path) -> None:
    top = figures.loss_range([runs.read_run(run)])[2]
    assert top is not None and 4.5 < top < 6.5
    assert f"The loss axis ends at {top:.2f} nats/target" in page_of(run)


def test_flat_losses_are_not_cut(tmp_path: Path) -> None:
    plan = plan_of()
    page = page_of(make_run(tmp_path / "flat", plan, records_of(plan, **{"train/loss": 4.0})))
    assert "The loss axis ends" not in page


def test_rising_validation_loss_stays_in_sight(tmp_path: Path) -> None:
    plan = plan_of()
    top = figures.loss_range([runs.read_run(make_run(tmp_path / "overfit", plan, records_of(plan, loss=9.0)))])[1]
    assert top is not None and top > 9


def test_several_runs_are_ranked_and_share_one_legend(tmp_path: Path) -> None:
    folders = []
    for place, size in enumerate(("64", "32", "16")):
        plan = plan_of(f"batch.size={size}seq", "batch.start=null", "batch.ramp=null")
        folders.append(make_run(tmp_path / f"batch-{size}", plan, records_of(plan, loss=5.0 - 0.3 * place)))
    page = page_of(*folders)
    legend, table = page.split('<ul class="legend')[1].split("</ul>")[0], page.split("<tbody>")[1].split("</tbody>")[0]
    rows = table.split("<tr")[1:]
    assert "3 runs compared" in page
    assert [re.search(r"batch-\d+", row)[0] for row in rows] == ["batch-16", "batch-32", "batch-64"]  # type: ignore[index]
    assert ["best" in row for row in rows] == [True, False, False]
    assert "+0.6000" in rows[2] and "25 %" in text_of(rows[2])
    for place, folder in enumerate(folders):
        assert folder.name in legend and style.PALETTE[place] in legend
        assert all(style.PALETTE[place] in figure.split("</svg>")[0] for figure in page.split("<figure ")[1:])
    assert page.count('<ul class="legend') == 1
    assert page.count("The plan, explained") == 3


def test_the_parts_of_a_step_add_up_to_its_time(tmp_path: Path) -> None:
    plan = plan_of()
    records = records_of(plan)
    steps = [record for record in records if record["event"] == "step"]
    for number, record in enumerate(steps):
        # the first record is the mean of many steps, so it weighs more
        record["perf/step_seconds"] = 1.0 if number == 0 else 2.0
        record |= {"perf/data_seconds": 0.1, "perf/forward_seconds": 0.2, "perf/backward_seconds": 0.4}
    run = runs.read_run(make_run(tmp_path / "timed", plan, records))
    parts = parts_of(run)
    first, last = steps[0]["train/global_step"], steps[-1]["train/global_step"]
    expected = (first * 1.0 + (last - first) * 2.0) / last
    assert sum(parts.values()) == pytest.approx(expected) and parts["other"] == pytest.approx(expected - 0.7)
    assert parts["measurement"] == parts["optimizer"] == 0
    figure = next(part for part in page_of(run.folder).split("<figure ") if "<h3>Time of a step</h3>" in part)
    assert "time of a step (s)" in figure and all(word in figure for word in ("forward", "backward", "other"))
    assert parts_of(runs.read_run(make_run(tmp_path / "untimed", plan, records_of(plan)))) == {}
    partial = [{**record, "perf/forward_seconds": 0.2} for record in records_of(plan)]  # without the time of a step
    assert "Time of a step" not in page_of(make_run(tmp_path / "partial", plan, partial))


def test_more_runs_than_colors_differ_in_line_style() -> None:
    styles = {style.style(place) for place in range(24)}
    assert len(styles) == 24


def test_runs_of_one_name_are_told_apart(run: Path, tmp_path: Path) -> None:
    plan = plan_of()
    other = make_run(tmp_path / "second" / "ramp", plan, records_of(plan))
    text = text_of(page_of(run, other))
    assert f"{tmp_path.name}/ramp" in text and "second/ramp" in text


def test_losses_of_part_and_whole_do_not_compete(run: Path, tmp_path: Path) -> None:
    plan = plan_of()
    part = [record for record in records_of(plan) if record["event"] != "final"]
    page = page_of(make_run(tmp_path / "part", plan, part), run)
    rows = page.split("<tbody>")[1].split("<tr")[1:]
    assert "ramp" in rows[0] and "best" in rows[0]
    assert "the two are not comparable" in page


def test_runs_of_unequal_length_are_cautioned(run: Path, tmp_path: Path) -> None:
    plan = plan_of("duration=500ktok")
    page = page_of(run, make_run(tmp_path / "half", plan, records_of(plan)))
    assert re.search(r"The runs saw from 50\dk to 1M tokens", text_of(page))


def test_further_evaluation_sets_have_figures(tmp_path: Path) -> None:
    plan = plan_of()
    records = [{**r, "eval/batch/loss": 3.3} if r["event"] == "eval" else r for r in records_of(plan)]
    page = page_of(make_run(tmp_path / "sets", plan, records))
    assert page.count("<figure ") == len(FIGURES) + 1
    assert "loss (nats/target)" in figure_of(page, "Loss on “batch”")


def test_resumed_run_shows_each_step_once(tmp_path: Path) -> None:
    plan = plan_of()
    first = records_of(plan, **{"perf/peak_memory_bytes": 9 * 2**30})[:40]
    folder = make_run(tmp_path / "resumed", plan, first + records_of(plan)[20:])
    with (folder / "records.jsonl").open("a") as file:
        file.write('{"event": "step", "train/glob')
    steps = runs.read_run(folder).series("train/loss", runs.STEPS)[0]
    assert (steps[1:] > steps[:-1]).all()
    assert len(steps) == sum(record["event"] == "step" for record in records_of(plan))


@pytest.mark.parametrize("count", [0, 1])
def test_run_that_has_just_begun(tmp_path: Path, count: int) -> None:
    plan = plan_of()
    text = text_of(page_of(make_run(tmp_path / "young", plan, records_of(plan)[:count], state="running")))
    assert "no evaluation yet" in text and "running" in text
    assert "Optimizer steps 5 steps of 459 planned" in text if count else "Nothing has been measured yet" in text


def test_empty_run_beside_a_measured_one(run: Path, tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "empty", plan_of(), [], state="running"), run)
    rows = page.split("<tbody>")[1].split("<tr")[1:]
    assert page.count("<figure ") == len(FIGURES)
    assert "best" in rows[0] and "empty" in rows[1]


def test_run_without_plan_status_and_recipe(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "bare", plan_of(), records_of(plan_of())[:9])
    for name in ("plan.json", "status.json", "recipe.yaml"):
        (folder / name).unlink()
    text = text_of(page_of(folder))
    assert "unknown" in text and "neither a plan nor a recipe" in text


def test_failed_run_with_nan_says_why(tmp_path: Path) -> None:
    plan = plan_of()
    records = records_of(plan, loss=math.nan, **{"train/loss": math.nan, "perf/peak_memory_bytes": math.inf})
    page = page_of(make_run(tmp_path / "bad", plan, records, state="failed", why="5 non-finite steps in a row"))
    assert "5 non-finite steps in a row" in page
    assert "nan" not in text_of(page).split()


def test_names_are_escaped(tmp_path: Path) -> None:
    plan = plan_of()
    names = ("<script>alert(1)<", "$x_{1}&")
    folders = [make_run(tmp_path / name, plan, records_of(plan), why="<b>why</b>") for name in names]
    for page in (page_of(folders[0]), page_of(*folders)):
        assert "<script" not in page and "<b>" not in page
        assert "&lt;script&gt;alert(1)&lt;" in page


def test_page_is_the_same_each_time(run: Path) -> None:
    assert page_of(run) == page_of(run)


def test_write_names_every_folder_that_is_no_run(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as problem:
        html.write([tmp_path / "a", run, tmp_path / "b"], None)
    ending = "no records.jsonl: not the folder of a run"
    assert problem.value.lines == (f"{tmp_path / 'a'}: {ending}", f"{tmp_path / 'b'}: {ending}")


def test_write_says_where(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of()
    other = make_run(tmp_path / "other", plan, records_of(plan))
    monkeypatch.chdir(tmp_path)
    assert html.write([run, run], None) == run / "report.html"
    assert html.write([run, other], None).resolve() == tmp_path / "report.html"
    assert html.write([run, other], tmp_path / "new" / "page.html").read_text().startswith("<!doctype html>")
    with pytest.raises(UserError, match="a folder: name a file"):
        html.write([run], tmp_path)


def test_script(run: Path, tmp_path: Path) -> None:
    def script(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(Path(__file__).parents[2] / "scripts" / "report.py"), *words]
        return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "RANK": "0"}, check=False)

    drawn = script(str(run), f"out={tmp_path / 'page.html'}")
    assert (drawn.returncode, drawn.stdout.strip()) == (0, str(tmp_path / "page.html"))
    missing = script(str(tmp_path / "none"))
    assert missing.returncode == 2
    assert missing.stderr == f"error: {tmp_path / 'none'}: no records.jsonl: not the folder of a run\n"
    assert script().returncode == 2 and "RUN [RUN …]" in script().stderr
    assert script("--help").returncode == 0
