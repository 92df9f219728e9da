"""A ramp that follows the noise scale: which measurements let the batch double."""

import pytest

from hfbsz.errors import UserError
from hfbsz.measure.noise_ramp import NoiseRamp
from hfbsz.plan.plan import Facts
from hfbsz.plan.resolve import check, resolve
from hfbsz.recipe.load import load

WORDS = ["recipe=large_batch", "batch.start=8seq", "batch.size=64seq"]


def planned(*words: str, world_size: int = 1):
    return resolve(load([*WORDS, *words]).recipe, world_size, Facts(rows=20_000))


def measured(scale, error=1.0):
    return {"noise/scale": scale, "noise/scale_error": error}


def test_the_batch_doubles_where_two_measurements_in_a_row_support_it():
    ramp = NoiseRamp(planned("batch.ramp=noise"))
    assert ramp.ladder == [8, 16, 32, 64]
    decisions = [ramp.decide(8, measured(scale)) for scale in (20, 15, 20, 17)]  # 15 − 1 is below 16
    assert decisions == [None, None, None, 16]
    assert [ramp.decide(16, measured(1000)) for _ in range(2)] == [None, 32]  # one doubling at a time
    assert [ramp.decide(64, measured(1000)) for _ in range(3)] == [None] * 3  # not beyond batch.size


@pytest.mark.parametrize("values", [{}, {"noise/scale": 100.0}, {"noise/norm_scale": 100.0}, measured(100, 99)])
def test_an_estimate_without_an_error_bar_or_with_a_large_one_supports_nothing(values):
    ramp = NoiseRamp(planned("batch.ramp=noise"))
    assert [ramp.decide(8, values) for _ in range(4)] == [None] * 4


def test_the_share_of_the_scale():
    half = NoiseRamp(planned("batch.ramp=noise:0.5"))
    assert [half.decide(8, measured(30)) for _ in range(3)] == [None] * 3  # half of 29 is below 16
    assert [half.decide(8, measured(40)) for _ in range(2)] == [None, 16]


def test_the_state_is_that_of_the_unbroken_ramp():
    plan = planned("batch.ramp=noise")
    first = NoiseRamp(plan)
    first.decide(8, measured(50))
    assert NoiseRamp(plan, first.to_dict()).decide(8, measured(50)) == 16
    assert NoiseRamp(plan).decide(8, measured(50)) is None


def test_the_plan_has_checked_the_whole_ladder():
    plan = planned("batch.ramp=noise")
    assert plan.micro_batch == 4  # two in the first batch of one process
    assert (plan.largest_batch, plan.batch_at(plan.total - 1), plan.steps) == (64, 8, -(-plan.total // 8))
    grown = plan.step(800, [(400, 16), (800, 32)])
    assert (grown.global_batch, grown.accumulation, grown.next_clock) == (32, 8, 832)
    assert grown.learning_rate == pytest.approx(
        2 * plan.step(800).learning_rate * plan.shape.factor(832) / plan.shape.factor(808)
    )
    assert planned("batch.ramp=noise", world_size=2).micro_batch == 4
    with pytest.raises(UserError, match="divide over 3"):
        planned("batch.ramp=noise", world_size=3)


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (["measure.noise.method=off"], "measure.noise"),
        (["measure.noise.method=per_sequence"], "measure.noise"),
        (["duration=100steps"], "duration"),
        (["scaling.beta2=half_life"], "scaling.beta2"),
        (["scaling.rule=sde"], "scaling.rule"),
        (["batch.start=1seq"], "batch.start"),
        (["batch.start=128seq"], "batch.start"),
        (["batch.ramp=noise:0"], "batch.ramp"),
        (["batch.ramp=noise:x"], "batch.ramp"),
    ],
)
def test_what_such_a_ramp_cannot_be_combined_with(words, field):
    with pytest.raises(UserError, match=field):
        check(load([*WORDS, "batch.ramp=noise", *words]).recipe, 1)


def test_what_is_measured_decides_the_run():
    """`measure` and `log` name no run of their own, but where the batch follows the measurement."""
    words = ["measure.noise.every=20steps"]
    plain, ramp = (load([*WORDS, f"batch.ramp={ramp}"]).recipe for ramp in ("doubling:75%", "noise"))
    assert load([*WORDS, "batch.ramp=doubling:75%", *words]).recipe.digest() == plain.digest()
    assert load([*WORDS, "batch.ramp=noise", *words]).recipe.digest() != ramp.digest()


@pytest.mark.parametrize(
    ("ramp", "phases"),
    [
        ("critical:0:8 1000seq:24 3000seq:64", [(0, 8), (504, 16), (1400, 32), (3000, 64)]),
        ("critical:0:20 1000seq:20", [(0, 16)]),
        ("critical:0:100", [(0, 64)]),
        ("critical:0:1", [(0, 8)]),
        ("critical:0:8 500seq:50 600seq:20 1000seq:70", [(0, 8), (96, 16), (288, 32), (960, 64)]),
    ],
)
def test_a_ramp_along_measured_critical_batches(ramp, phases):
    """Linear between the points, in whole steps; the batch does not fall where the critical batch does."""
    assert [(phase.clock, phase.batch) for phase in planned(f"batch.ramp={ramp}").phases] == phases


@pytest.mark.parametrize(
    "ramp", ["critical", "critical:8", "critical:10seq:8", "critical:0:0", "critical:0:8 9seq:9 5seq:12"]
)
def test_points_that_are_not_a_table_are_refused(ramp):
    with pytest.raises(UserError, match=r"batch\.ramp"):
        planned(f"batch.ramp={ramp}")
