"""What a person is told of a run at its end: what was reached, what to do next; and the run's name."""

from collections.abc import Mapping
from pathlib import Path

from hfbsz.data.manifest import SetCounts
from hfbsz.display import command
from hfbsz.measure.overfit import OverfittingMonitor
from hfbsz.plan.plan import Plan
from hfbsz.recipe.amounts import short
from hfbsz.recipe.fields import Recipe
from hfbsz.recipe.load import Loaded
from hfbsz.recipe.tasks import RowKind
from hfbsz.records.evaluations import WORSE
from hfbsz.records.folder import path_of, read_status
from hfbsz.records.metrics import MEASURES
from hfbsz.records.record import Reading, Step
from hfbsz.report.console import Console
from hfbsz.system.called import called

_SIZES_SHOWN = 10
_MODEL_CLASS = {RowKind.LABEL: "AutoModelForSequenceClassification"}


def reached(
    plan: Plan,
    counts: SetCounts,
    watch: OverfittingMonitor,
    last: Step,
    final: Reading,
    whole: Mapping[str, float],
    skipped: int,
) -> dict[str, str]:
    """What a person wants to know at the end, with units; `counts` are those of the validation set, `final` is the
    evaluation of the saved weights on its fixed part, `whole` what was measured on all of it (empty: nothing)."""
    values = {name.removeprefix("eval/"): value for name, value in final.values.items()}
    values |= {name.removeprefix("full/"): value for name, value in whole.items()}
    shown = {name: measure.show(float(values[name])) for name, measure in MEASURES.items() if name in values}
    speed = f"{short(last.at.tokens / last.at.seconds)} tokens/s" if last.at.seconds else "no step yet"
    sizes = list(dict.fromkeys(str(phase.batch) for phase in plan.phases))
    batches = " → ".join(sizes if len(sizes) <= _SIZES_SHOWN else [*sizes[: _SIZES_SHOWN - 2], "…", sizes[-1]])
    told = _losses(watch, last, final, whole) | _not_better(watch, final, plan.recipe)
    if plan.recipe.row_kind is RowKind.LABEL:
        told |= {
            "accuracy": f"{shown['accuracy']} (the most frequent label alone: {counts.majority:.3f})",
            **{MEASURES[name].heading: shown[name] for name in ("macro_f1", "matthews", "calibration_error")},
        }
    else:
        alone = counts.unigram_bits_per_byte
        than = f" (token frequencies alone: {alone:.3f})" if alone is not None else ""
        told |= {
            "bits per byte": f"{shown['bits_per_byte']}{than}",
            "perplexity": shown["perplexity"],
        }
    return told | {
        "trained": f"{short(last.at.tokens)} tokens in {last.at.step:,} steps of {batches} sequences",
        "time": f"{last.at.seconds:.3g} s of training, {speed}",
        "skipped": f"{skipped} steps with gradients that were not finite",
    }


def _losses(watch: OverfittingMonitor, last: Step, final: Reading, whole: Mapping[str, float]) -> dict[str, str]:
    """The loss of the saved weights, and whatever stands beside it that says another thing."""
    fixed, part = final.values["eval/loss"], _part(final)
    chosen = ", the best there" if final.at.step == watch.best_step else ""
    weights = f"weights of step {final.at.step:,}"
    if not whole:
        told = {"loss": f"{fixed:.4f} nats/target ({part} of validation, at step {final.at.step:,}{chosen})"}
    elif whole["full/rows"] == final.values.get("eval/rows"):
        told = {"loss": f"{fixed:.4f} nats/target ({_of_validation(whole)}; {weights}{chosen})"}
    else:
        told = {
            "loss": f"{whole['full/loss']:.4f} nats/target ({_of_validation(whole)}; {weights})",
            "fixed part": f"{fixed:.4f} nats/target ({part} that every evaluation along the run is of{chosen})",
        }
    if "last/loss" in whole:
        lower = whole["last/loss"] < whole["full/loss"]
        but = f", lower than the saved weights: these were chosen on {part}" if lower else ""
        told["last weights"] = f"{whole['last/loss']:.4f} nats/target (the same rows; step {last.at.step:,}){but}"
    return told


def _of_validation(whole: Mapping[str, float]) -> str:
    rows, of = int(whole["full/rows"]), int(whole["full/set_rows"])
    return f"all {of:,} rows of validation" if rows == of else f"{rows:,} of {of:,} rows of validation, evenly spread"


def _part(final: Reading) -> str:
    count = final.values.get("eval/rows")  # not told by checkpoints of earlier versions
    return f"the fixed {count:,} rows" if count is not None else "the fixed rows"


def _not_better(watch: OverfittingMonitor, final: Reading, recipe: Recipe) -> dict[str, str]:
    """What is to be said where the saved weights are not better than the untrained ones."""
    start, loss = watch.start_loss, final.values["eval/loss"]
    if start is None or not final.at.step or float(loss) < start:
        return {}
    told = f"{start:.4f} nats/target on {_part(final)}: "
    told += f"step {final.at.step:,} ({loss:.4f}) is not better than before training"
    if watch.best_step is not None:
        told += f", step {watch.best_step:,} ({watch.best_loss:.4f}) was the best"
    else:
        told += ", nor is any other evaluation"
        keeps_best = recipe.checkpoint.save == "best"
        told += ": checkpoint.save=best finds none to keep, the last weights are saved" if keeps_best else ""
    is_new = recipe.model.path is None and recipe.model.package is None
    told += f"; {WORSE}" if is_new and float(loss) > start else ""
    return {"before training": told}


def why_stopped(watch: OverfittingMonitor) -> str:
    """Why patience ended a run."""
    if watch.best_step is None:
        return f"no evaluation was better than before training, in {watch.worse}"
    return f"no evaluation was better in the {watch.worse} since step {watch.best_step:,}"


def label(loaded: Loaded, part: str) -> str:
    """The preset's name of the model or the data, else what it was made from."""
    named = [Path(origin).stem for key, origin in loaded.sources.items() if origin.startswith(f"{part}/")]
    if named:
        return named[0]
    if part == "data":
        data = loaded.recipe.data
        source = data.package.partition("==")[0] if data.package else Path(data.hub).name if data.hub else "own"
        return "python_stdlib" if source == "own" and data.files is None else source
    model, shape = loaded.recipe.model, loaded.recipe.model.shape or {}
    return Path(model.path or model.package or str(shape.get("model_type", "model"))).name


def hints(path: Path, loaded: Loaded) -> list[str]:
    """What to do next; the arms of the README's comparison name one another."""
    name = loaded.name
    loads = _MODEL_CLASS.get(loaded.recipe.row_kind, "AutoModelForCausalLM")
    look = f"look at it           {command('open', path / 'report.html')}"
    load = f"load the model       {loads}.from_pretrained({str(path)!r})"
    if name not in ("large_batch", "small_batch_pretrain"):
        return [look, load]
    other = "small_batch_pretrain" if name == "large_batch" else "large_batch"
    return [
        look,
        f"another batch        {called('pretrain')} recipe={other}",
        f"lay them over        {called('report')} {command(path)} runs/{other}-*",
        load,
    ]


def show_finished(console: Console, loaded: Loaded) -> None:
    """The last page of a run that had ended before."""
    path = path_of(loaded)
    told: Mapping[str, str] = read_status(path).get("reached", {})
    again = "to train it again: another seed=…, or another output_dir=…"
    console.last_page("this run is finished already", told, path, [again, *hints(path, loaded)])
