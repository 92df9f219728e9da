"""What a person is told of a run at its end: what was reached, what to do next; and the run's name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hfbsz.amounts import short
from hfbsz.folder import path_of, read_status
from hfbsz.loading import Loaded
from hfbsz.plan import Plan
from hfbsz.recipe import Recipe
from hfbsz.record import Reading, Step
from hfbsz.report.console import Console

_MODEL_CLASS = {"classification": "AutoModelForSequenceClassification"}


def reached(recipe: Recipe, plan: Plan, counts: Mapping[str, Any], last: Step, final: Reading, skipped: int) -> dict:
    """What a person wants to know at the end, with units; `counts` are those of the validation set."""
    values = final.values
    which = "all of validation" if values["eval/full"] else f"a fixed part of validation, step {final.step}"
    if values.get("eval/best"):
        which += f"; weights of step {values.get('overfit/best_step', final.step):,.0f}, the best"
    speed = f"{short(last.tokens / last.seconds)} tokens/s" if last.seconds else "no step yet"
    batches = " → ".join(str(batch) for batch in dict.fromkeys(phase.batch for phase in plan.phases))
    told = {"loss": f"{values['eval/loss']:.4f} nats/target ({which})"}
    if recipe.task == "classification":
        told |= {
            "accuracy": f"{values['eval/accuracy']:.4f} (the commonest label alone: {counts['majority']:.3f})",
            "macro F1": f"{values['eval/macro_f1']:.4f}",
            "Matthews": f"{values['eval/matthews']:.4f}",
            "calibration": f"{values['eval/calibration_error']:.4f} mean distance of confidence and accuracy",
        }
    else:
        alone = counts.get("unigram_bits_per_byte")
        than = f" (token frequencies alone: {alone:.3f})" if alone is not None else ""
        told |= {
            "bits per byte": f"{values['eval/bits_per_byte']:.4f}{than}",
            "perplexity": f"{values['eval/perplexity']:.2f}",
        }
    return told | {
        "trained": f"{short(last.tokens)} tokens in {last.step:,} steps of {batches} sequences",
        "time": f"{last.seconds:.3g} s of training, {speed}",
        "skipped": f"{skipped} steps with gradients that were not finite",
    }


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
    loads = _MODEL_CLASS.get(loaded.recipe.task, "AutoModelForCausalLM")
    look = f"look at it           open {path}/report.html"
    load = f"load the model       {loads}.from_pretrained({str(path)!r})"
    if name not in ("large_batch", "small_batch_pretrain"):
        return [look, load]
    other = "small_batch_pretrain" if name == "large_batch" else "large_batch"
    return [
        look,
        f"another batch        accelerate launch scripts/pretrain.py recipe={other}",
        f"lay them over        python scripts/report.py {path} runs/{other}-*",
        load,
    ]


def show_finished(console: Console, loaded: Loaded) -> None:
    """The last page of a run that had ended before."""
    path = path_of(loaded)
    told: Mapping[str, str] = read_status(path).get("reached", {})
    again = "to train it again: another seed=…, or another output_dir=…"
    console.last_page("this run is finished already", told, path, [again, *hints(path, loaded)])
