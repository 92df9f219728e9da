"""The order in which a run sees its rows: a seeded pseudo-random permutation with O(1) memory and O(1) seek, and a
variant whose batches hold rows of similar length."""

import numpy as np

from hfbsz.plan.plan import BLOCK

SMALL = 1024  # up to this many rows a permutation in memory is as cheap, and uniform
_ROUNDS = 6


class Order:
    """Row numbers of a run over `rows` rows; every epoch has its own permutation.

    An unbalanced Feistel network on the bits of rows−1, with cycle walking (Black & Rogaway 2002): the row at position
    `i` of the run depends only on `i` and the seed. Raises ValueError if `rows` is less than 1.
    """

    def __init__(self, rows: int, seed: int) -> None:
        if rows < 1:
            raise ValueError("an order needs at least one row")
        self.rows, self.seed = rows, seed
        bits = max(2, (rows - 1).bit_length())
        self._left, self._right = bits // 2, bits - bits // 2

    def take(self, start: int, count: int) -> np.ndarray:
        """Row numbers (int64, shape [count]) at the run's positions start … start+count−1."""
        positions = np.arange(start, start + count, dtype=np.int64)
        epochs = positions // self.rows
        parts = [self._permute(positions[epochs == epoch] % self.rows, int(epoch)) for epoch in np.unique(epochs)]
        return np.concatenate(parts) if parts else positions

    def _permute(self, positions: np.ndarray, epoch: int) -> np.ndarray:
        if self.rows <= SMALL:
            return np.random.default_rng((self.seed, epoch)).permutation(self.rows)[positions]
        keys = np.random.default_rng((self.seed, epoch)).integers(0, 2**63, size=_ROUNDS, dtype=np.uint64)
        values = self._encrypt(positions.astype(np.uint64), keys)
        while (outside := values >= self.rows).any():  # cycle walking: on average fewer than two rounds
            values[outside] = self._encrypt(values[outside], keys)
        return values.astype(np.int64)

    def _encrypt(self, values: np.ndarray, keys: np.ndarray) -> np.ndarray:
        left, right = values >> np.uint64(self._right), values & np.uint64(2**self._right - 1)
        for number, key in enumerate(keys):
            if number % 2 == 0:
                left = left ^ (_mix(right ^ key) & np.uint64(2**self._left - 1))
            else:
                right = right ^ (_mix(left ^ key) & np.uint64(2**self._right - 1))
        return (left << np.uint64(self._right)) | right


class LengthOrder:
    """Row numbers of a run whose batches hold rows of similar length, so that little padding is needed.

    Positions 0 … end−1 of `Order` (`end` is `total` rounded up to full batches) are split into blocks of 16 batches;
    the last block may be shorter. So every block holds the same rows as in `Order`. A block is sorted by length
    (`lengths`, shape [rows]) and split into batches, and these batches are shuffled. The result depends only on seed,
    lengths, batch and total. The last block that was computed is cached.
    """

    def __init__(self, lengths: np.ndarray, seed: int, batch: int, total: int) -> None:
        self.order = Order(len(lengths), seed)
        self.lengths, self.batch, self.end = lengths, batch, -(-total // batch) * batch
        self._cached: tuple[int, np.ndarray] = -1, np.empty(0, np.int64)

    def take(self, start: int, count: int) -> np.ndarray:
        """Row numbers (int64, shape [count]) at the run's positions start … start+count−1. Raises ValueError for
        positions beyond the end of the run."""
        size, stop = BLOCK * self.batch, start + count
        if start < 0 or stop > self.end:
            raise ValueError(f"positions {start} to {stop} of a run of {self.end}")
        first = start // size
        blocks = [self._block(number) for number in range(first, -(-stop // size))]
        return np.concatenate(blocks)[start - first * size : stop - first * size] if count else np.empty(0, np.int64)

    def _block(self, number: int) -> np.ndarray:
        if self._cached[0] != number:
            start = number * BLOCK * self.batch
            rows = self.order.take(start, min(BLOCK * self.batch, self.end - start))
            batches = rows[np.argsort(self.lengths[rows], kind="stable")].reshape(-1, self.batch)
            generator = np.random.default_rng((self.order.seed, number, 1))  # the 1: differs from all epochs'
            self._cached = number, generator.permutation(batches).ravel()
        return self._cached[1]


def _mix(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
