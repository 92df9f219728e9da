import numpy as np
import pytest

from hfbsz.data.order import SMALL, LengthOrder, Order
from hfbsz.plan.plan import BLOCK


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


def lengths_of(rows, seed=7):
    return np.random.default_rng(seed).integers(2, 200, rows).astype(np.int32)


def by_length(rows=1000, seed=0, batch=8, total=None):
    return LengthOrder(lengths_of(rows), seed, batch, total or rows)


@pytest.mark.parametrize(("rows", "batch"), [(1024, 8), (5120, 64), (1000, 8), (40, 40), (7, 7), (96, 1)])
def test_by_length_an_epoch_takes_every_row_once(rows, batch):
    """A run of one epoch: every row once, and where the batch does not divide it, fewer rows than a batch again."""
    order = by_length(rows, batch=batch)
    taken = order.take(0, order.end)
    assert set(taken.tolist()) == set(range(rows)) and 0 <= len(taken) - rows < batch
    seen = np.bincount(taken, minlength=rows)
    assert seen.max() <= 2 and seen.sum() - rows == len(taken) - rows


@pytest.mark.parametrize("total", [3000, 3001])
def test_by_length_a_block_holds_the_rows_that_it_holds_in_order(total):
    """Blocks over the ends of epochs too; the last one may be shorter."""
    order, plain = by_length(total=total), Order(1000, 0)
    size = BLOCK * 8
    assert order.end == -(-total // 8) * 8 and order.end % size
    for start in range(0, order.end, size):
        count = min(size, order.end - start)
        block, expected = order.take(start, count), plain.take(start, count)
        assert sorted(block.tolist()) == sorted(expected.tolist())
        lengths = order.lengths[block].reshape(-1, 8)
        assert (np.diff(lengths) >= 0).all()
        by_shortest = lengths[np.argsort(lengths[:, 0], kind="stable")].ravel()
        assert sorted(lengths.ravel().tolist()) == by_shortest.tolist()  # batches of a sorted block, in another order


def test_by_length_batches_are_shuffled():
    """No batch's place in its block tells its length, and no trend runs through the run."""
    order = by_length(rows=20_000)
    means = order.lengths[order.take(0, order.end)].reshape(-1, 8).mean(axis=1)
    assert abs(np.corrcoef(np.arange(len(means)), means)[0, 1]) < 0.07  # 3.5 standard errors
    assert abs(np.corrcoef(np.arange(len(means)) % BLOCK, means)[0, 1]) < 0.07
    last = order.take(order.end - 32, 32).reshape(-1, 8)  # the last block: 4 batches
    assert len(np.unique(order.lengths[last].mean(axis=1))) == 4


def test_by_length_seeking_equals_walking_and_reads_one_block():
    whole = by_length(total=3000).take(0, 3000)
    order = by_length(total=3000)
    walked = np.concatenate([order.take(clock, 8) for clock in range(0, 3000, 8)])
    assert np.array_equal(walked, whole)
    for start, count in ((2992, 8), (0, 8), (996, 8), (120, 300), (128, 0), (3000, 0), (5, 2)):
        fresh = by_length(total=3000)
        read, plain = [], fresh.order.take
        fresh.order.take = lambda *given, read=read, plain=plain: read.append(given) or plain(*given)
        assert np.array_equal(fresh.take(start, count), whole[start : start + count])
        assert len(read) <= count // 128 + 2 and all(length <= 128 for _, length in read)
    far = LengthOrder(lengths_of(1000), 0, 8, 10**15)
    assert len(far.take(10**15 - 8, 8)) == 8
    for start, count in ((2996, 8), (-8, 8)):
        with pytest.raises(ValueError, match="of a run of 3000"):
            order.take(start, count)


def test_by_length_is_a_function_of_seed_lengths_batch_and_total():
    first = by_length().take(0, 1000)
    assert np.array_equal(by_length().take(0, 1000), first)
    assert (by_length(seed=1).take(0, 1000) == first).mean() < 0.02
    assert (by_length(batch=4).take(0, 1000) == first).mean() < 0.2
    start = 1000 // 128 * 128  # a longer run differs in the last block alone
    longer = by_length(total=2000).take(0, 1000)
    assert np.array_equal(longer[:start], first[:start]) and not np.array_equal(longer[start:], first[start:])
