"""Preference pairs: the loss, its mean over pairs for every split, and the reference that it compares with."""

import json
import math

import numpy as np
import pytest
import torch
from conftest import ROOT, records
from pairs import pairs, preference_words
from test_fsdp import apart
from test_resume import same_weights
from transformers import AutoModelForCausalLM

from hfbsz.data import IGNORED
from hfbsz.errors import UserError
from hfbsz.measure.noise import NoiseCollector
from hfbsz.measure.quality import Quality
from hfbsz.recipe.load import load
from hfbsz.recipe.tasks import RowKind
from hfbsz.records.folder import read_status
from hfbsz.run.measurements import learned_share
from hfbsz.train import reference
from hfbsz.train.loop import Collector
from hfbsz.train.setup import setup


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return preference_words(tmp_path_factory.mktemp("preference"))


@pytest.fixture(autouse=True)
def _here(monkeypatch, cache):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HFBSZ_CACHE", str(cache))


def built(words, *more):
    return setup(load([*words, *more]).recipe)


def log_probability(model, side) -> float:
    """Of the learned tokens of a row, one token at a time, in float64."""
    with torch.no_grad():
        logits = model(input_ids=torch.from_numpy(side.tokens.astype(np.int64))[None]).logits[0].double()
    scores = logits.log_softmax(-1)
    return sum(float(scores[i - 1, token]) for i, token in enumerate(side.labels) if token != IGNORED)


@pytest.mark.parametrize("fused", ["true", "false"])
@pytest.mark.parametrize("normalized", ["true", "false"])
def test_the_loss_is_that_of_the_formula(words, fused, normalized):
    run = built(words, f"model.fused_loss={fused}", f"preference.length_normalized={normalized}", "preference.beta=0.7")
    rows = [run.data.train[number] for number in range(5)]
    initial = AutoModelForCausalLM.from_pretrained(run.plan.recipe.model.path)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in run.model.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    expected, rewards = 0.0, []
    for row in rows:
        pair = []
        for side in row[:2]:
            change = log_probability(run.model, side) - log_probability(initial, side)
            pair.append(0.7 * change / (int((side.labels != IGNORED).sum()) if normalized == "true" else 1))
        rewards.append(pair)
        expected += math.log1p(math.exp(pair[1] - pair[0]))
    batch = run.task.collate([*rows, None])
    assert batch.targets == 5 and batch.sequences_per_row == 2 and len(batch.labels) == 6
    assert batch.tokens == sum(len(side.tokens) - 1 for row in rows for side in row[:2])
    assert float(run.task.loss_sum(run.model, batch).detach()) == pytest.approx(expected, rel=1e-6)
    with torch.no_grad():
        losses, targets, outputs = run.task.evaluate_batch(run.model, batch)
    assert targets.tolist() == [1] * 5 + [0] and float(losses[5]) == 0
    assert outputs[:5].tolist() == [pytest.approx(pair, abs=1e-5) for pair in rewards]


def gradients(run):
    """The gradient of the first window, before clipping, and the noise scale's sums."""
    noise = NoiseCollector(run.plan, run.model, 1)

    class Kept(Collector):
        def due(self, at):
            return True

        def before_window(self, model, planned, at):
            pass

        def after_micro(self, index, batch):
            self.passes = index + 1

        def after_window(self):
            self.gradient = torch.cat([weight.grad.flatten() for weight in run.model.parameters()]).double().numpy()
            return {}

    kept = Kept()
    step = next(iter(run.steps(collectors=[kept, noise])))
    assert step.targets == 8
    state = noise.to_dict()
    assert state["per_sequence"]["noise"] > 0
    return kept, step, state


@pytest.fixture(scope="module")
def unsplit(words, cache):
    patch = pytest.MonkeyPatch()
    patch.setenv("HFBSZ_CACHE", str(cache))
    patch.chdir(ROOT)
    yield gradients(built(words))
    patch.undo()


@pytest.mark.parametrize(
    ("split", "passes"),
    [("batch.micro_max=4", 2), ("batch.micro_max=2", 4), ("batch.micro_max=1", 8), ("batch.micro_tokens=300", None)],
)
def test_a_split_changes_nothing(words, unsplit, split, passes):
    """The gradient of a window, in float32, to 1e-6; and the noise of single pairs."""
    kept, step, noise = gradients(built(words, split))
    assert kept.passes == passes if passes else kept.passes > 2
    assert apart(kept.gradient, unsplit[0].gradient) < 1e-6
    assert step.loss == pytest.approx(unsplit[1].loss, rel=1e-6) and step.loss == pytest.approx(math.log(2), rel=1e-6)
    assert noise["per_sequence"]["noise"] == pytest.approx(unsplit[2]["per_sequence"]["noise"], rel=1e-4)


def test_the_mean_of_a_pair_of_means_would_be_detected(words, unsplit):
    """Of micro-batches of 5 and 3 pairs, the mean of two means is another gradient."""
    run = built(words)
    rows = [run.data.train[int(number)] for number in run.windows().row_numbers(0, 8)]
    for part in (rows[:5], rows[5:]):
        (run.task.loss_sum(run.model, run.task.collate(part)) / (2 * len(part))).backward()
    wrong = torch.cat([weight.grad.flatten() for weight in run.model.parameters()]).double().numpy()
    assert apart(wrong, unsplit[0].gradient) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_chunks_of_the_head_have_the_gradient_of_the_logits(words, dtype):
    precision = "fp64" if dtype == torch.float64 else "fp32"
    found = [
        gradients(built(words, f"model.fused_loss={fused}", f"precision={precision}"))[0].gradient
        for fused in ("true", "false")
    ]
    assert apart(*found) < (1e-12 if dtype == torch.float64 else 1e-6)


def test_the_reference_is_computed_once_and_for_the_initial_weights(words, tmp_path, monkeypatch):
    monkeypatch.setenv("HFBSZ_CACHE", str(tmp_path))
    calls = []
    computed = reference._computed
    monkeypatch.setattr(reference, "_computed", lambda *given: calls.append(1) or computed(*given))
    run = built(words)
    assert len(calls) == 2  # training and validation
    values = run.data.train.reference
    initial = AutoModelForCausalLM.from_pretrained(run.plan.recipe.model.path)
    for number in (0, 7):
        row = run.data.train[number]
        expected = [log_probability(initial, side) for side in (row.chosen, row.rejected)]
        assert row.reference.tolist() == pytest.approx(expected, rel=1e-5) == values[number].tolist()
    again = built(words, "batch.micro_max=2", "optim.lr=1e-4", "seed=3", "preference.beta=0.5")
    assert len(calls) == 2 and np.array_equal(again.data.train.reference, values)
    built(words, "precision=fp64")
    assert len(calls) == 4
    for path in (tmp_path / "references").glob("*.npz"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    assert np.array_equal(built(words).data.train.reference, values)
    assert len(calls) == 6  # of damaged files


def test_lora_has_the_base_model_as_reference(words):
    full, lora = built(words), built(words, "model.lora={rank: 4}")
    assert np.allclose(full.data.train.reference, lora.data.train.reference, rtol=0, atol=1e-4)
    assert next(iter(lora.steps())).loss == pytest.approx(math.log(2), rel=1e-5)


def test_dropout_is_off(tmp_path):
    words = preference_words(tmp_path, "gpt2")
    run = built(words)
    assert any("dropout is off" in note for note in run.notes)
    assert next(iter(run.steps())).loss == pytest.approx(math.log(2), rel=1e-5)


def test_training_raises_the_margin(words):
    run = built(words, "duration=12steps", "optim.lr=3e-3")
    numbers = range(len(run.data.train))
    quality = Quality(RowKind.PREFERENCE)
    before = quality.measures("eval/", run.evaluate(run.data.train, numbers, 4))
    assert before["eval/loss"] == pytest.approx(math.log(2), abs=1e-6) and abs(before["eval/reward_margin"]) < 1e-5
    assert before["eval/targets"] == before["eval/rows"] == len(numbers)
    list(run.steps())
    evaluation = run.evaluate(run.data.train, numbers, 4)
    after = quality.measures("eval/", evaluation)
    margins = evaluation.outputs[:, 0] - evaluation.outputs[:, 1]
    assert after["eval/loss"] < 0.6 and after["eval/preference_accuracy"] == (margins > 0).mean() > 0.7
    assert after["eval/reward_margin"] == pytest.approx(margins.mean()) and after["eval/reward_margin"] > 0.1
    assert not {"eval/perplexity", "eval/bits_per_byte", "eval/extractable"} & after.keys()


def test_fields_of_other_tasks_are_refused(words):
    for more, told in (
        (["data.response=chosen"], "data.response does not belong to task=preference"),
        (["data.chosen=null"], "data.chosen: name the columns of both answers"),
        (["data.chosen=preferred"], "no column 'preferred' (data.chosen)"),
        (["data.prompt=null"], "the chosen answer is a text, not a conversation"),
        (["preference.beta=0"], "preference.beta"),
        (["data.pack=true"], "data.pack"),
    ):
        with pytest.raises(UserError) as caught:
            built(words, *more)
        assert told in caught.value.lines[0]
    with pytest.raises(UserError, match="preference does not belong to task=instruction"):
        load(["recipe=tests/finetune.yaml", "task=instruction", "preference.beta=0.5"])


@pytest.mark.process
def test_two_ranks_have_the_gradient_of_one(hfbsz, words, unsplit, tmp_path):
    model = next(word for word in words if word.startswith("model.path=")).partition("=")[2]
    preset = tmp_path / "loaded.yaml"
    preset.write_text(f"path: {model}\n")
    others = [word for word in words if not word.startswith("model.path=")]
    for config in ("cpu_2proc.yaml", "fsdp2_cpu_2proc.yaml"):
        out = tmp_path / config
        out.mkdir()
        given = [out, preset, "--", *others, "batch.micro_max=2", "measure.noise.every=1step"]
        ended = hfbsz(str(ROOT / "tests" / "first_steps.py"), *given, config=config)
        assert ended.code == 0, ended.err
        weights = np.load(out / "loaded-fp32.npz")
        names = [name for name, _ in AutoModelForCausalLM.from_pretrained(model).named_parameters()]
        gradient = np.concatenate([weights[name].ravel().astype(np.float64) for name in names])
        assert apart(gradient, unsplit[0].gradient) < 1e-6
        noises = [json.loads((out / f"loaded-fp32-{rank}.json").read_text())["noise"] for rank in (0, 1)]
        assert noises[0] == noises[1]
        assert noises[0]["per_sequence"]["noise"] == pytest.approx(unsplit[2]["per_sequence"]["noise"], rel=1e-3)


@pytest.mark.process
def test_overfitting_on_pairs_is_detected_dated_and_stopped(hfbsz, words, tmp_path):
    """The chosen answer begins with `def `, but in a quarter of the pairs it is the other one."""
    rows = [
        {**row, **{side: f"{start}{row[side]}" for side, start in zip(("chosen", "rejected"), starts, strict=True)}}
        for number, row in enumerate(pairs(200))
        for starts in [("def ", "if ") if number % 4 else ("if ", "def ")]
    ]
    (tmp_path / "noisy.jsonl").write_text("\n".join(map(json.dumps, rows)))
    noisy = [f"data.files={tmp_path / 'noisy.jsonl'}", "data.validation=50%", "duration=30epochs", "optim.lr=3e-3"]
    noisy += ["eval.every=1epochs", "eval.rows=100", "eval.patience=9", "schedule.shape=constant"]
    noisy.append("checkpoint.save=best")
    ended = hfbsz("finetune.py", *words, *noisy, f"output_dir={tmp_path / 'run'}")
    assert ended.code == 0, ended.err
    losses = {record["train/global_step"]: record["eval/loss"] for record in records(tmp_path / "run", "eval")}
    last, status = records(tmp_path / "run", "eval")[-1], read_status(tmp_path / "run")
    best = min(losses, key=lambda step: losses[step])
    assert 0 < best == last["overfit/best_step"] == last["overfit/onset_step"] and last["overfit/gap"] > 0.1
    assert losses[best] < math.log(2) and list(losses).index(last["train/global_step"]) - list(losses).index(best) == 9
    assert (status["state"], status["cause"]) == ("finished", "patience") and "overfitting since step" in ended.out
    assert records(tmp_path / "run", "final")[0]["model/step"] == best


@pytest.mark.process
def test_a_resumed_run_is_the_unbroken_one(hfbsz, words, tmp_path):
    """A run that is cut resumes with the same reference; pages and cards have the metrics of pairs."""
    more = ["eval.every=2steps", "checkpoint.every=2steps", "checkpoint.keep=9", "eval.rows=12", "log.page=true"]
    whole = hfbsz("finetune.py", *words, *more, f"output_dir={tmp_path / 'whole'}")
    assert whole.code == 0, whole.err
    assert "validation loss" in whole.out and "preference accuracy" in whole.out and "reward margin" in whole.out
    evaluations = records(tmp_path / "whole", "eval")
    assert {"eval/preference_accuracy", "eval/reward_margin", "overfit/gap"} <= evaluations[-1].keys()
    assert evaluations[0]["eval/loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert "preference accuracy" in (tmp_path / "whole" / "README.md").read_text()
    assert "reward margin" in (tmp_path / "whole" / "report.html").read_text().lower()
    other = [f"output_dir={tmp_path / 'resumed'}", f"resume={tmp_path / 'whole' / 'checkpoint-2'}"]
    resumed = hfbsz("finetune.py", *words, *more, *other, env={"HFBSZ_CACHE": tmp_path / "cache"})  # computed again
    assert resumed.code == 0 and "step 2" in resumed.out, resumed.err
    assert same_weights(tmp_path / "resumed", tmp_path / "whole")
    assert records(tmp_path / "resumed", "eval")[-1]["eval/loss"] == evaluations[-1]["eval/loss"]


def test_the_utilization_counts_the_head_for_the_answers_only(words):
    run = built(words)
    batch = run.task.collate([run.data.train[index] for index in range(len(run.data.train))])
    share = int((batch.labels != IGNORED).sum()) / batch.tokens
    assert 0.3 < share < 0.8 and learned_share(run) == pytest.approx(share, rel=0.03)
