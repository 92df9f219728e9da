"""What a run is in W&B, saved to `wandb.json` in its folder, since a run may be sent later and from another shell."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hfbsz.errors import UserError
from hfbsz.recipe.fields import Log, Recipe
from hfbsz.system.files import read_object, write_text

PROJECT = "hfbsz"  # where neither the recipe nor WANDB_PROJECT names one
INVALID_IN_ID = re.compile("[^\\w.-]")  # W&B refuses run ids that contain one of :;,#?/'
_LOG_MODEL = {"end": "end", "checkpoint": "checkpoints", "false": "off", "": "off"}  # values of WANDB_LOG_MODEL
_INIT = ("id", "project", "entity", "group", "job_type", "name")  # arguments of `wandb.init`


@dataclass(frozen=True)
class Identity:
    """The names of a run in W&B, and which artifacts it has there."""

    id: str
    project: str
    entity: str | None
    group: str | None
    job_type: str
    name: str
    tags: tuple[str, ...] = ()
    notes: str | None = None
    artifacts: str = "off"  # a value of log.artifacts
    parent_run: str | None = None  # the run whose weights it started from, as [entity/]project/id
    parent_model: str | None = None  # the artifact of those weights, as [entity/]project/name:alias; None: not sent

    def write(self, folder: Path) -> None:
        """Save to `folder`/wandb.json."""
        write_text(folder / "wandb.json", json.dumps(asdict(self), indent=1))

    @property
    def arguments(self) -> dict[str, str | None]:
        """The arguments of `wandb.init`. Tags and notes are not among them: they would replace those of a resumed
        run."""
        return {name: getattr(self, name) for name in _INIT}

    @property
    def path(self) -> str:
        """The run in W&B's API: [entity/]project/id."""
        return self.within(self.id)

    @property
    def model(self) -> str:
        """The name of the artifact of its models: that of transformers' Trainer for a run without a name of its own."""
        return f"model-{self.id}"

    def within(self, name: str) -> str:
        """A run or an artifact of the project, as [entity/]project/name."""
        return "/".join(filter(None, (self.entity, self.project, name)))


def id_of(name: str, tail: str) -> str:
    """A run id: the last 100 characters of the name, with invalid ones replaced, and a unique `tail`."""
    return f"{INVALID_IN_ID.sub('-', name)[-100:]}-{tail}"


def identity_of(recipe: Recipe, run_id: str, job: str, name: str) -> Identity:
    """The identity of a run. Where the recipe is silent, W&B's environment variables are used; `name`: where it has no
    log.name."""
    log = recipe.log
    tags = log.tags or [tag.strip() for tag in os.environ.get("WANDB_TAGS", "").split(",") if tag.strip()]
    parent_run, parent_model = _parents_of(recipe)
    return as_launched(
        Identity(
            run_id,
            project_of(log),
            entity_of(log),
            log.group or _variable("WANDB_RUN_GROUP"),
            job,
            log.name or name,
            tuple(tags),
            log.notes or _variable("WANDB_NOTES"),
            log.artifacts or _LOG_MODEL.get(os.environ.get("WANDB_LOG_MODEL", ""), "off"),
            parent_run,
            parent_model,
        )
    )


def project_of(log: Log) -> str:
    """The project of a recipe: log.project, else WANDB_PROJECT, else hfbsz."""
    return log.project or _variable("WANDB_PROJECT") or PROJECT


def entity_of(log: Log) -> str | None:
    """The team of a recipe: log.entity, else WANDB_ENTITY, else None: W&B's default."""
    return log.entity or _variable("WANDB_ENTITY")


def unknown_log_model(log: Log) -> str | None:
    """A line about a value of WANDB_LOG_MODEL that Trainer does not know; None if it is known or not used."""
    value = os.environ.get("WANDB_LOG_MODEL", "")
    if log.artifacts is not None or value in _LOG_MODEL:
        return None
    return f"WANDB_LOG_MODEL={value}: not end, checkpoint or false: no model is sent (log.artifacts)"


def as_launched(identity: Identity) -> Identity:
    """The identity, with the id, project and entity of the W&B sweep agent if one launched the run: `wandb.init` uses
    them in any case."""
    if not os.environ.get("WANDB_SWEEP_ID"):
        return identity
    return replace(
        identity,
        id=_variable("WANDB_RUN_ID") or identity.id,
        project=_variable("WANDB_PROJECT") or identity.project,
        entity=_variable("WANDB_ENTITY") or identity.entity,
    )


def read_identity(folder: Path) -> Identity:
    """The identity in `folder`/wandb.json. Raises UserError if it is missing or invalid."""
    values = _read(folder, "wandb.json")
    tags = values.pop("tags", [])
    try:
        identity = Identity(**values)
    except TypeError:
        raise UserError(f"{folder}: wandb.json cannot be read: it is from another version of hfbsz") from None
    texts = [value for name, value in asdict(identity).items() if name != "tags"]
    if not isinstance(tags, list) or not all(isinstance(value, str | None) for value in texts):
        raise UserError(f"{folder}: wandb.json cannot be read: its values must be strings")
    if not all(isinstance(tag, str) for tag in tags):
        raise UserError(f"{folder}: wandb.json cannot be read: its tags must be strings")
    return replace(identity, tags=tuple(tags))


def config_of(folder: Path) -> dict[str, Any]:
    """A run's W&B config: recipe, plan and machine. Raises UserError if one of their files cannot be read."""
    plan, machine = _read(folder, "plan.json"), _read(folder, "machine.json")
    return {"recipe": plan.pop("recipe", {}), "plan": plan, "machine": machine}


def with_parents(config: Mapping[str, Any], identity: Identity) -> dict[str, Any]:
    """The config of a run with the entry `parents`: its data set, and the run and model that it started from. Offline,
    where W&B records no inputs, this is its lineage."""
    parents = {
        "data": data_name(config.get("plan", {})),
        "run": identity.parent_run,
        "model": identity.parent_model,
    }
    known = {name: value for name, value in parents.items() if value is not None}
    return {**config, **({"parents": known} if known else {})}


def data_name(plan: Mapping[str, Any]) -> str | None:
    """The name of the artifact of a plan's data set, which is the same for all runs on the same tokens; None: unknown.
    `plan`: the contents of plan.json."""
    facts = plan.get("facts")
    digest = facts.get("data_hash") if isinstance(facts, Mapping) else None
    return f"data-{digest[:16]}" if isinstance(digest, str) and digest.isalnum() else None


def _parents_of(recipe: Recipe) -> tuple[str | None, str | None]:
    """The run from whose weights this one starts, by `branch` or `model.path`, and the artifact of those weights if it
    is sent."""
    place = recipe.branch or recipe.model.path
    if place is None:
        return None, None
    path = Path(place)
    step = path.name.removeprefix("checkpoint-") if path.name.startswith("checkpoint-") else ""
    try:
        parent = read_identity(path.parent if step else path)
    except UserError:  # the folder of no run of ours, or a Hub id
        return None, None
    sent = ("checkpoints",) if step else ("end", "best", "checkpoints")
    alias = checkpoint_alias(int(step)) if step.isdecimal() else "final_model"
    return parent.path, parent.within(f"{parent.model}:{alias}") if parent.artifacts in sent else None


def checkpoint_alias(step: int) -> str:
    """The alias that transformers' Trainer gives to the model of a checkpoint."""
    return f"checkpoint_global_step_{step}"


def _variable(name: str) -> str | None:
    return os.environ.get(name) or None


def _read(folder: Path, name: str) -> dict[str, Any]:
    if (content := read_object(folder / name)) is None:
        reason = "not a JSON object" if (folder / name).is_file() else "no such file"
        raise UserError(f"{folder}: {name} cannot be read: {reason}")
    return content
