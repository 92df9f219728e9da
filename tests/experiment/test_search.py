"""The search for a tuned value: which values are tried, and when it ends."""

import math

import pytest

from hfbsz.experiment import search


def follow(best: float, middle: float, count: int) -> dict[float, float]:
    """The losses of a search over a loss that is lowest at `best`."""

    def loss(value: float) -> float:
        return math.log(value / best) ** 2

    losses = {value: loss(value) for value in search.first_values(middle, count)}
    while (value := search.next_value(losses, count)) is not None:
        losses[value] = loss(value)
    return losses


def test_first_values_are_centered_on_the_recipes_value():
    assert search.first_values(1e-4, 5) == [2.5e-5, 5e-5, 1e-4, 2e-4, 4e-4]
    assert search.first_values(3e-3, 3) == [1.5e-3, 3e-3, 6e-3]


def test_a_best_inside_ends_the_search():
    losses = follow(best=1.1e-4, middle=1e-4, count=5)
    assert len(losses) == 5 and search.best_value(losses) == 1e-4 and search.is_inside(losses)


def test_the_search_is_extended_beyond_the_end_that_is_best():
    for best in (8e-4, 1.2e-5):
        losses = follow(best, middle=1e-4, count=5)
        assert 5 < len(losses) <= 8 and search.is_inside(losses)
        assert 0.7 < search.best_value(losses) / best < 1.5


@pytest.mark.parametrize("failed", [[5e-5], [2.5e-5], [4e-4], [2.5e-5, 4e-4], [2.5e-5, 5e-5, 2e-4, 4e-4]])
@pytest.mark.parametrize("best", [1e-6, 1e-4, 1e-2])
def test_a_search_ends_where_runs_fail(failed, best):
    losses = {
        value: None if value in failed else math.log(value / best) ** 2 for value in (2.5e-5, 5e-5, 1e-4, 2e-4, 4e-4)
    }
    tried = 0
    while (value := search.next_value(losses, 5)) is not None:
        assert value not in losses
        losses[value], tried = math.log(value / best) ** 2, tried + 1
        assert tried <= 3


def test_a_search_that_does_not_end_is_not_called_tuned():
    losses = follow(best=1.0, middle=1e-4, count=3)
    assert len(losses) == 6 and search.best_value(losses) == max(losses) and not search.is_inside(losses)


def test_diverged_and_failed_values_are_never_the_best():
    losses = {1e-4: 0.6, 2e-4: 0.5, 4e-4: math.inf, 8e-4: None}
    assert search.best_value(losses) == 2e-4 and search.is_inside(losses)
    assert not search.is_inside({1e-4: 0.6, 2e-4: 0.5, 4e-4: None})  # a full disk does not show that a rate is too high
    assert search.best_value({1e-4: None}) is None and search.next_value({1e-4: None}, 3) is None
