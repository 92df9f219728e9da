"""What a run publishes: its card with a picture, beside the model; and its pushes to the Hub."""

from collections.abc import Callable, Mapping
from pathlib import Path

from hfbsz.plan.plan import Plan
from hfbsz.recipe.load import LoadedRecipe
from hfbsz.records.evaluations import final_result
from hfbsz.records.run_data import read_run
from hfbsz.report.card import PICTURE, model_card
from hfbsz.report.console import Console
from hfbsz.report.hub.pushes import Pushes, push_command
from hfbsz.run.outcome import label
from hfbsz.system.files import write_text


def write_card(
    folder: Path,
    into: Path,
    loaded: LoadedRecipe,
    plan: Plan,
    state: str,
    reached: Mapping[str, str],
    step: int | None,
    warn: Callable[[str], None],
) -> None:
    """Write the card and the picture of the run in `folder` into a folder. `step`: of the weights there; None: those
    that the run ended with. Raises OSError; a picture that cannot be drawn is a warning."""
    from hfbsz.report.batch_picture import draw  # imports matplotlib: only if needed

    run = read_run(folder)
    try:
        draw(run, into / PICTURE)
    except Exception as problem:  # the model is saved: a picture must not fail the run
        (into / PICTURE).unlink(missing_ok=True)
        warn(f"{PICTURE} of the card could not be drawn ({problem})")
    result = final_result(run)
    if result is not None and step is not None and result.step != step:
        result = None  # the evaluation is of other weights
    text = model_card(
        loaded.name,
        label(loaded, "model"),
        label(loaded, "data"),
        str(folder),
        state,
        reached,
        plan,
        run,
        result,
        has_picture=(into / PICTURE).is_file(),
    )
    write_text(into / "README.md", text)


def open_pushes(folder: Path, loaded: LoadedRecipe, console: Console) -> Pushes | None:
    """The pushes to the Hub of the run in `folder`; None if the recipe names no repository, or, with a note, if nothing
    can be pushed from here."""
    hub = loaded.recipe.hub
    if hub.id is None:
        return None
    from hfbsz.report.hub.upload import why_unavailable

    if (why := why_unavailable()) is not None:
        console.notes([f"hub.id: {why}: the run is not pushed; {push_command(folder)} pushes it after its end"])
        return None
    return Pushes(folder, hub.id, hub.private, console.warn)
