"""transformers' Trainer with a plan against hfbsz's own loop, on the same rows."""

import copy
import json
import math

import datasets
import pytest
import torch
from conftest import ROOT, TINY
from small_models import SIZE, small_config
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

import hfbsz
from hfbsz.data.order import Order
from hfbsz.errors import UserError
from hfbsz.measure.noise import NoiseCollector
from hfbsz.plan.plan import Facts
from hfbsz.plan.resolve import resolve
from hfbsz.recipe.load import load
from hfbsz.trainer.arguments import with_plan
from hfbsz.trainer.planned import planned

RAMP = ["data.pack=true", "batch.size=null", "batch.ramp=0:4 30%:8 60%:16", "batch.micro_max=2", "duration=460seq"]
RAMP += ["optim.lr=1e-2", "log.every=1step", "measure.noise.every=10steps"]


@pytest.fixture(autouse=True)
def _here(monkeypatch, cache):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HFBSZ_CACHE", str(cache))


def built(ragged, *words):
    return hfbsz.setup(load([TINY, f"data.files={ragged}", *RAMP, "precision=fp32", *words]).recipe)


def exact_loss(outputs, labels, num_items_in_batch):
    """The loss of transformers, which is always in float32, in the precision of the model."""
    logits = outputs.logits[:, :-1].flatten(0, 1)
    return torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), reduction="sum") / num_items_in_batch


class Losses(TrainerCallback):
    def __init__(self):
        self.logs = []

    def on_log(self, args, state, control, logs, **kwargs):
        self.logs.append(dict(logs))


class Stop(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True


def trainer_of(one, folder, *callbacks, double=False, kind=Trainer, **more):
    rows = [torch.tensor(one.data.train[index]).long() for index in range(len(one.data.train))]
    model = AutoModelForCausalLM.from_config(copy.deepcopy(one.model.config))  # to which Trainer adds a padding token
    model.load_state_dict(one.model.state_dict())
    arguments = TrainingArguments(
        str(folder), use_cpu=True, report_to=[], logging_steps=1, logging_nan_inf_filter=False, disable_tqdm=True,
        save_strategy="no",
    )  # fmt: skip
    return planned(kind)(
        plan=one.plan, model=model.double() if double else model, args=arguments, callbacks=[Losses(), *callbacks],
        train_dataset=[{"input_ids": row, "labels": row} for row in rows], processing_class=one.tokenizer,
        compute_loss_func=exact_loss if double else None, **more,
    )  # fmt: skip


def recorded(trainer):
    """The losses of all steps, which Trainer rounds when it logs them."""
    found, step = [], trainer.training_step

    def training_step(*given):
        loss = step(*given)
        found.append(float(loss))
        return loss

    trainer.training_step = training_step
    return found


def logs_of(trainer):
    callback = next(each for each in trainer.callback_handler.callbacks if isinstance(each, Losses))
    return [log for log in callback.logs if "loss" in log]


@pytest.mark.parametrize(("double", "tolerance"), [(False, 1e-5), (True, 1e-9)])
def test_a_ramp_of_three_batches_is_that_of_the_loop(ragged, tmp_path, double, tolerance):
    one = built(ragged, *(["precision=fp64"] if double else []))
    assert len({step.global_batch for step in one.plan.walk()}) == 3 and one.plan.steps >= 50
    trainer = trainer_of(one, tmp_path, double=double)
    found = recorded(trainer)
    trainer.train()
    noise = NoiseCollector(one.plan, one.model, 1)
    steps, logs = list(one.steps(collectors=[noise])), logs_of(trainer)
    assert found == pytest.approx([step.loss for step in steps], rel=tolerance)
    assert [log["batch_global"] for log in logs] == [step.global_batch for step in steps]
    assert [log["learning_rate"] for log in logs] == pytest.approx([step.learning_rate for step in steps], rel=1e-9)
    assert [log["grad_norm"] for log in logs] == pytest.approx([step.grad_norm for step in steps], rel=100 * tolerance)
    for name in ("noise/scale", "noise/norm_scale"):
        assert logs[-1][name] == pytest.approx(noise.values()[name], rel=100 * tolerance), name
    tokens = sum(step.global_batch for step in steps) * (one.plan.tokens_per_row + 1)  # rows have one token more
    assert logs[-1]["num_input_tokens_seen"] == tokens


def test_a_resumed_run_is_the_unbroken_one(ragged, tmp_path):
    """In the middle of the ramp, with the noise scale, bit for bit."""
    one = built(ragged)
    unbroken, stopped, resumed = trainer_of(one, tmp_path / "a"), trainer_of(one, tmp_path / "b", Stop(30)), None
    whole, first = recorded(unbroken), recorded(stopped)
    unbroken.train()
    stopped.train()
    resumed = trainer_of(one, tmp_path / "b")
    rest = recorded(resumed)
    resumed.train(resume_from_checkpoint=True)
    assert len(first) == 30 and first + rest == whole
    for name, weight in unbroken.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], weight), name
    kept = ("noise/scale", "learning_rate", "num_input_tokens_seen")
    for one, other in zip(logs_of(unbroken)[30:], logs_of(resumed), strict=True):
        assert [one.get(name) for name in kept] == [other.get(name) for name in kept]


def test_a_second_call_of_train_begins_anew(ragged, tmp_path):
    one = built(ragged, "batch.ramp=null", "batch.size=4seq", "duration=40seq")
    trainer = trainer_of(one, tmp_path)
    trainer.train()
    first = [log["learning_rate"] for log in logs_of(trainer)]
    trainer.train()
    assert [log["learning_rate"] for log in logs_of(trainer)][len(first) :] == first


@pytest.mark.parametrize("micro", [8, 2])
def test_a_classifier_whose_loss_is_a_mean_is_accumulated_as_a_mean(ragged, tmp_path, micro):
    """BERT takes num_items_in_batch and ignores it."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(small_config("bert", num_labels=2)).eval()
    rows = [{"input_ids": torch.randint(3, SIZE, (12,)), "labels": index % 2} for index in range(16)]
    words = [TINY, "data.pack=true", "batch.size=8seq", f"batch.micro_max={micro}", "duration=16seq", "log.every=1step"]
    plan = resolve(load([*words, "precision=fp32", "optim.lr=1e-9"]).recipe, 1, Facts(rows=16))
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, report_to=[], logging_steps=1, disable_tqdm=True)
    trainer = planned()(plan=plan, model=model, args=arguments, train_dataset=rows, callbacks=[Losses()])
    model.train = lambda mode=True: model  # no dropout
    found = recorded(trainer)
    trainer.train()
    with torch.no_grad():
        expected = [
            float(model(input_ids=torch.stack([rows[i]["input_ids"] for i in part]),
                        labels=torch.tensor([rows[i]["labels"] for i in part])).loss)
            for part in (Order(16, plan.recipe.seed).take(start, 8) for start in (0, 8))
        ]  # fmt: skip
    assert found == pytest.approx(expected, rel=1e-4)


def test_what_contradicts_the_plan_is_refused(ragged, tmp_path):
    one = built(ragged)
    fixed = resolve(load([TINY, "data.pack=true", "batch.size=8seq"]).recipe, 1, Facts(rows=400))
    for plan, given, said in (
        (one.plan, {"learning_rate": 0.5}, r"learning_rate=0\.5: the plan sets it at every step of its ramp"),
        (fixed, {"learning_rate": 0.5}, r"learning_rate=0\.5 contradicts the plan, which has"),
        (one.plan, {"max_steps": 7}, f"max_steps=7 contradicts the plan, which has {one.plan.steps}"),
        (one.plan, {"bf16": True}, "the plan computes in fp32: set bf16=False"),
        (one.plan, {"fp16": True}, "leave fp16 out"),
    ):
        with pytest.raises(UserError, match=said):
            with_plan(TrainingArguments(str(tmp_path), use_cpu=True, **given), plan)
    with_plan(TrainingArguments(str(tmp_path), use_cpu=True, max_steps=one.plan.steps), one.plan)
    arguments = TrainingArguments(str(tmp_path), use_cpu=True)
    assert with_plan(arguments, one.plan).max_steps == one.plan.steps and arguments.max_steps == -1


@pytest.mark.parametrize(
    ("words", "world", "said"),
    [
        ([], 2, "the plan is for 2 processes"),
        (["optim.average=0.1"], 1, "optim.average"),
        (["optim.name=muon"], 1, r"optim\.name=muon"),
        (["optim.name=adafactor"], 1, r"optim\.name=adafactor"),
        (["precision=bf16"], 1, "set bf16=True"),
        (["batch.size=16seq", "batch.start=4seq", "batch.ramp=noise"], 1, "knows all batches"),
        (["data.pack=false", "batch.micro_tokens=200", "batch.ramp=null", "batch.size=8seq"], 1, "random order"),
    ],
)
def test_what_a_planned_trainer_cannot_do_is_refused(tmp_path, words, world, said):
    plan = resolve(load([TINY, *RAMP, *words]).recipe, world, Facts(rows=400))
    with pytest.raises(UserError, match=said):
        with_plan(TrainingArguments(str(tmp_path), use_cpu=True), plan)


def test_rows_of_another_number_and_streams_are_refused(ragged, tmp_path):
    one = built(ragged)
    rows = [{"input_ids": torch.arange(5), "labels": torch.arange(5)}]
    for given, said in ((rows, "it has 1 rows"), (iter(rows), "map-style")):
        with pytest.raises(UserError, match=said):
            planned()(
                plan=one.plan,
                model=one.model,
                args=TrainingArguments(str(tmp_path), use_cpu=True),
                train_dataset=given,
                data_collator=torch.utils.data.default_collate,
            )


def test_model_and_arguments_may_be_given_by_position(ragged, tmp_path):
    one = built(ragged, "batch.ramp=null", "batch.size=4seq", "duration=8seq")
    rows = [torch.tensor(one.data.train[index]).long() for index in range(len(one.data.train))]
    given = (one.model, TrainingArguments(str(tmp_path), use_cpu=True, report_to=[]))
    trainer = planned()(*given, plan=one.plan, train_dataset=[{"input_ids": row, "labels": row} for row in rows])
    assert trainer.model is one.model and trainer.args.max_steps == one.plan.steps
    with pytest.raises(UserError, match="all other arguments by name"):
        planned()(*given, None, plan=one.plan)
    with pytest.raises(UserError, match="needs TrainingArguments"):
        planned()(one.model, plan=one.plan)


def test_a_model_whose_loss_is_a_mean_of_its_own_is_refused(ragged, tmp_path):
    one = built(ragged)
    trainer = trainer_of(one, tmp_path)
    trainer.model_accepts_loss_kwargs = False
    with pytest.raises(UserError, match="pass compute_loss_func"):
        trainer.train()


def test_rows_that_a_collator_joined_are_refused(ragged, tmp_path):
    def join(rows):
        flat = torch.cat([row["input_ids"] for row in rows])[None]
        return {"input_ids": flat, "labels": flat}

    one = built(ragged, "batch.ramp=null", "batch.size=4seq")
    trainer = trainer_of(one, tmp_path, data_collator=join)
    with pytest.raises(UserError, match="cannot be split into micro-batches"):
        trainer.train()


def test_arguments_of_a_stock_trainer(tmp_path):
    facts = Facts(rows=400)
    fixed = resolve(load([TINY, "data.pack=true", "batch.size=8seq", "batch.micro_max=2"]).recipe, 1, facts)
    arguments = hfbsz.training_arguments(fixed, output_dir=str(tmp_path), use_cpu=True, logging_steps=3)
    assert (arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps) == (2, 4)
    assert arguments.logging_steps == 3 and arguments.learning_rate == fixed.peak_rate(8)
    with pytest.raises(UserError, match=r"weight_decay=0\.5 contradicts the plan"):
        hfbsz.training_arguments(fixed, output_dir=str(tmp_path), weight_decay=0.5)
    with pytest.raises(UserError, match=r"Trainer cannot express batch\.ramp"):
        hfbsz.training_arguments(resolve(load([TINY, *RAMP]).recipe, 1, facts), output_dir=str(tmp_path))


def test_two_processes_are_one(hfbsz, ragged, tmp_path):
    """tests/trainer/planned_ranks.py on one and two processes, and a run that is stopped and resumed on two."""
    words = [TINY, f"data.files={ragged}", *RAMP]
    results = {}
    for processes in (1, 2):
        out = tmp_path / f"{processes}.json"
        script = str(ROOT / "tests" / "trainer" / "planned_ranks.py")
        ended = hfbsz(script, str(out), *words, processes=processes)
        assert ended.code == 0, ended.err
        results[processes] = json.loads(out.read_text())
    assert results[2]["losses"] == pytest.approx(results[1]["losses"], rel=1e-5)
    assert results[2]["noise"] == pytest.approx(results[1]["noise"], rel=1e-3)
    assert results[2]["resumed"] == results[2]["losses"][30:]


def test_trl_trains_with_a_plan(ragged, tmp_path):
    trl = pytest.importorskip("trl")
    one = built(ragged, "batch.ramp=0:4 30%:8", "duration=100seq")
    texts = [{"text": one.tokenizer.decode(one.data.train[index])} for index in range(len(one.data.train))]
    arguments = trl.SFTConfig(str(tmp_path), use_cpu=True, report_to=[], max_length=32, bf16=False)
    trainer = planned(trl.SFTTrainer)(plan=one.plan, model=one.model, args=arguments,
                                      train_dataset=datasets.Dataset.from_list(texts),
                                      processing_class=one.tokenizer)  # fmt: skip
    found = recorded(trainer)
    trainer.train()
    assert len(found) == one.plan.steps and all(map(math.isfinite, found))


def test_the_axis_of_wandb_is_tokens(ragged, tmp_path, monkeypatch):
    wandb, defined = pytest.importorskip("wandb"), []
    monkeypatch.setattr(wandb, "run", object())
    monkeypatch.setattr(wandb, "define_metric", lambda name, **more: defined.append((name, more)))
    one = built(ragged, "batch.ramp=null", "batch.size=4seq", "duration=8seq")
    trainer = trainer_of(one, tmp_path)
    trainer.args.report_to = ["wandb"]
    trainer.train()
    assert defined == [("*", {"step_metric": "train/num_input_tokens_seen"})]
