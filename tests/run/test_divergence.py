"""A run whose weights, gradients or last evaluation are not finite has diverged: it saves no model, and fails."""

import json
import math

import pytest
import torch
from conftest import TINY, records
from test_loop import Bench, _here  # noqa: F401  (the fixture sets the cache folder)

from hfbsz.measure.overfit import OverfittingMonitor
from hfbsz.recipe.load import load
from hfbsz.records.evaluations import final_result, not_better
from hfbsz.records.folder import read_status
from hfbsz.records.jsonl import JsonLines
from hfbsz.records.record import Clock, Reading
from hfbsz.records.run_data import read_run
from hfbsz.run.outcome import _not_better
from hfbsz.train.checkpoint import Collected, newest, save, steps
from hfbsz.train.fsdp import weight_not_finite

OVERFLOW = "optim.weight_decay=1e300"  # the first step makes every weight infinite, and its own gradient is finite


@pytest.mark.parametrize(
    ("processes", "words"),
    [(1, ["checkpoint.every=1 steps"]), (2, ["eval.every=1 steps"]), (1, ["checkpoint.save=best"])],
)
def test_case_d03_weights_that_are_not_finite_end_the_run(hfbsz, ragged, tmp_path, processes, words):
    run = tmp_path / "run"
    ended = hfbsz(
        "pretrain.py",
        *(TINY, f"data.files={ragged}", f"output_dir={run}", "duration=3 steps", "schedule.warmup=1 steps"),
        *(OVERFLOW, "log.page=true", *words),
        processes=processes,
    )
    status = read_status(run)
    assert ended.code == 1 and status["state"] == "diverged", ended.err
    assert "weights are not finite (model.embed_tokens.weight): the run has diverged; it has no checkpoint" in ended.err
    assert status["why"] in ended.err and "Traceback" not in ended.err
    assert not steps(run) and not list(run.glob("*.safetensors")) and (run / "report.html").is_file()
    assert records(run, "lifecycle")[-1]["state"] == "diverged"
    assert math.isnan(final_result(read_run(run)).loss)


def test_case_d11_a_checkpoint_that_is_not_finite_is_skipped(tmp_path):
    state = {"progress": {"clock": 8}}
    for step, value in ((2, 1.0), (4, math.nan), (6, math.inf)):
        save(tmp_path, step, Collected({"a": torch.full((3,), value)}, {}, [], None), state)
    warnings = []
    assert newest(tmp_path, warnings.append).path.name == "checkpoint-2"
    assert warnings == [
        f"{tmp_path}/checkpoint-{step}: values of a are not finite: the run had diverged: skipped" for step in (6, 4)
    ]


def test_the_first_weight_that_is_not_finite_is_named(ragged):
    model = Bench(ragged).model
    assert weight_not_finite(model) is None
    name, weight = list(model.named_parameters())[3]
    weight.data[0] = -math.inf
    assert weight_not_finite(model) == name
    weight.requires_grad_(False)  # frozen weights are checked where they are loaded
    assert weight_not_finite(model) is None


def test_numbers_that_are_not_finite_are_values_in_records(tmp_path):
    lines = JsonLines(tmp_path / "records.jsonl")
    for step, loss in enumerate((6.25, math.nan, math.inf, -math.inf)):
        lines.write(Reading("eval", Clock(step, step, step, 0.0), {"eval/loss": loss}))
    lines.close()

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    text = (tmp_path / "records.jsonl").read_text().splitlines()
    assert [json.loads(line, parse_constant=refuse)["eval/loss"] for line in text[1:]] == [
        *("NaN", "Infinity", "-Infinity")
    ]
    read = [record["eval/loss"] for record in read_run(tmp_path).records]
    assert read[0] == 6.25 and math.isnan(read[1]) and read[2:] == [math.inf, -math.inf]


@pytest.mark.parametrize(("model", "diverged"), [("model.path=here", False), ("model=tiny", True)])
def test_case_d09_a_new_model_that_ends_worse_than_it_began_has_diverged(tmp_path, model, diverged):
    recipe = load([TINY, *(["model.shape=null"] if not diverged else []), model]).recipe
    watch, targets = OverfittingMonitor(None), torch.ones(4).numpy()
    watch.begin(6.0 * targets, targets)
    watch.update(1, 18.0 * targets, targets, None)
    final = Reading("eval", Clock(1, 8, 8, 1.0), {"eval/loss": 18.0, "eval/rows": 4})
    (message,) = _not_better(watch, final, recipe).values()
    assert message.startswith(
        "6.0000 nats/target on the fixed 4 rows: step 1 (18.0000) is not better than before training"
    )
    assert ("has diverged: lower optim.lr" in message) == diverged
    lines = JsonLines(tmp_path / "records.jsonl")
    for step, loss in enumerate((6.0, 18.0)):
        lines.write(Reading("eval", Clock(step, step, step, 0.0), {"eval/loss": loss}))
    lines.close()
    (tmp_path / "plan.json").write_text(json.dumps({"recipe": recipe.to_dict()}))
    assert ("has diverged: lower optim.lr" in not_better(read_run(tmp_path))) == diverged
