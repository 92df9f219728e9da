"""What is known of a model on its data: its finished runs, sweeps and probes, read from their folders."""

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hfbsz.errors import UserError
from hfbsz.plan.plan import Facts
from hfbsz.recipe.fields import Recipe
from hfbsz.recipe.load import from_mapping
from hfbsz.records.evaluations import LOSS, best_evaluation, final_result, validation_curve
from hfbsz.records.folder import SWEEP_FILE
from hfbsz.records.noise import SCALE
from hfbsz.records.overfitting import Overfitting, overfitting_of
from hfbsz.records.probe import probe_from_dict
from hfbsz.records.run_data import CLOCK, SECONDS, STEPS, RunData, is_number, read_run
from hfbsz.system.files import read_object

_MANY = 2**40  # rows, where their number does not matter
# fields of the model that change no result
_SPEED_ONLY = ("attention", "compile", "first_token", "fused_loss", "activation_checkpointing")


def key_of(recipe: Recipe) -> dict[str, Any]:
    """What has to be equal for a measurement to be one of this model on this data."""
    fields = recipe.to_dict()
    model = {name: value for name, value in fields["model"].items() if name not in _SPEED_ONLY}
    return {"task": fields["task"], "model": model, "data": fields["data"]}


def speed_key(recipe: Recipe) -> tuple[object, ...]:
    """What has to be equal, besides the device, for the speed of a run or a probe to be that of a recipe."""
    model = recipe.to_dict()["model"]
    return *(model[name] for name in _SPEED_ONLY), recipe.precision, recipe.optim.name


@dataclass(frozen=True)
class PastProbe:
    """The result of `hfbsz probe`."""

    path: Path
    recipe: Recipe
    modified: float  # time of the file, s


@dataclass(frozen=True)
class NoisePoint:
    """A measurement of the noise scale."""

    clock: float  # sequences
    scale: float  # sequences


@dataclass(frozen=True)
class PastRun:
    """A finished run."""

    folder: Path
    recipe: Recipe
    sequences: float  # trained on
    tokens: float
    rows: float | None  # of its training set: an epoch
    steps: int
    seconds: float  # of training
    loss: float  # validation, of the saved model, nats/target
    stages: tuple[tuple[float, int], ...]  # (sequences, batch), in order: trained on at that batch
    curve: tuple[tuple[float, float], ...]  # (sequences, loss) of the fixed part of validation
    noise: tuple[NoisePoint, ...]
    micro_batch: int | None
    processes: int
    device: str
    first_rate: float  # peak learning rate at the first batch
    parameters: int | None  # of the model, outside its embeddings
    best_clock: float | None  # sequences at the best evaluation; None: none is better than before training
    overfitting: Overfitting | None

    @property
    def batch(self) -> float:
        """The mean batch in sequences: of equally many steps over as many sequences."""
        return self.sequences / max(1, self.steps)

    @property
    def tokens_per_second(self) -> float | None:
        """Of all its devices together; None: not known."""
        return self.tokens / self.seconds if self.seconds else None

    @property
    def facts(self) -> Facts:
        """The facts of its plan."""
        tokens = self.tokens / self.sequences
        return Facts(rows=int(self.rows or _MANY), tokens_per_row=tokens, parameters=self.parameters)

    @property
    def arm(self) -> str:
        """What tells it from other runs of the same model and data but for its seed, as text."""
        fields = self.recipe.to_dict()
        decisive = {name: fields[name] for name in ("duration", "batch", "optim", "scaling", "schedule")}
        return json.dumps(decisive, sort_keys=True)


@dataclass(frozen=True)
class SweepTable:
    """The steps to a target loss at each batch with the rate tuned there."""

    name: str
    optimizer: str
    target: float  # validation loss, nats/target
    batches: tuple[float, ...]  # sequences, one for each run
    steps: tuple[float, ...]
    rates: Mapping[float, float]  # the best by batch, at that batch


@dataclass(frozen=True)
class Evidence:
    """Everything that is known; `notes` tell of what could not be read."""

    runs: tuple[PastRun, ...] = ()
    sweeps: tuple[SweepTable, ...] = ()
    probes: tuple[PastProbe, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def of_optimizer(self, name: str) -> tuple[PastRun, ...]:
        """The runs with an optimizer."""
        return tuple(run for run in self.runs if run.recipe.optim.name == name)


def gather(recipe: Recipe, folder: Path = Path()) -> Evidence:
    """The finished runs, sweeps and probes of the recipe's model on its data, in the folders `runs`, `comparisons` and
    `probes` below `folder`. What cannot be read is skipped, with a note."""
    key, notes = key_of(recipe), list[str]()
    runs = list(_runs(folder / "runs", key, notes))
    sweeps = list(_sweeps(folder / "comparisons", key, notes))
    probes = list(_probes(folder / "probes", key, notes))
    return Evidence(tuple(runs), tuple(sweeps), tuple(probes), tuple(notes))


def _runs(root: Path, key: Mapping[str, Any], notes: list[str]) -> Iterator[PastRun]:
    for folder in sorted(root.glob("*")):
        if (recipe := _recipe_in(read_object(folder / "plan.json") or {})) is None or key_of(recipe) != key:
            continue
        if recipe.branch is not None or recipe.eval.target is not None:
            continue  # a part of a run, or a run of a sweep, which its table has
        with suppress(UserError, OSError):
            run = read_run(folder)
            if run.status.get("state") == "finished" and (past := past_run(run, recipe)) is not None:
                yield past
                continue
        if (read_object(folder / "status.json") or {}).get("state") not in ("running", "preempted"):
            notes.append(f"{folder}: not a finished run with a loss: skipped")


def _recipe_in(plan: Mapping[str, Any]) -> Recipe | None:
    """The recipe of saved data; None if it is missing, or of another version."""
    try:
        return from_mapping(plan["recipe"])
    except (KeyError, TypeError, UserError):
        return None


def past_run(run: RunData, recipe: Recipe) -> PastRun | None:
    """A finished run as evidence; None if it has no finite loss, no logged step or no rate."""
    result, stages = final_result(run), _stages(run)
    steps, sequences = run.largest(STEPS), run.largest(CLOCK)
    rate = (run.plan.get("learning_rate") or {}).get("first_batch")
    if result is None or not math.isfinite(result.loss) or not steps or not sequences or not stages:
        return None
    if not is_number(rate) or not rate > 0:
        return None
    best = best_evaluation(run)
    curve = [(record[CLOCK], record[LOSS]) for record in validation_curve(run) if is_number(record.get(CLOCK))]
    return PastRun(
        folder=run.folder,
        recipe=recipe,
        sequences=sequences,
        tokens=run.largest("train/num_input_tokens_seen") or 0.0,
        rows=run.rows,
        steps=int(steps),
        seconds=run.largest(SECONDS) or 0.0,
        loss=result.loss,
        stages=stages,
        curve=tuple((clock, loss) for clock, loss in curve if math.isfinite(loss)),
        noise=tuple(_noise(run.records)),
        micro_batch=run.plan.get("micro_batch"),
        first_rate=rate,
        parameters=(run.plan.get("facts") or {}).get("parameters"),
        processes=int(run.plan.get("world_size") or 1),
        device=str(run.machine.get("device", "")),
        best_clock=best[CLOCK] if best is not None and is_number(best.get(CLOCK)) else None,
        overfitting=overfitting_of(run),
    )


def _stages(run: RunData) -> tuple[tuple[float, int], ...]:
    """The sequences trained on at each batch: of the records, which have what an adaptive ramp decided."""
    stages: list[tuple[float, int]] = []
    before = 0.0
    for record in run.records:
        clock, batch = record.get(CLOCK), record.get("batch/global")
        if record.get("event") == "step" and is_number(clock) and is_number(batch) and clock > before:
            amount, before = clock - before, clock
            if stages and stages[-1][1] == batch:
                amount += stages.pop()[0]
            stages.append((amount, int(batch)))
    return tuple(stages)


def _noise(records: Sequence[Mapping[str, Any]]) -> Iterator[NoisePoint]:
    for record in records:
        scale, clock = record.get(SCALE), record.get(CLOCK)
        if is_number(scale) and is_number(clock) and clock > 0 and scale > 0 and math.isfinite(scale):
            yield NoisePoint(clock, scale)


def _sweeps(root: Path, key: Mapping[str, Any], notes: list[str]) -> Iterator[SweepTable]:
    for path in sorted(root.glob(f"*/{SWEEP_FILE}")):
        about = read_object(path) or {}
        if (recipe := _recipe_in(about)) is None or key_of(recipe) != key:
            continue
        try:
            if table := _rows(path.parent / "steps.csv"):
                yield _sweep(path.parent, table, about, recipe)
            else:
                notes.append(f"{path.parent}: no batch of this sweep has its steps yet: skipped")
        except (KeyError, OSError, TypeError, ValueError):
            notes.append(f"{path.parent}: the tables of a sweep cannot be read: skipped")


def _sweep(folder: Path, table: list[dict[str, str]], about: Mapping[str, Any], recipe: Recipe) -> SweepTable:
    """A sweep from its tables; `table`: of its steps. Raises KeyError, OSError, TypeError or ValueError."""
    batches, counts = (tuple(float(row[name]) for row in table) for name in ("batch", "steps"))
    best: dict[float, tuple[float, float]] = {}  # (rate, steps)
    for row in _rows(folder / "rates.csv"):
        if row["batch"] and row["rate"] and row["steps"] and float(row["batch"]) in batches:  # else at an end
            batch, rate, steps = (float(row[name]) for name in ("batch", "rate", "steps"))
            if steps < best.get(batch, (0.0, math.inf))[1]:
                best[batch] = rate, steps
    rates = {batch: rate for batch, (rate, _) in best.items()}
    return SweepTable(folder.name, recipe.optim.name, float(about["target"]), batches, counts, rates)


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _probes(root: Path, key: Mapping[str, Any], notes: list[str]) -> Iterator[PastProbe]:
    for path in sorted(root.glob("*/probe.json")):
        data = read_object(path) or {}
        recipe = _recipe_in(data)
        if recipe is None or key_of(recipe) != key:
            continue
        try:
            probe_from_dict(data)
            yield PastProbe(path, recipe, path.stat().st_mtime)
        except (KeyError, TypeError, ValueError):
            notes.append(f"{path}: not the result of a probe: skipped")
