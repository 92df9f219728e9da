"""Time and cost over devices against points computed by hand."""

import math

import pytest

from hfbsz.measure.frontier import (
    Device,
    Model,
    Network,
    StepsToLoss,
    chosen,
    doublings,
    efficiency,
    frontier,
    point,
)

STEPS = StepsToLoss(1000, 64_000)  # critical batch 64 sequences
FREE = Network(inside=math.inf, between=math.inf, latency=0)
NOTHING = Model(0, 0)


def test_the_curve_passes_through_its_run():
    curve = StepsToLoss.through(sequences=80_000, batch=16, critical=64)
    assert curve.critical == pytest.approx(64) and curve.at(16) * 16 == pytest.approx(80_000)
    assert curve.at(64) == pytest.approx(2 * curve.least_steps)


def test_a_ring_moves_every_byte_nearly_twice():
    """4 devices, 100 bytes at 10 bytes/s: 6 messages of 25 bytes, 2.5 s each, with 1 s of latency each."""
    network = Network(inside=10, between=1, devices=4, latency=1)
    assert network.all_reduce(100, 4) == pytest.approx(6 * (2.5 + 1))
    assert network.gather(100, 4) == pytest.approx(3 * (2.5 + 1))
    assert network.all_reduce(100, 1) == 0
    assert network.all_reduce(100, 8) == pytest.approx(14 * (12.5 + 1))  # over the slow link


def test_a_point_by_hand():
    """8 devices × 2 micro-batches of 4 rows: 64 sequences, 2,000 steps. A step: 2 × 0.4 s, 0.05 s for the optimizer,
    and what of 0.7 s of communication half a backward pass of 0.267 s does not hide."""
    device = Device({1: 0.2, 4: 0.4}, step_seconds=0.05)
    network = Network(inside=25.0, devices=8, latency=0, overlap=0.5)
    model = Model(gradient_bytes=10, weight_bytes=10)
    each = point(STEPS, device, model, network, devices=8, rows=8)
    exposed = 2 * 7 / 8 * 10 / 25 - 0.5 * (2 / 3) * 0.4
    assert (each.batch, each.micro_batch, each.accumulation) == (64, 4, 2)
    assert each.steps == 2000 and each.step_seconds == pytest.approx(0.8 + 0.05 + exposed)
    assert each.waiting == pytest.approx(exposed / each.step_seconds)
    assert each.seconds == pytest.approx(2000 * (0.85 + exposed)) and each.device_seconds == 8 * each.seconds


def test_sharded_weights_are_gathered_for_every_pass():
    device, network = Device({4: 0.4}, 0.05), Network(inside=25.0, latency=0, overlap=0)
    sharded = Model(gradient_bytes=10, weight_bytes=5, sharded=True)
    each = point(STEPS, device, sharded, network, devices=8, rows=8)
    gathers, scatter = 2 * 7 / 8 * 5 / 25, 7 / 8 * 10 / 25
    assert each.step_seconds == pytest.approx(2 * (0.4 + gathers) + 0.05 / 8 + scatter)


def test_rows_that_no_micro_batch_divides_are_rounded_up():
    assert Device({4: 0.4}, 0).split(2) == (4, 1)
    assert Device({1: 0.2, 2: 0.3, 8: 0.8}, 0).split(8) == (8, 1)
    assert Device({1: 0.1, 8: 0.9}, 0).split(8) == (1, 8)  # a memory wall that is slower


def test_without_fixed_costs_the_smallest_batch_is_the_fastest_and_cost_rises_as_theory_says():
    """Time is (aB + b) ÷ n · t: the least batch is n, and twice the critical batch costs three times the least."""
    device = Device({1: 0.1}, 0)
    points = frontier(STEPS, device, NOTHING, FREE, list(doublings(1, 128)))
    assert [each.batch for each in points] == [1, 2, 4, 8, 16, 32, 64, 128]
    for each, share in zip(points, efficiency(points), strict=True):
        assert each.device_seconds == pytest.approx(0.1 * (1000 * each.devices + 64_000))
        assert share == pytest.approx((1000 + 64_000) / (1000 * each.devices + 64_000))
    assert points[-1].device_seconds == pytest.approx(3 * 0.1 * 64_000)


def test_a_fixed_cost_of_a_step_moves_the_batch_to_its_optimum():
    """Time (a + b/B)(B·t + f) is least at B = √(b·f ÷ (a·t)) = √(64 · 16) = 32 sequences."""
    points = frontier(STEPS, Device({1: 0.1}, step_seconds=1.6), NOTHING, FREE, [1])
    assert points[0].batch == 32


def test_more_devices_stop_paying():
    points = frontier(STEPS, Device({1: 0.1}, 0), NOTHING, FREE, list(doublings(1, 1024)))
    names = chosen(points)
    assert names["cheapest"].devices == 1 and names["fastest"].devices == 1024
    assert names["balanced"].devices == 64  # (n + 64)² ÷ n is least at the critical batch
    by_count = {each.devices: each for each in points}
    assert by_count[32].seconds / by_count[64].seconds > math.sqrt(2) > by_count[64].seconds / by_count[128].seconds
