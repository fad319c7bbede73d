"""Means and extremes of a step are those of all its micro-batches and ranks."""

import json
from typing import Any

import torch
from torch import Tensor, nn

from llmcore.losses import Loss
from llmcore.train.distributed import Ranks
from llmcore.train.loop import train_step
from llmcore.train.optim import AdamW
from llmcore.train.tally import Tally


def test_extremes_are_those_of_all_micro_batches() -> None:
    def loss_fn(model: nn.Module, x: Tensor) -> Loss:
        figures = {"highest": (float(x.max()), "max"), "lowest": (float(x.min()), "min")}
        return Loss(model(x).square().sum(), len(x), figures)

    model, data = nn.Linear(3, 1), torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    for parts in ([data[:1], data[1:]], [data[2:], data[:2]]):
        result = train_step(model, AdamW().build(model, 0.1), parts, loss_fn, clip=1.0)
        assert result.metrics == {"highest": float(data.max()), "lowest": float(data.min())}


class TwoRanks(Ranks):
    """This process, and one that has seen further."""

    def gather(self, value: Any = None) -> list[Any]:
        """What crosses is JSON."""
        theirs = [[], 0.0, 3, 30, {"highest": [9.0, "max"], "lowest": [-7.0, "min"], "mean": [3.0, 2]}]
        return [json.loads(json.dumps(value)), theirs]


def test_extremes_and_means_are_those_of_all_ranks() -> None:
    tally = Tally()
    figures = {"highest": (8.0, "max"), "lowest": (-8.0, "min"), "mean": (1.0, 2), "of nothing": (0.0, 0)}
    tally.add(Loss(torch.zeros(()), 1, figures), None, None)
    tally.over(TwoRanks(), torch.zeros(()))
    assert tally.figures() == {"highest": 9.0, "lowest": -8.0, "mean": 1.0}
    assert (tally.count, tally.tokens) == (4, 31)
