import math

import pytest

from hfbsz.plan.schedule import Shape, doubling, linear
from hfbsz.recipe.ramp import Ramp


def test_warmup_then_decay_to_the_floor():
    for name in ("linear", "cosine", "quarter_cosine"):
        shape = Shape(name, total=1000, warmup=100, floor=0.1)
        assert shape.factor(50) == 0.5
        assert shape.factor(100) == pytest.approx(1)
        assert shape.factor(1000) == shape.factor(5000) == pytest.approx(0.1)
        levels = [shape.factor(clock) for clock in range(100, 1001, 50)]
        assert levels == sorted(levels, reverse=True)


def test_the_middle_of_each_shape():
    assert Shape("cosine", 1000).factor(500) == pytest.approx(0.5)
    assert Shape("linear", 1000).factor(500) == pytest.approx(0.5)
    assert Shape("quarter_cosine", 1000).factor(500) == pytest.approx(math.sqrt(0.5))
    assert Shape("constant", 1000, floor=0.1).factor(999) == 1


def test_wsd_decays_at_the_end_only():
    shape = Shape("wsd", 1000, warmup=100, floor=0.0, decay=200)
    assert [shape.factor(clock) for clock in (100, 500, 800, 900, 1000)] == pytest.approx([1, 1, 1, 0.5, 0])


def test_cosine_is_transformers_cosine():
    import torch
    from transformers import get_cosine_schedule_with_warmup

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = get_cosine_schedule_with_warmup(optimizer, 10, 100)
    ours = Shape("cosine", total=100, warmup=10)
    for step in range(100):
        assert theirs.get_last_lr()[0] == pytest.approx(ours.factor(step), abs=1e-12)
        optimizer.step()
        theirs.step()


def test_a_cut_holds_the_rate_until_the_decay_has_reached_the_next():
    shape = Shape("cosine", 1000, cut=2)
    clock = shape.clock_at(0.5)
    assert clock == pytest.approx(500)
    assert (shape.factor(clock - 1), shape.factor(clock + 1)) == (1, 0.5)


def test_doubling_shares_its_part_equally():
    assert doubling(8, 64, 750) == [(0, 8), (250, 16), (500, 32), (750, 64)]
    assert doubling(8, 48, 750)[-1] == (750, 48)
    assert doubling(8, 8, 750) == [(0, 8)]


def test_linear_rises_and_falls():
    assert linear(8, 32, 300, 8) == [(0, 8), (100, 16), (200, 24), (300, 32)]
    assert linear(32, 8, 300, 8)[-1] == (300, 8)


@pytest.mark.parametrize(
    "text", ["8", "5:16", "0:8 x:16", "0:8 10seq", "linear:8,64", "linear:8,9,10,5%", "seesaw:1", "doubling:", "x:3"]
)
def test_what_is_no_ramp(text):
    with pytest.raises(ValueError, match="is not a ramp"):
        Ramp.parse(text)
