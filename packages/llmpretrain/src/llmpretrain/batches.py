"""Batches of token windows: which tokens a step sees is a function of (seed, step) alone."""

import numpy as np
import torch
from llmcore.losses import Batch
from llmcore.shards import TokenShards
from llmcore.train.config import TrainConfig


class TokenBatches:
    """Windows of `context` + 1 tokens, every window once per epoch, in an order drawn anew for each epoch."""

    def __init__(self, shards: TokenShards, *, context: int, train: TrainConfig) -> None:
        self.shards = shards
        self.context = context
        self.train = train
        self.windows = max((len(shards) - 1) // context, 1)

    def micro_batches(self, step: int) -> list[Batch]:
        """The micro-batches of one optimizer step."""
        rows = self.shards.windows(self.starts(step), self.context + 1)
        size = self.train.rows
        return [window_batch(rows[i : i + size]) for i in range(0, len(rows), size)]

    def starts(self, step: int) -> np.ndarray:
        """Where the windows of a step begin, (batch,); an epoch end may fall inside a step."""
        numbers = np.arange(step * self.train.batch, (step + 1) * self.train.batch)
        epochs = numbers // self.windows
        starts = np.empty_like(numbers)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            starts[here] = self.epoch_starts(int(epoch), numbers[here] % self.windows)
        return starts

    def epoch_starts(self, epoch: int, places: np.ndarray) -> np.ndarray:
        """Window starts at some places of an epoch's order; each epoch also shifts the grid of windows."""
        random = np.random.default_rng([self.train.seed, epoch])
        slack = len(self.shards) - 1 - self.windows * self.context
        shift = int(random.integers(0, max(slack, 0) + 1))
        return random.permutation(self.windows)[places] * self.context + shift


def window_batch(rows: np.ndarray) -> Batch:
    """Rows of tokens (B, T) as a batch in which every token but the first is a target."""
    ids = torch.from_numpy(rows)
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[:, 0] = False
    return Batch(ids=ids, mask=mask)
