"""`planned(Trainer)`: transformers' Trainer, or a subclass such as TRL's SFTTrainer, that carries out a plan.

The batch may grow during the run: each step trains on the rows of the plan, accumulated over micro-batches, at the
rate and weight decay of the plan. The loader yields all rows of a step on a rank, and `training_step` splits them; so
Trainer's own loop, callbacks, logging and checkpoints stay as they are. Losses, gradients and noise scale are those of
hfbsz's loop on the same rows.
"""

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from hfbsz.data.batches import Batch
from hfbsz.data.order import Order
from hfbsz.errors import UserError
from hfbsz.measure.noise import NoiseCollector
from hfbsz.plan.plan import Plan, PlannedStep
from hfbsz.records.record import Clock
from hfbsz.report.wandb.trainer_axis import TokensAxis
from hfbsz.train.loop import seed_of
from hfbsz.trainer.arguments import check_precision, with_plan

_POSITIONS = ("model", "args")  # of Trainer; its further arguments are given by name


def planned(trainer: type[Trainer] = Trainer) -> type[Trainer]:
    """A subclass of `trainer` that takes the keyword `plan` and carries it out.

    Its `args` are ordinary TrainingArguments; those that the plan determines are set from it, and refused with a
    UserError where they contradict it. The training rows are a map-style dataset of as many rows as the plan knows.
    """
    return type(f"Planned{trainer.__name__}", (_Planned, trainer), {"__doc__": f"{trainer.__name__} with a plan."})


class PlanScheduler(torch.optim.lr_scheduler.LRScheduler):
    """The learning rate and weight decay of every step of a plan. Its state also has that of the noise scale."""

    def __init__(self, optimizer: torch.optim.Optimizer, plan: Plan) -> None:
        self.steps = list(plan.walk())
        self.decaying = [group.get("weight_decay", 0.0) != 0 for group in optimizer.param_groups]
        self.noise: NoiseCollector | None = None
        self.saved_noise: Mapping[str, Any] | None = None
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:  # type: ignore[override]
        """The rate of the next step, for every parameter group; sets their weight decay."""
        step = self.steps[min(self.last_epoch, len(self.steps) - 1)]
        for group, decays in zip(self.optimizer.param_groups, self.decaying, strict=True):
            group["weight_decay"] = step.weight_decay if decays else 0.0
        return [step.learning_rate] * len(self.optimizer.param_groups)

    def state_dict(self) -> dict[str, Any]:
        """Plain data: the number of the next step, and the state of the noise scale."""
        noise = None if self.noise is None else self.noise.to_dict()
        return {"last_epoch": self.last_epoch, "noise": noise}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the result of `state_dict`."""
        self.last_epoch, self.saved_noise = state_dict["last_epoch"], state_dict["noise"]
        rates: Any = self.get_lr()
        self._last_lr = rates
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


class Windows:
    """The rows of every step on one rank, micro-batch by micro-batch: a batch sampler."""

    def __init__(self, plan: Plan, rows: int, rank: int) -> None:
        self.plan, self.order, self.rank = plan, Order(rows, plan.recipe.seed), rank

    def __len__(self) -> int:
        return self.plan.steps

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.plan.walk():
            numbers = self.order.take(step.clock, step.global_batch)
            yield numbers.reshape(-1, self.plan.world_size, step.micro_batch or 1)[:, self.rank].ravel().tolist()


class _Planned(Trainer):
    def __init__(self, *args: Any, plan: Plan, **kwargs: Any) -> None:
        self.plan = plan
        if "train_dataset" in kwargs:
            _count(kwargs["train_dataset"], plan)
        kwargs |= dict(zip(_POSITIONS, args, strict=False))
        if len(args) > len(_POSITIONS):
            raise UserError("a planned Trainer takes model and args by position, and all other arguments by name")
        if not isinstance(kwargs.get("args"), TrainingArguments):
            raise UserError("args: a planned Trainer needs TrainingArguments, such as TrainingArguments('out')")
        super().__init__(**{**kwargs, "args": with_plan(kwargs["args"], plan)})
        check_precision(self.accelerator.mixed_precision, plan)
        self._rows = _count(self.train_dataset, plan)
        self._noise: NoiseCollector | None = None
        self._measured: dict[str, float] = {}
        self._divides: bool | None = None  # whether the loss is divided by num_items_in_batch; None: not known yet
        self._new_tokens = 0  # of this rank, since they were last added to the state
        self.add_callback(TokensAxis())

    def get_train_dataloader(self) -> DataLoader:
        collate = self.data_collator
        rows: Any = self.train_dataset
        if hasattr(rows, "column_names"):  # of the datasets package
            rows = self._remove_unused_columns(rows, description="training")
        else:
            collate = self._get_collator_with_removed_columns(collate, description="training")
        return DataLoader(
            rows,
            batch_sampler=Windows(self.plan, self._rows, self.args.process_index),  # type: ignore[arg-type]
            collate_fn=collate,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory and torch.cuda.is_available(),
            persistent_workers=self.args.dataloader_persistent_workers,
        )

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        if self.lr_scheduler is None:
            given: Any = self.optimizer if optimizer is None else optimizer
            scheduler: Any = PlanScheduler(given, self.plan)
            self.lr_scheduler, self._created_lr_scheduler = scheduler, True  # a second train() makes a new one
            self._noise, self._measured = None, {}
        return self.lr_scheduler

    def get_total_train_batch_size(self, args: Any) -> int:
        """The mean batch of the plan, for Trainer's count of samples."""
        mean: Any = sum(step.global_batch for step in self.plan.walk()) / self.plan.steps
        return mean  # type: ignore[no-any-return]

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward passes over the micro-batches of a step."""
        scheduler, step = self._scheduler(), self.plan_step
        model.train()
        optimizer: Any = self.optimizer
        if callable(getattr(optimizer, "train", None)):
            optimizer.train()
        self._new_tokens += _tokens(inputs)
        chunks = list(_chunks(self._prepare_inputs(inputs), step))
        if num_items_in_batch is not None and not self._is_divided(model, chunks[0], num_items_in_batch):
            num_items_in_batch = None  # a mean of its own, which Trainer takes for a share of the sum
        if num_items_in_batch is None and chunks[0]["labels"].ndim > 1:
            name = type(self.accelerator.unwrap_model(model)).__name__
            raise UserError(
                f"{name} does not divide its loss by num_items_in_batch, so that accumulation would weigh tokens "
                "unequally: pass compute_loss_func"
            )
        self._noise = scheduler.noise = self._noise or self._new_noise(model, scheduler)
        at = Clock(self.state.global_step + 1, step.next_clock)
        measures = self._noise is not None and self._is_logged(step, at) and self._noise.due(at)
        if measures and self._noise is not None:
            self._noise.before_window(model, step, at)
        total = torch.zeros((), device=self.args.device)
        for index, chunk in enumerate(chunks):
            torch.manual_seed(seed_of(self.plan.recipe.seed, step.clock, self.args.process_index, index))
            labels, last = chunk["labels"], index == len(chunks) - 1  # compute_loss may take the labels out
            with nullcontext() if last else self.accelerator.no_sync(model=model):
                with self.compute_loss_context_manager():
                    loss: Any = self.compute_loss(model, chunk, num_items_in_batch=num_items_in_batch)
                if num_items_in_batch is None:  # one target a row, in chunks of equal size
                    loss = loss / len(chunks)
                self.accelerator.backward(loss)
            total = total + loss.detach()
            if measures and self._noise is not None:
                self._noise.after_micro(index, Batch({}, labels, int((labels != -100).sum()), labels.numel()))
        if measures and self._noise is not None:
            self._measured = self._noise.after_window()
        return total

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log the batch and the noise scale too."""
        if "loss" in logs:
            self._count_tokens()
            step = self._scheduler().steps[max(0, self.state.global_step - 1)]
            logs = {**logs, "batch_global": step.global_batch, **self._measured}
        super().log({**logs, "num_input_tokens_seen": self.state.num_input_tokens_seen}, *args, **kwargs)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        self._count_tokens()
        super()._save_checkpoint(*args, **kwargs)

    def _count_tokens(self) -> None:
        """Add the tokens since the last call to the state, over all ranks, which all call it."""
        count = torch.tensor(self._new_tokens, device=self.args.device)
        self.state.num_input_tokens_seen += int(self.accelerator.reduce(count, "sum"))
        self._new_tokens = 0

    def _is_divided(self, model: Any, chunk: dict[str, Any], items: Any) -> bool:
        """Whether the loss is divided by `items`: found out once; a model that takes any keyword looks so."""
        if self._divides is None:
            losses = []
            for count in (items, 2 * items):
                torch.manual_seed(0)
                with torch.no_grad(), self.compute_loss_context_manager():
                    loss: Any = self.compute_loss(model, dict(chunk), num_items_in_batch=count)
                losses.append(float(loss))
            self._divides = abs(losses[0] - 2 * losses[1]) < 0.1 * abs(losses[0])
        return self._divides

    @property
    def plan_step(self) -> PlannedStep:
        """The step of the plan that is trained next."""
        return self._scheduler().steps[self.state.global_step]

    def _scheduler(self) -> PlanScheduler:
        scheduler: Any = self.lr_scheduler
        scheduler = getattr(scheduler, "scheduler", scheduler)  # inside that of accelerate
        if not isinstance(scheduler, PlanScheduler):
            raise UserError("optimizers=(…, scheduler): the plan has the schedule: pass (optimizer, None)")
        return scheduler

    def _is_logged(self, step: PlannedStep, at: Clock) -> bool:
        return self.plan.due(self.plan.recipe.log.every, at.step, step.clock, step.next_clock)

    def _new_noise(self, model: Any, scheduler: PlanScheduler) -> NoiseCollector | None:
        if self.plan.recipe.measure.noise.method == "off":
            return None
        noise = NoiseCollector(self.plan, model, self.args.world_size, scheduler.saved_noise)
        self._measured = noise.values()  # of a checkpoint
        return noise


def _tokens(inputs: Mapping[str, Any]) -> int:
    """Input tokens of collated rows on the host, without padding where a mask tells it."""
    mask, tokens = inputs.get("attention_mask"), inputs.get("input_ids")
    if isinstance(mask, torch.Tensor):
        return int(mask.sum())
    return tokens.numel() if isinstance(tokens, torch.Tensor) else 0


def _count(rows: Any, plan: Plan) -> int:
    """The number of training rows. Raises UserError if it is not known, or not that of the plan."""
    if not hasattr(rows, "__len__") or not hasattr(rows, "__getitem__"):
        raise UserError("train_dataset: a plan needs a map-style dataset, with a length")
    if plan.facts.rows is not None and plan.facts.rows != len(rows):
        raise UserError(f"train_dataset: it has {len(rows):,} rows, the plan is for {plan.facts.rows:,}")
    return len(rows)


def _chunks(inputs: Mapping[str, Any], step: PlannedStep) -> Iterator[dict[str, Any]]:
    """The micro-batches of the collated rows of a step. Raises UserError for tensors without one row per example."""
    size, count = step.micro_batch or 1, step.accumulation or 1
    for name, value in inputs.items():
        if isinstance(value, torch.Tensor) and (value.ndim == 0 or len(value) != size * count):
            raise UserError(
                f"{name}: {tuple(value.shape)} is not one row for each of {size * count} examples: what a padding-free "
                "collator joins cannot be split into micro-batches"
            )
    for index in range(count):
        part = slice(index * size, (index + 1) * size)
        yield {name: value[part] if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}
