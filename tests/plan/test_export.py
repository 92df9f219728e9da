"""The plan in the words of other trainers: their names, their values, and what they lose."""

import dataclasses
import shlex

import pytest
import torch
import yaml
from conftest import ROOT
from transformers import TrainingArguments, get_scheduler

from hfbsz.commands.plan import main
from hfbsz.errors import UserError
from hfbsz.plan.export import export, training_arguments
from hfbsz.plan.plan import Facts
from hfbsz.plan.resolve import resolve
from hfbsz.recipe.load import load

FIXED = ["recipe=small_batch_pretrain", "batch.size=32seq", "batch.micro_max=4", "scaling.reference=8seq"]
PEERS = ("trainer", "trl", "axolotl", "torchtitan", "megatron", "litgpt")


@pytest.fixture(autouse=True)
def _here(monkeypatch):
    monkeypatch.chdir(ROOT)


def plan_of(*words, world_size=2):
    return resolve(load([*FIXED, *words]).recipe, world_size, Facts(rows=20_000))


@pytest.mark.parametrize("shape", ["constant", "linear", "cosine", "wsd"])
@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_trainer_has_the_rates_of_the_plan(tmp_path, shape, floor):
    """Trainer sets the rate of a step at its beginning, the plan at its end: one step apart."""
    plan = plan_of(f"schedule.shape={shape}", f"schedule.floor={floor}", "duration=3200seq", "schedule.warmup=320seq",
                   "schedule.decay=640seq")  # fmt: skip
    settings, missing = training_arguments(plan)
    floored = shape == "wsd" and floor > 0  # whose warmup starts at the floor
    assert len(missing) == floored and all("a warmup from 0" in line for line in missing)
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, **settings)
    assert arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * 2 == 32
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], arguments.learning_rate)
    scheduler = get_scheduler(
        arguments.lr_scheduler_type, optimizer, arguments.warmup_steps, arguments.max_steps,
        scheduler_specific_kwargs=arguments.lr_scheduler_kwargs,
    )  # fmt: skip
    theirs = []
    for _ in range(arguments.max_steps):
        optimizer.step()
        scheduler.step()
        theirs.append(optimizer.param_groups[0]["lr"])
    ours = [step.learning_rate for step in plan.walk()]
    start = 9 if floored else 0
    assert len(ours) == 100 and theirs[start:] == pytest.approx(ours[start:], rel=1e-6, abs=1e-12)


def test_the_values_are_those_of_the_plan():
    plan = plan_of()
    settings, _ = training_arguments(plan)
    step = plan.step(0)
    assert settings["learning_rate"] == plan.peak_rate(32) and settings["weight_decay"] == step.weight_decay
    assert (settings["adam_beta1"], settings["adam_beta2"], settings["adam_epsilon"]) == (*plan.betas, plan.eps)
    assert settings["max_steps"] == plan.steps
    assert settings.keys() <= {field.name for field in dataclasses.fields(TrainingArguments)}
    evaluated = eval(export(plan, "trainer").text, {"TrainingArguments": dict})  # what a person would paste
    assert evaluated == settings
    assert eval(export(plan, "trl").text, {"SFTConfig": dict}) == {**settings, "max_length": 128, "packing": True}


def test_yaml_of_axolotl_and_litgpt_keeps_numbers_as_numbers():
    plan = plan_of("optim.eps=1e-8")
    axolotl, litgpt = (yaml.safe_load(export(plan, peer).text) for peer in ("axolotl", "litgpt"))
    rate, decay = plan.peak_rate(32), plan.step(0).weight_decay
    assert (axolotl["learning_rate"], axolotl["adam_epsilon"], axolotl["weight_decay"]) == (rate, 1e-8, decay)
    assert (axolotl["micro_batch_size"], axolotl["gradient_accumulation_steps"]) == (4, 4)
    assert (axolotl["lr_scheduler"], axolotl["cosine_min_lr_ratio"]) == ("cosine", 0.1)
    assert litgpt["train"]["global_batch_size"] == 32 and litgpt["train"]["max_tokens"] == plan.total * 128
    assert litgpt["optimizer"]["init_args"] == {
        "lr": rate,
        "weight_decay": decay,
        "betas": list(plan.betas),
        "eps": 1e-8,
    }


def test_torchtitan_and_megatron():
    plan = plan_of("schedule.shape=wsd", "schedule.decay=20%")
    names = ("TrainingConfig", "ParamGroupConfig", "LRSchedulersContainer", "OptimizersContainer")
    calls = {name: type(name, (dict,), {"Config": dict}) for name in names}
    found = eval(f"dict({export(plan, 'torchtitan').text})", calls)
    assert found["training"]["global_batch_size"] == 32 and found["training"]["steps"] == plan.steps
    assert found["lr_scheduler"]["decay_ratio"] == pytest.approx(0.2, abs=0.01)
    assert found["optimizer"]["param_groups"][0]["optimizer_kwargs"]["lr"] == plan.peak_rate(32)
    words = shlex.split(export(plan, "megatron").text.replace("\\\n", " "))
    flags = dict(zip(words[::2], words[1::2], strict=True))
    assert int(flags["--global-batch-size"]) == 32 and int(flags["--train-samples"]) == plan.total
    assert float(flags["--lr"]) == plan.peak_rate(32) and flags["--lr-decay-style"] == "WSD"


def test_megatron_takes_the_ramp_and_says_that_the_rate_does_not_follow():
    plan = plan_of("batch.size=null", "batch.ramp=0:8 50%:16")
    exported = export(plan, "megatron")
    tokens = round(plan.phases[1].clock * plan.tokens_per_row)
    assert f'--step-batch-size-schedule "0:8 {tokens}:16"' in exported.text
    assert any("a rate that follows the batch" in line for line in exported.missing)


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["optim.average=0.1"], "optim.average"),
        (["optim.name=lamb"], "optim.name=lamb"),
        (["optim.name=adafactor"], "optim.name=adafactor"),
        (["precision=fp64"], "precision=fp64"),
        (["batch.size=64seq", "batch.start=8seq", "batch.ramp=doubling:75%"], "8"),
        (["schedule.shape=quarter_cosine"], "quarter_cosine"),
    ],
)
def test_what_a_peer_cannot_express_is_named(peer, words, said):
    assert any(said in line for line in export(plan_of(*words), peer).missing)


def test_an_unknown_peer_is_refused():
    with pytest.raises(UserError, match="did you mean 'trainer'"):
        export(plan_of(), "trainr")


def test_the_command_prints_settings_after_what_is_missing(capsys):
    assert main([*FIXED, "optim.average=0.1", "export=litgpt"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("# not expressed: ") and "train:" in out


def test_preference_pairs_are_exported_to_trl_alone():
    words = ["task=preference", "data.pack=false", "data.chosen=a", "data.rejected=b", "data.prompt=p"]
    plan = resolve(load([*FIXED, *words, "preference.beta=5", "preference.length_normalized=true"]).recipe, 2,
                   Facts(rows=20_000, tokens_per_row=90.0))  # fmt: skip
    settings = eval(export(plan, "trl").text, {"DPOConfig": dict})
    assert settings["loss_type"] == "sigmoid_norm" and settings["beta"] == 5 and "packing" not in settings
    for peer in PEERS:
        if peer != "trl":
            with pytest.raises(UserError, match=f"export={peer}: task=preference would train there as a language"):
                export(plan, peer)
    from hfbsz.trainer.arguments import training_arguments as arguments_of

    with pytest.raises(UserError, match="training_arguments: task=preference"):
        arguments_of(plan, output_dir="out")
