"""Tokens as the axis of the W&B runs of transformers' Trainer."""

from typing import Any

from transformers import TrainerCallback

from hfbsz.report.wandb.reporter import AXIS


class TokensAxis(TrainerCallback):
    """Draws all curves of a W&B run over tokens, so that those of different batch sizes are comparable."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Define the axis, after transformers' own callback has started the W&B run."""
        if "wandb" in args.report_to and state.is_world_process_zero:
            import wandb

            if wandb.run is not None:
                wandb.define_metric("*", step_metric=AXIS)
