"""Ragged rows to padded batches: which rows a step sees is a function of (seed, step), with little padding.

Rows are shuffled anew in each epoch, sorted by length inside blocks of some batches, and the batches shuffled again:
every row comes once an epoch, neighbours in length share a batch, and no order by length is left over the epoch.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

MULTIPLE = 8
"""Rows are as long as a multiple of this, which suits the kernels."""
BLOCK = 16
"""Batches that are sorted by length together: more means less padding and less mixing."""


class LengthBuckets:
    """The order of ragged rows: `rows_of(step)` names the rows of one optimizer step."""

    def __init__(self, lengths: Sequence[int], *, batch: int, seed: int) -> None:
        assert len(lengths) > 0, "no rows"
        self.lengths = np.asarray(lengths)
        self.batch = min(batch, len(lengths))
        self.seed = seed
        self.steps_per_epoch = -(-len(lengths) // self.batch)
        self.epoch = -1
        self.batches: list[np.ndarray] = []

    def rows_of(self, step: int) -> np.ndarray:
        """Row numbers of one step; at most `batch` of them, fewer in one batch of an epoch that does not divide."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch != self.epoch:
            self.epoch, self.batches = epoch, self.order(epoch)
        return self.batches[place]

    def order(self, epoch: int) -> list[np.ndarray]:
        """All batches of one epoch."""
        random = np.random.default_rng([self.seed, epoch])
        rows = random.permutation(len(self.lengths))
        block = BLOCK * self.batch
        batches: list[np.ndarray] = []
        for start in range(0, len(rows), block):
            here = rows[start : start + block]
            here = here[np.argsort(self.lengths[here], kind="stable")]
            batches += [here[i : i + self.batch] for i in range(0, len(here), self.batch)]
        return [batches[i] for i in random.permutation(len(batches))]


def pad_rows(
    rows: Sequence[Sequence[int]], *, value: int, multiple: int = MULTIPLE, limit: int | None = None
) -> Tensor:
    """Rows of ids, right-padded with `value` to one length that `multiple` divides, or to `limit`, (B, T)."""
    longest = max(len(row) for row in rows)
    width = -(-longest // multiple) * multiple
    padded = np.full((len(rows), width if limit is None else max(longest, min(width, limit))), value, dtype=np.int64)
    for number, row in enumerate(rows):
        padded[number, : len(row)] = row
    return torch.from_numpy(padded)
