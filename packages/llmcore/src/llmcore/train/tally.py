"""What one optimizer step adds up, over its micro-batches and the ranks: sums, divided at the end, and extremes."""

from __future__ import annotations

import math
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from llmcore.losses import Figure, Loss
from llmcore.train.distributed import Ranks


class Tally:
    """Sums of one step. A loss stays on its device until `over` fetches all of them at once."""

    def __init__(self) -> None:
        self.totals: list[Tensor] = []
        self.count = 0
        self.tokens = 0
        self.metrics: dict[str, Figure] = {}
        self.losses: list[float] = []
        """Of each micro-batch, in the order in which they were dealt to the ranks."""
        self.norms: list[float] = []
        self.loss = 0.0

    def add(self, loss: Loss, batch: Any, auxiliary: Tensor | None) -> None:
        """Count a micro-batch; an auxiliary loss is a mean per item."""
        self.totals.append(loss.total.detach())
        self.count += loss.count
        self.tokens += tokens_in(batch, loss.count)
        for name, figure in loss.metrics.items():
            self.add_metric(name, figure)
        if auxiliary is not None:
            self.add_metric("aux_loss", (float(auxiliary.detach()) * loss.count, loss.count))

    def add_metric(self, name: str, figure: Figure) -> None:
        before = self.metrics.get(name)
        self.metrics[name] = figure if before is None else joined(before, figure)

    def over(self, ranks: Ranks, norm: Tensor) -> None:
        """Fetch the losses and the norm of this rank's gradients, and make every sum that of all ranks."""
        *self.losses, own_norm = torch.stack([*(t.float() for t in self.totals), norm.float()]).tolist()
        everyone = ranks.gather([self.losses, own_norm, self.count, self.tokens, self.metrics])
        dealt = zip_longest(*(losses for losses, *_ in everyone))
        self.losses = [loss for row in dealt for loss in row if loss is not None]
        self.loss = math.fsum(self.losses)
        self.norms = [norm for _, norm, *_ in everyone]
        self.count, self.tokens, self.metrics = 0, 0, {}
        for _, _, count, tokens, metrics in everyone:
            self.count += count
            self.tokens += tokens
            for name, (value, how) in metrics.items():
                self.add_metric(name, (value, how))

    def figures(self) -> dict[str, float]:
        """Each metric's mean, or its extreme."""
        return {
            name: value if isinstance(how, str) else value / how for name, (value, how) in self.metrics.items() if how
        }


def joined(one: Figure, other: Figure) -> Figure:
    """A figure of two parts of a step; `Loss.metrics` says how it adds up."""
    (value, how), (more, also) = one, other
    if isinstance(how, str) or isinstance(also, str):
        assert how == also, f"a figure that is {how!r} in one micro-batch and {also!r} in another"
        return (max if how == "max" else min)(value, more), how
    return value + more, how + also


def tokens_in(batch: Any, count: int) -> int:
    """Tokens of a batch; items, where it has no ids."""
    ids = getattr(batch, "ids", None)
    return ids.numel() if isinstance(ids, Tensor) else count
