"""An exponential moving average of the weights: evaluated and kept in the place of the last ones.

A mean over the last 1 / (1 - decay) updates or so, without the noise of the last few (Polyak and Juditsky, 1992). It
stands in the optimizer's state beside the moments, so that it is saved, moved and sharded as they are; training and
rollouts go on from the weights themselves.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

KEY = "ema"


class Average:
    """The average of all weights of one optimizer; without a decay, nothing."""

    def __init__(self, optimizer: torch.optim.Optimizer, decay: float | None) -> None:
        self.optimizer, self.decay = optimizer, decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after update number `step` (0-based).

        The first steps count for more, min(decay, (1 + step) / (10 + step)), so that the first weights are forgotten.
        """
        if self.decay is None:
            return
        for weight in self.weights():
            if weight.grad is not None and KEY not in self.optimizer.state[weight]:
                self.optimizer.state[weight][KEY] = weight.detach().clone()
        weights, averages = self.pairs()
        if weights:
            torch._foreach_lerp_(averages, weights, 1 - min(self.decay, (1 + step) / (10 + step)))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """While inside, the model has the average's weights."""
        self.exchange()
        try:
            yield
        finally:
            self.exchange()

    @torch.no_grad()
    def exchange(self) -> None:
        """Weights and average change places, to the bit."""
        for weight, average in zip(*self.pairs(), strict=True):
            held = weight.detach().clone()
            weight.copy_(average)
            average.copy_(held)

    def pairs(self) -> tuple[list[Tensor], list[Tensor]]:
        """Every weight that ever had a gradient, and its average; the others are their own."""
        weights = [weight for weight in self.weights() if KEY in self.optimizer.state.get(weight, {})]
        return weights, [self.optimizer.state[weight][KEY] for weight in weights]

    def weights(self) -> Iterator[Tensor]:
        return (weight for group in self.optimizer.param_groups for weight in group["params"])
