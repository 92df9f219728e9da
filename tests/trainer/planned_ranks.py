"""One rank of a planned Trainer, started by a launcher: `planned_ranks.py OUT WORD …`. Writes the losses of an unbroken
run and of one that is stopped and resumed."""

import copy
import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, TrainerCallback, TrainingArguments

import hfbsz
from hfbsz.trainer.planned import planned


class Stop(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 30:
            control.should_save = control.should_training_stop = True


def trained(one, folder, *callbacks, resume=False):
    """The losses of all steps on this rank, summed over ranks, and the logs."""
    rows = [torch.tensor(one.data.train[index]).long() for index in range(len(one.data.train))]
    model = AutoModelForCausalLM.from_config(copy.deepcopy(one.accelerator.unwrap_model(one.model).config))
    model.load_state_dict(one.accelerator.unwrap_model(one.model).state_dict())
    arguments = TrainingArguments(
        str(folder), use_cpu=True, report_to=[], logging_steps=1, disable_tqdm=True, save_strategy="no"
    )
    trainer = planned()(
        plan=one.plan, model=model, args=arguments, callbacks=list(callbacks), processing_class=one.tokenizer,
        train_dataset=[{"input_ids": row, "labels": row} for row in rows],
    )  # fmt: skip
    losses, step = [], trainer.training_step

    def training_step(*given):
        loss = step(*given)
        losses.append(float(trainer.accelerator.reduce(loss, "mean")))
        return loss

    trainer.training_step = training_step
    trainer.train(resume_from_checkpoint=resume or None)
    return losses, trainer.state.log_history


def main(out, *words):
    one = hfbsz.setup(hfbsz.load([*words, "precision=fp32"]).recipe)
    losses, logs = trained(one, f"{out}-a")
    trained(one, f"{out}-b", Stop())
    resumed, _ = trained(one, f"{out}-b", resume=True)
    noise = [log["noise/scale"] for log in logs if "noise/scale" in log][-1]
    if one.accelerator.is_main_process:
        Path(out).write_text(json.dumps({"losses": losses, "resumed": resumed, "noise": noise}))
    one.accelerator.wait_for_everyone()


if __name__ == "__main__":
    main(*sys.argv[1:])
