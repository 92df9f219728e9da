"""The summary of a run at its end: results, next steps; and the labels of its model and data."""

from collections.abc import Mapping
from pathlib import Path

from hfbsz.data.manifest import SetCounts
from hfbsz.display import command
from hfbsz.measure.overfit import OverfittingMonitor
from hfbsz.plan.plan import Plan
from hfbsz.recipe.amounts import short
from hfbsz.recipe.fields import Recipe
from hfbsz.recipe.load import LoadedRecipe
from hfbsz.recipe.tasks import RowKind
from hfbsz.records.evaluations import WORSE
from hfbsz.records.folder import path_of, read_status
from hfbsz.records.metrics import MEASURES
from hfbsz.records.noise import NoiseSummary
from hfbsz.records.record import Reading, Step
from hfbsz.report.console import Console
from hfbsz.report.hub.pushes import push_command
from hfbsz.system.command_name import command_name

_SIZES_SHOWN = 10
_MODEL_CLASS = {RowKind.LABEL: "AutoModelForSequenceClassification"}


def reached(
    plan: Plan,
    counts: SetCounts,
    watch: OverfittingMonitor,
    last: Step,
    final: Reading,
    final_measures: Mapping[str, float],
    skipped: int,
    noise: NoiseSummary | None,
) -> dict[str, str]:
    """The results of a run by name, as text with units. `counts` are those of the validation set, `final` is the
    evaluation of the saved weights on its fixed part, and `final_measures` are those of the evaluation of complete sets
    at the end (empty: there was none). `noise`: the newest noise scale, if it was measured."""
    values = {name.removeprefix("eval/"): value for name, value in final.values.items()}
    values |= {name.removeprefix("full/"): value for name, value in final_measures.items()}
    shown = {name: measure.show(float(values[name])) for name, measure in MEASURES.items() if name in values}
    speed = f"{short(last.at.tokens / last.at.seconds)} tokens/s" if last.at.seconds else "no step yet"
    met = [phase.batch for phase in plan.phases if phase.steps or phase.batch <= last.global_batch]
    sizes = list(dict.fromkeys(map(str, met)))
    batches = " → ".join(sizes if len(sizes) <= _SIZES_SHOWN else [*sizes[: _SIZES_SHOWN - 2], "…", sizes[-1]])
    results = _losses(watch, last, final, final_measures) | _not_better(watch, final, plan.recipe)
    if plan.recipe.row_kind is RowKind.LABEL:
        results |= {
            "accuracy": f"{shown['accuracy']} (the most frequent label alone: {counts.majority:.3f})",
            **{MEASURES[name].heading: shown[name] for name in ("macro_f1", "matthews", "calibration_error")},
        }
    elif plan.recipe.row_kind is RowKind.PREFERENCE:
        names = ("preference_accuracy", "reward_margin", "chosen_reward")
        results |= {MEASURES[name].heading: shown[name] for name in names}
    else:
        unigram = counts.unigram_bits_per_byte
        baseline = f" (token frequencies alone: {unigram:.3f})" if unigram is not None else ""
        results |= {
            "bits per byte": f"{shown['bits_per_byte']}{baseline}",
            "perplexity": shown["perplexity"],
        }
    return results | {
        "trained": f"{short(last.at.tokens)} tokens in {last.at.step:,} steps of {batches} sequences",
        "time": f"{last.at.seconds:.3g} s of training, {speed}",
        "skipped": f"{skipped} steps with gradients that were not finite",
        **({} if noise is None else {"noise scale": f"{noise.shown} ({noise.verdict})"}),
    }


def _losses(watch: OverfittingMonitor, last: Step, final: Reading, measures: Mapping[str, float]) -> dict[str, str]:
    """The loss of the saved weights; where they differ, that on the fixed part and that of the last weights."""
    fixed, part = final.values["eval/loss"], _part(final)
    best = ", the best there" if final.at.step == watch.best_step else ""
    weights = f"weights of step {final.at.step:,}"
    if not measures:
        losses = {"loss": f"{fixed:.4f} nats/target ({part} of validation, at step {final.at.step:,}{best})"}
    elif measures["full/rows"] == final.values.get("eval/rows"):
        losses = {"loss": f"{fixed:.4f} nats/target ({_of_validation(measures)}; {weights}{best})"}
    else:
        losses = {
            "loss": f"{measures['full/loss']:.4f} nats/target ({_of_validation(measures)}; {weights})",
            "fixed part": f"{fixed:.4f} nats/target ({part} of every evaluation during the run{best})",
        }
    if "last/loss" in measures:
        lower = measures["last/loss"] < measures["full/loss"]
        reason = f", lower than that of the saved weights, which were chosen by {part}" if lower else ""
        losses["last weights"] = (
            f"{measures['last/loss']:.4f} nats/target (the same rows; step {last.at.step:,}){reason}"
        )
    return losses


def _of_validation(measures: Mapping[str, float]) -> str:
    rows, total = int(measures["full/rows"]), int(measures["full/set_rows"])
    return (
        f"all {total:,} rows of validation"
        if rows == total
        else f"{rows:,} of {total:,} rows of validation, evenly spread"
    )


def _part(final: Reading) -> str:
    count = final.values.get("eval/rows")  # absent in checkpoints of earlier versions
    return f"the fixed {count:,} rows" if count is not None else "the fixed rows"


def _not_better(watch: OverfittingMonitor, final: Reading, recipe: Recipe) -> dict[str, str]:
    """A line that says so if the saved weights are not better than the untrained ones."""
    start, loss = watch.start_loss, final.values["eval/loss"]
    if start is None or not final.at.step or float(loss) < start:
        return {}
    text = f"{start:.4f} nats/target on {_part(final)}: "
    text += f"step {final.at.step:,} ({loss:.4f}) is not better than before training"
    if watch.best_step is not None:
        text += f", step {watch.best_step:,} ({watch.best_loss:.4f}) was the best"
    else:
        text += ", nor is any other evaluation"
        saves_best = recipe.checkpoint.save == "best"
        text += ": checkpoint.save=best finds none to keep, the last weights are saved" if saves_best else ""
    is_new = recipe.model.path is None and recipe.model.package is None
    text += f"; {WORSE}" if is_new and float(loss) > start else ""
    return {"before training": text}


def why_stopped(watch: OverfittingMonitor) -> str:
    """Why patience stopped a run, for people."""
    if watch.best_step is None:
        return f"no evaluation was better than before training, in {watch.worse}"
    return f"no evaluation was better in the {watch.worse} since step {watch.best_step:,}"


def label(loaded: LoadedRecipe, part: str) -> str:
    """A short name of the run's model or data (`part`): the preset, else the source."""
    named = [Path(origin).stem for key, origin in loaded.sources.items() if origin.startswith(f"{part}/")]
    if named:
        return named[0]
    if part == "data":
        data = loaded.recipe.data
        source = data.package.partition("==")[0] if data.package else Path(data.hub).name if data.hub else "own"
        return "python_stdlib" if source == "own" and data.files is None else source
    model, shape = loaded.recipe.model, loaded.recipe.model.shape or {}
    return Path(model.path or model.package or str(shape.get("model_type", "model"))).name


def hints(path: Path, loaded: LoadedRecipe, pushed: str | None = None) -> list[str]:
    """What to do next, one line each. The two recipes of the README's comparison refer to each other. `pushed`: the
    address on the Hub; None: not pushed."""
    return [*_local_hints(path, loaded), *_hub_hints(path, loaded, pushed)]


def _hub_hints(path: Path, loaded: LoadedRecipe, pushed: str | None) -> list[str]:
    """Where the run is on the Hub, or how to push it, if the recipe names a repository."""
    if loaded.recipe.hub.id is None:
        return []
    return [f"on the Hub           {pushed}" if pushed else f"push to the Hub      {push_command(path)}"]


def _local_hints(path: Path, loaded: LoadedRecipe) -> list[str]:
    name = loaded.name
    loads = _MODEL_CLASS.get(loaded.recipe.row_kind, "AutoModelForCausalLM")
    if (path / "report.html").is_file():
        page = f"open the report      {command('open', path / 'report.html')}"
    else:
        page = f"draw the report      {command_name('report')} {command(path)}"
    load = f"load the model       {loads}.from_pretrained({str(path)!r})"
    if name not in ("large_batch", "small_batch_pretrain"):
        return [page, load]
    is_main = name == "large_batch"
    what, other = ("train the control", "small_batch_pretrain") if is_main else ("try a large batch", "large_batch")
    return [
        page,
        f"{what:<21}{command_name('pretrain')} recipe={other}",
        f"compare the runs     {command_name('report')} {command(path)} runs/{other}-*",
        load,
    ]


def show_finished(console: Console, loaded: LoadedRecipe) -> None:
    """Show the summary of a run that had already finished."""
    path = path_of(loaded)
    results: Mapping[str, str] = read_status(path).get("reached", {})
    retrain = "to train it again: another seed=…, or another output_dir=…"
    console.last_page("this run is finished already", results, path, [retrain, *hints(path, loaded)])
