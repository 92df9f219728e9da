import numpy as np
import pytest

from hfbsz.data.order import SMALL, Order


@pytest.mark.parametrize("rows", [1, 2, 5, 40, SMALL, SMALL + 1, 4096, 5000, 25_923])
def test_an_epoch_takes_every_row_once(rows):
    order = Order(rows, seed=0)
    for epoch in range(2):
        assert sorted(order.take(epoch * rows, rows).tolist()) == list(range(rows))


@pytest.mark.parametrize("rows", [100, 5000])
def test_any_position_is_known_by_itself(rows):
    """Seeking: a piece read anywhere, over the end of an epoch too, equals the same piece of the whole."""
    order = Order(rows, seed=3)
    whole = order.take(0, 3 * rows)
    for start, count in ((0, 7), (rows - 3, 9), (2 * rows - 1, 2), (rows, 0)):
        assert np.array_equal(Order(rows, seed=3).take(start, count), whole[start : start + count])


def test_seeds_and_epochs_differ_and_rows_are_mixed():
    rows = 5000
    first, second = Order(rows, 0).take(0, rows), Order(rows, 1).take(0, rows)
    assert (first == second).mean() < 0.01 and (first == Order(rows, 0).take(rows, rows)).mean() < 0.01
    assert abs(np.corrcoef(np.arange(rows), first)[0, 1]) < 0.05  # 3.5 standard errors
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.05


def test_the_seek_does_not_grow_with_the_clock():
    order = Order(10**12, seed=0)
    far = order.take(10**13 - 5, 10)
    assert len(far) == 10 and (far < 10**12).all() and (far >= 0).all()
