"""Twenty steps on pairs are those of TRL's DPOTrainer: losses and weights, with both losses and with accumulation."""

import json

import numpy as np
import pytest
import torch
from chats import CHATML, chat_tokenizer
from conftest import ROOT
from pairs import pairs
from small_models import small_model

from hfbsz.plan.export import export
from hfbsz.recipe.load import load
from hfbsz.train.setup import setup

pytestmark = pytest.mark.trl
trl = pytest.importorskip("trl", reason="TRL is not installed: pip install trl")
datasets = pytest.importorskip("datasets")

STEPS, BATCH = 20, 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trl")
    tokenizer = chat_tokenizer(CHATML)
    small_model(folder / "model", tokenizer=tokenizer, vocab_size=len(tokenizer))
    rows = [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "chosen": [{"role": "assistant", "content": row["chosen"]}],
            "rejected": [{"role": "assistant", "content": row["rejected"]}],
        }
        for row in pairs(60)
    ]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.mark.parametrize("normalized", [False, True])
def test_twenty_steps_are_those_of_trl(folder, tmp_path, monkeypatch, cache, normalized):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HFBSZ_CACHE", str(cache))
    words = [
        "recipe=tests/finetune.yaml", "task=preference", f"model.path={folder / 'model'}", "threads=1",
        f"data.files={folder / 'pairs.jsonl'}", "data.prompt=prompt", "data.chosen=chosen", "data.rejected=rejected",
        "data.sequence_length=200", "data.validation=20%", f"batch.size={BATCH}seq", "batch.micro_max=4",
        f"duration={STEPS}steps", "optim.lr=1e-3", "optim.betas=[0.9,0.999]", "optim.weight_decay=0.01",
        "schedule.shape=constant", "schedule.warmup=0%", "log.every=1steps", "log.wandb=off", "precision=fp32",
        f"preference.length_normalized={normalized}", f"preference.beta={5.0 if normalized else 0.1}",
    ]  # fmt: skip
    run = setup(load(words).recipe)
    numbers = run.windows().row_numbers(0, STEPS * BATCH).tolist()
    rows = [run.data.train[number] for number in numbers]
    ours = [step.loss for step in run.steps()]

    def texts(row):
        """A row in TRL's form, from the tokens."""
        length = int(np.argmax(row.chosen.labels >= 0))  # the prompt
        found = {"prompt": row.chosen.tokens[:length], "chosen": row.chosen.tokens[length:]}
        found["rejected"] = row.rejected.tokens[length:]
        return {
            name: [{"role": "user" if name == "prompt" else "assistant", "content": said(tokens)}]
            for name, tokens in found.items()
        }

    def said(tokens):
        text = run.tokenizer.decode(tokens.tolist()).removesuffix("<|im_start|>assistant\n")
        return text.removeprefix("<|im_start|>user\n").removesuffix("<|im_end|>\n")

    settings = eval(export(run.plan, "trl").text, {"DPOConfig": dict})
    assert settings["beta"] == (5.0 if normalized else 0.1)
    settings |= {"max_length": 201, "lr_scheduler_type": "constant", "bf16": False, "logging_steps": 1, "report_to": []}
    arguments = trl.DPOConfig(str(tmp_path), use_cpu=True, gradient_checkpointing=False, save_strategy="no", **settings)

    class InOrder(trl.DPOTrainer):
        def _get_train_sampler(self, *given):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    data = datasets.Dataset.from_list([texts(row) for row in rows])
    trainer = InOrder(str(folder / "model"), args=arguments, train_dataset=data, processing_class=run.tokenizer)
    ids = trainer.train_dataset[0]
    assert ids["prompt_ids"] + ids["chosen_ids"] == rows[0].chosen.tokens.tolist()
    assert ids["prompt_ids"] + ids["rejected_ids"] == rows[0].rejected.tokens.tolist()
    trainer.train()
    theirs = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(ours) == len(theirs) == STEPS and ours[-1] < 0.9 * ours[0]
    assert ours == pytest.approx(theirs, abs=3e-6)  # float32
    weights = dict(trainer.model.named_parameters())
    for name, weight in run.model.named_parameters():
        assert torch.allclose(weight, weights[name], rtol=0, atol=2e-5), name
