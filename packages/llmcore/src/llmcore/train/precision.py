"""Loss scaling: what keeps small gradients from vanishing in float16 (arXiv:1710.03740, section 3.2).

float16 has no number between 0 and 6e-8. The loss is multiplied by a power of two before the backward and the gradient
divided by it after, in float32, which is exact. A gradient that overflows is thrown away, the scale halved, and *the
same step taken again*, with the same rows and the same noise: every step is an update, and schedule, data and counts
know nothing of it. A loss that is not finite by itself is no matter of scale and ends the run, as in any precision.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from llmcore.train.diverged import NotFiniteError
from llmcore.train.snapshot import ScaleState

if TYPE_CHECKING:
    from llmcore.train.loop import StepResult

LARGEST = 2.0**15
"""The largest power of two that float16 holds, as it must: the scale is the first gradient of the backward."""


class LossScale:
    """The scale of the next backward; in any precision but float16 it is 1 and stays so."""

    def __init__(self, initial: float = 1.0, *, growth_interval: int = 0) -> None:
        """Doubled after `growth_interval` steps without an overflow; 0: fixed."""
        self.value, self.good_steps, self.overflows = initial, 0, 0
        self.growth_interval = growth_interval

    def take(self, step: Callable[[float], "StepResult"], *, seed: int) -> "StepResult":
        """Take `step(scale)` with its noise from `seed`; while the gradient overflows, again with half the scale."""
        while True:
            torch.manual_seed(seed)
            try:
                result = step(self.value)
            except NotFiniteError as error:
                if error.micro_batch is not None or not self.lower():
                    raise
                continue
            return self.told(result)

    def lower(self) -> bool:
        """Halve the scale; False if that would not help any more."""
        if not self.growth_interval or self.value <= 1.0:
            return False
        self.value, self.good_steps, self.overflows = self.value / 2, 0, self.overflows + 1
        return True

    def told(self, result: "StepResult") -> "StepResult":
        """Count a step that was taken, and add the scale to its figures."""
        if not self.growth_interval:
            return result
        figures = {"loss_scale": self.value, "overflows": float(self.overflows)}
        self.good_steps += 1
        if self.good_steps == self.growth_interval:
            self.value, self.good_steps = min(LARGEST, 2 * self.value), 0
        return result._replace(metrics={**result.metrics, **figures})

    def state(self) -> ScaleState | None:
        """What a run needs to go on; nothing of a fixed scale."""
        if not self.growth_interval:
            return None
        return ScaleState(value=self.value, good_steps=self.good_steps, overflows=self.overflows)

    def restore(self, state: ScaleState | None) -> None:
        """Go on from a state."""
        if state is not None and self.growth_interval:
            self.value, self.good_steps, self.overflows = state.value, state.good_steps, state.overflows


def loss_scale(dtype: torch.dtype, *, initial: float, growth_interval: int) -> LossScale:
    """Dynamic in float16, fixed at 1 in any other precision."""
    return LossScale(initial, growth_interval=growth_interval) if dtype == torch.float16 else LossScale()
