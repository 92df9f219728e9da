"""Models of a run as artifacts of W&B, and its lineage: the data set and the model that it started from.

What is sent follows from the run's folder alone, so that `hfbsz sync` sends the same later. Names and aliases are those
of transformers' Trainer: `model-<run id>`, `final_model`, `checkpoint_global_step_<step>`, `epoch_<epochs>`.
"""

import json
import math
import os
import shutil
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfbsz.recipe.fields import Recipe
from hfbsz.records.evaluations import LOSS
from hfbsz.records.folder import recipe_of
from hfbsz.records.run_data import CLOCK, STEPS, RunData, is_number, read_run
from hfbsz.report.wandb.identity import Identity, checkpoint_alias, data_name

if TYPE_CHECKING:
    import wandb

LOADER_FOLDER = "pretrained"  # in a run's folder: configuration and tokenizer, for the weights of its checkpoints
_BESIDE_MODEL = ("README.md", "recipe.yaml", "plan.json")
_WEIGHTS, _COMPLETE = "model.safetensors", "complete.json"  # of a checkpoint
_HELD = ".artifacts.tmp"  # links to weights that are uploaded while their checkpoint may be deleted
_BYTES_PER_SECOND, _MOST_SECONDS = 5e6, 300.0  # what a run waits for an upload at its end


@dataclass(frozen=True)
class Model:
    """One version of the artifact of a run's models."""

    name: str
    aliases: tuple[str, ...]  # the first one belongs to this version alone
    metadata: Mapping[str, Any]
    files: Mapping[str, Path]  # by name in the artifact

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(path.stat().st_size for path in self.files.values())

    def draft(self) -> "wandb.Artifact":
        """The artifact, not sent yet. Its files are neither copied nor cached: they must stay until they are sent."""
        import wandb

        artifact = wandb.Artifact(self.name, type="model", metadata=dict(self.metadata))
        for name, path in self.files.items():
            artifact.add_file(str(path), name=name, policy="immutable", skip_cache=True)
        return artifact


def unloadable(recipe: Recipe) -> str | None:
    """Why the weights of the checkpoints of a recipe are not a model of their own; None if they are."""
    if recipe.model.lora is not None:
        return "model.lora: a checkpoint holds only the low-rank matrices"
    if recipe.optim.average is not None or recipe.optim.name == "schedule_free":
        return "a checkpoint holds the trained weights, not their average, which is evaluated and saved"
    return None


def models_of(run: RunData, identity: Identity) -> list[Model]:
    """The models of a run that has ended, oldest first: those of its checkpoints that are still there, as far as
    `log.artifacts` asks for them, and that of a finished run."""
    steps: Collection[int] = ()
    if identity.artifacts == "checkpoints":
        steps = sorted(int(path.name.partition("-")[2]) for path in _checkpoints(run.folder))
    elif identity.artifacts == "best" and (best := _best_step(run)) is not None and best != _saved_step(run):
        steps = [best]
    models = [checkpoint_model(run, identity, step) for step in steps]
    return [model for model in (*models, final_model(run, identity)) if model is not None]


def final_model(run: RunData, identity: Identity) -> Model | None:
    """The saved model of a finished run; None if there is none, or `log.artifacts` is off."""
    saved = run.status.get("saved", {})
    if identity.artifacts not in ("end", "best", "checkpoints") or run.status.get("state") != "finished" or not saved:
        return None
    files = _within(run.folder, [*saved, *_BESIDE_MODEL])
    final: Mapping[str, Any] = next((one for one in reversed(run.records) if one.get("event") == "final"), {})
    step = _saved_step(run)
    best = ("best",) if step is not None and step == _best_step(run) else ()
    metadata = _metadata(run, {**_evaluation(run, step), **final}) | {"final_model": True}
    return Model(identity.model, ("final_model", *best), metadata, files)


def checkpoint_model(run: RunData, identity: Identity, step: int, weights: Path | None = None) -> Model | None:
    """The weights of a checkpoint with what `from_pretrained` needs beside them; None if they are not there.

    `weights`: another path of the weights.
    """
    folder, loader = run.folder / f"checkpoint-{step}", run.folder / LOADER_FOLDER
    weights = weights or folder / _WEIGHTS
    if not weights.is_file() or not loader.is_dir():
        return None
    files = _within(loader, [path.name for path in sorted(loader.iterdir())])
    files |= {_WEIGHTS: weights, **_within(run.folder, ["recipe.yaml", "plan.json"])}
    evaluation = _evaluation(run, step)
    sequences = next((record[CLOCK] for record in run.records if record.get(STEPS) == step and CLOCK in record), None)
    epoch = () if sequences is None or not run.rows else (f"epoch_{round(sequences / run.rows, 2)}",)
    best = ("best",) if _best_step(run) == step else ()
    metadata = _metadata(run, {STEPS: step, **evaluation})
    return Model(identity.model, (checkpoint_alias(step), *epoch, *best), metadata, files)


class Artifacts:
    """Sends the models of a run, in W&B's thread."""

    def __init__(self, folder: Path, identity: Identity) -> None:
        self._folder, self._identity = folder, identity
        self._sent: list[wandb.Artifact] = []

    def record_inputs(self, plan: Mapping[str, Any], run: "wandb.Run") -> None:
        """Record the inputs of the run; offline, its config holds them. `plan`: the contents of plan.json."""
        if not run.offline:
            record_inputs(run, self._identity, plan, inputs_of(self._identity, plan))

    def hold(self, step: int) -> Path | None:
        """A link to the weights of a checkpoint, which stays when the checkpoint is deleted; None where the file system
        has no links."""
        held = self._folder / _HELD / f"{step}.safetensors"
        try:
            held.parent.mkdir(exist_ok=True)
            held.unlink(missing_ok=True)
            os.link(self._folder / f"checkpoint-{step}" / _WEIGHTS, held)
        except OSError:
            return None
        return held

    def send_checkpoint(self, step: int, held: Path | None, run: "wandb.Run") -> None:
        """Send the weights of a checkpoint; `held`: a link to them."""
        model = checkpoint_model(read_run(self._folder), self._identity, step, held)
        if model is not None:
            self._sent.append(run.log_artifact(model.draft(), aliases=list(model.aliases)))

    def send_last(self, models: Sequence[Model], seconds: float, run: "wandb.Run") -> None:
        """Send those of a run's models that were not sent as its checkpoints, and wait up to `seconds` for the upload
        of all. Raises an exception of W&B if one did not arrive."""
        deadline = time.monotonic() + seconds
        for model in models:
            if "final_model" in model.aliases or self._identity.artifacts == "best":
                self._sent.append(run.log_artifact(model.draft(), aliases=list(model.aliases)))
        if not run.offline:
            for artifact in self._sent:
                artifact.wait(max(1, math.ceil(deadline - time.monotonic())))

    def close(self) -> None:
        """Remove the links, once nothing is sent any more."""
        shutil.rmtree(self._folder / _HELD, ignore_errors=True)


def upload_seconds(size: int) -> float:
    """How long a run waits at its end for the upload of so many bytes; `hfbsz sync` sends what takes longer."""
    return min(_MOST_SECONDS, 10.0 + size / _BYTES_PER_SECOND)


def record_inputs(run: "wandb.Run", identity: Identity, plan: Mapping[str, Any], names: Collection[str]) -> None:
    """Record the data set and the model that a run started from as its inputs in W&B, as far as they are in `names`. Of
    the data set, only its hash and counts are sent. `plan`: the contents of plan.json. Raises an exception of W&B if
    they are not received, or the model is not there."""
    import wandb

    name = data_name(plan)
    if name is not None and name in names:
        facts = {key: plan["facts"].get(key) for key in ("data_hash", "rows", "tokens_per_row")}
        artifact = wandb.Artifact(name, type="dataset", metadata=facts)
        with artifact.new_file("data.json", encoding="utf-8") as file:
            file.write(json.dumps(facts, indent=1, sort_keys=True))
        run.use_artifact(artifact)
    if identity.parent_model is not None and _bare(identity.parent_model) in names:
        run.use_artifact(identity.parent_model, type="model")


def inputs_of(identity: Identity, plan: Mapping[str, Any]) -> set[str]:
    """The names, without version, of the artifacts that are inputs of a run."""
    if identity.artifacts == "off":
        return set()
    model = None if identity.parent_model is None else _bare(identity.parent_model)
    return {name for name in (data_name(plan), model) if name is not None}


def _bare(path: str) -> str:
    """The name in [entity/]project/name:alias."""
    return path.rpartition("/")[2].partition(":")[0]


def _metadata(run: RunData, record: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a record, and what the model was trained with."""
    recipe = recipe_of(run.folder)
    numbers = {name: value for name, value in record.items() if is_number(value) and math.isfinite(value)}
    return {name: value for name, value in numbers.items() if name not in ("time", "record")} | {
        "batch": run.plan.get("largest_batch"),  # sequences
        "recipe": recipe.digest() if recipe is not None else None,
        "data_hash": (run.plan.get("facts") or {}).get("data_hash"),
    }


def _evaluation(run: RunData, step: int | None) -> Mapping[str, Any]:
    """The record of the evaluation at a step; empty if there is none."""
    return next((one for one in reversed(run.records) if one.get(STEPS) == step and LOSS in one), {})


def _saved_step(run: RunData) -> int | None:
    """The step of the weights in the saved model."""
    return next((int(one["model/step"]) for one in reversed(run.records) if is_number(one.get("model/step"))), None)


def _best_step(run: RunData) -> int | None:
    """The step of the best evaluation; None if none was better than before training."""
    steps = (one.get("overfit/best_step") for one in reversed(run.records))
    return next((int(step) for step in steps if is_number(step)), 0) or None


def _checkpoints(folder: Path) -> Iterator[Path]:
    """The complete checkpoints in a run's folder."""
    for path in folder.glob("checkpoint-*"):
        if path.name.partition("-")[2].isdecimal() and (path / _COMPLETE).is_file():
            yield path


def _within(folder: Path, names: Sequence[str]) -> dict[str, Path]:
    """Files of a folder by name, without those that are missing or lead out of it: the folder may be anyone's."""
    root = folder.resolve()
    paths = {name: root / name for name in names}
    return {name: path for name, path in paths.items() if path.is_file() and path.resolve().is_relative_to(root)}
