"""Batches of token windows: which tokens a step sees is a function of (seed, step) alone."""

import numpy as np
import torch

from llmcore.errors import DataError
from llmcore.losses import Batch
from llmcore.shards import TokenShards
from llmcore.train.config import TrainConfig


class TokenBatches:
    """Windows of `context` tokens, every window once per epoch, in an order drawn anew for each epoch.

    A window begins with the last token of the one before it, so that every token is a target once.
    """

    def __init__(self, shards: TokenShards, *, context: int, train: TrainConfig) -> None:
        self.shards = shards
        self.context = context
        self.train = train
        self.stride = context - 1
        self.windows = (len(shards) - 1) // self.stride
        self.epoch = -1
        self.order = np.empty(0, dtype=np.int64)
        if self.windows < 1:
            raise DataError(
                f"the tokens are {len(shards)}, fewer than a context of {context}",
                hint="give more text, or lower model.context",
            )

    def micro_batches(self, step: int) -> list[Batch]:
        """The micro-batches of one optimizer step."""
        rows = self.shards.windows(self.starts(step), self.context)
        size = self.train.rows
        return [window_batch(rows[i : i + size]) for i in range(0, len(rows), size)]

    def data_rows(self, step: int) -> list[int]:
        """Where the windows of a step begin among the training tokens."""
        return [int(start) for start in self.starts(step)]

    def starts(self, step: int) -> np.ndarray:
        """Where the windows of a step begin, (batch,); an epoch end may fall inside a step."""
        numbers = np.arange(step * self.train.batch, (step + 1) * self.train.batch)
        epochs = numbers // self.windows
        starts = np.empty_like(numbers)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            starts[here] = self.starts_of_epoch(int(epoch))[numbers[here] % self.windows]
        return starts

    def starts_of_epoch(self, epoch: int) -> np.ndarray:
        """Where the windows of an epoch begin, in its order, (windows,); the last epoch asked for is kept."""
        if epoch != self.epoch:
            self.epoch, self.order = epoch, self.draw(epoch)
        return self.order

    def draw(self, epoch: int) -> np.ndarray:
        """An epoch's windows in an order of its own; each epoch also shifts their grid."""
        random = np.random.default_rng([self.train.seed, epoch])
        slack = len(self.shards) - 1 - self.windows * self.stride
        shift = int(random.integers(0, slack + 1))
        order: np.ndarray = random.permutation(self.windows) * self.stride + shift
        return order


def window_batch(rows: np.ndarray) -> Batch:
    """Rows of tokens (B, T) as a batch in which every token but the first is a target."""
    ids = torch.from_numpy(rows)
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[:, 0] = False
    return Batch(ids=ids, mask=mask)
