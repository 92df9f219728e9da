"""The order in which a run sees its rows: a seeded pseudo-random permutation with O(1) memory and O(1) seek."""

import numpy as np

SMALL = 1024  # below this a true permutation is as cheap, and uniform
_ROUNDS = 6


class Order:
    """Row numbers of a run over `rows` rows: epoch after epoch, each in its own order.

    An unbalanced Feistel network on the bits of rows−1, with cycle walking (Black & Rogaway 2002): position `i` of the
    run is known from `i` and the seed alone.
    """

    def __init__(self, rows: int, seed: int) -> None:
        if rows < 1:
            raise ValueError("an order needs at least one row")
        self.rows, self.seed = rows, seed
        bits = max(2, (rows - 1).bit_length())
        self._left, self._right = bits // 2, bits - bits // 2

    def take(self, start: int, count: int) -> np.ndarray:
        """Row numbers (int64, shape [count]) of the run's positions start … start+count−1."""
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


def _mix(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
