"""What to measure next, where an advice rests on assumptions."""

import math
from collections.abc import Sequence

from hfbsz.advice.advice import Line, Measurement, Wish
from hfbsz.advice.critical import OVER_THE_RUN
from hfbsz.advice.frontier import Frontier
from hfbsz.advice.known import Known
from hfbsz.advice.progress import effective
from hfbsz.advice.rates import Rate
from hfbsz.advice.schedule import sequences
from hfbsz.display import command
from hfbsz.measure.frontier import BACKWARD
from hfbsz.plan.plan import Plan
from hfbsz.records.folder import SWEEP_FIELDS
from hfbsz.system.command_name import command_name

_SWEEP_RATES, _SWEEP_ROWS = 6, 64  # of a sweep: rates at each batch, and rows of its evaluations, which are many
_TARGET = 1 / 3  # share of the run at a small batch, whose loss a sweep ends at
_SPARE = 3.0  # times the sequences that its largest batch is expected to need
_NOISE_SHARE, _NOISE_STEPS = 0.1, 200  # of the duration, and at least, of a run that measures the noise scale


def next_measurement(
    lines: Sequence[Line],
    rate: Rate,
    changes: Sequence[str],
    wish: Wish,
    known: Known,
    frontier: Frontier,
    plan: Plan,
) -> Measurement | None:
    """What to measure next: speed, critical batch, rate, then loss. `changes` make the recipe that of `plan`."""
    named = {line.name: line for line in lines}
    speed = max(size / time for size, time in frontier.device.seconds.items())  # rows/s of a device
    whole = plan.total / speed

    def ask(name: str, *more: str) -> str:
        return f"{command_name(name)} {command(*more)}"

    if named["split"].sure == "assumed":
        return Measurement("split, time and cost", ask("probe", *wish.words), 60.0)
    if named["critical batch"].sure == "assumed" or math.isinf(known.estimates[0].high):
        batch = max(2, plan.phases[0].batch)
        length = min(plan.total, max(plan.total * _NOISE_SHARE, batch * _NOISE_STEPS))
        more = [f"duration={round(length)}seq", "batch.start=null", "batch.ramp=null", f"batch.size={batch}seq"]
        more += [f"batch.micro_max={min(batch // 2, plan.micro_batch or batch)}", "measure.noise.method=two_batch"]
        return Measurement("critical batch", ask("pretrain", *replaced(wish.words, more)), length / speed)
    if known.estimates[0].name == "noise scale" and known.progress is not None:
        sizes = _sweep_sizes(known.critical)
        needed = effective([(known.total * _TARGET, 1)], known.critical, known.total)
        target = known.progress.offset - known.progress.slope * math.log(needed)
        lengths = [sequences([size], needed, known) for size in sizes]
        more = ["batch.size=" + ",".join(f"{size}seq" for size in sizes), f"eval.rows={_SWEEP_ROWS}"]
        more += ["measure.noise.method=off", f"duration={round(max(known.total, _SPARE * lengths[-1]))}seq"]
        words = ["method=sweep", *replaced(wish.words, more, *SWEEP_FIELDS), f"target={target:.2f}"]
        evaluations = 100 * _SWEEP_ROWS * (1 - BACKWARD)  # one at each percent of the duration
        rows = math.fsum(_SWEEP_RATES * (length + evaluations) for length in lengths)
        return Measurement("critical batch", ask("critical", *words), rows / speed)
    if rate.sure in ("assumed", "inferred"):
        values = ",".join(f"{factor * plan.rate:.3g}" for factor in (0.5, 1, 2))
        words = replaced(replaced(wish.words, changes), [f"optim.lr={values}"])
        return Measurement("learning rate", ask("compare", *words), 3 * whole)
    if known.progress is None or known.progress.error is None:
        more = ["batch.size=" + ",".join(f"{size}seq" for size in _sweep_sizes(known.critical)), "seed=0,1,2"]
        words = replaced(wish.words, more, "batch.start", "batch.ramp")
        return Measurement("expected loss", ask("compare", *words), 9 * whole)
    return None


def replaced(words: Sequence[str], more: Sequence[str], *without: str) -> list[str]:
    """The words with others in place of those of the same fields, and without some fields."""
    keys = {word.lstrip("-").partition("=")[0] for word in more} | set(without)
    return [*(word for word in words if word.lstrip("-").partition("=")[0] not in keys), *more]


def _sweep_sizes(critical: float) -> list[int]:
    """Four batches around the critical batch over the run."""
    middle = 2 ** max(2, round(math.log2(max(1.0, OVER_THE_RUN * critical))))
    return [middle // 4, middle // 2, 2 * middle, 4 * middle]
