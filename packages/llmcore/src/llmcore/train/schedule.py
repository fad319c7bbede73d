"""Learning-rate schedules: pure functions of the step, so there is nothing to save or to step twice.

`build(steps)` gives a function from the number of steps done (0-based) to a factor of the peak rate. All of them begin
with a linear warm-up whose last step is the first at the peak rate.
"""

import math
from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import Field

from llmcore.extensions import Part, part

Factor = Callable[[int], float]


class Schedule(Part):
    """A learning rate over the steps of a run; a kind of its own overrides `shape`, or `build`."""

    warmup: float = Field(0.05, ge=0)
    """Steps over which the rate rises from zero; below 1, a share of all steps."""

    def build(self, steps: int) -> Factor:
        """The factor of the peak rate, for each step of a run of `steps`."""
        warmup = warmup_steps(self.warmup, steps)
        return warmed(warmup, lambda since: self.shape(since / max(1, steps - warmup)))

    def shape(self, progress: float) -> float:
        """The factor after warm-up, for a progress from 0 up to 1."""
        raise NotImplementedError(f"{type(self).__name__} must define shape(progress)")


class Constant(Schedule):
    """The peak rate throughout."""

    kind: Literal["constant"] = "constant"

    def shape(self, progress: float) -> float:  # noqa: ARG002 - the same at every progress
        return 1.0


class Linear(Schedule):
    """A straight line from the peak down to `floor`."""

    kind: Literal["linear"] = "linear"
    floor: float = Field(0.0, ge=0, le=1)
    """The factor at the end."""

    def shape(self, progress: float) -> float:
        return 1 - (1 - self.floor) * progress


class Cosine(Schedule):
    """Half a cosine from the peak down to `floor`."""

    kind: Literal["cosine"] = "cosine"
    floor: float = Field(0.1, ge=0, le=1)
    """The factor at the end."""

    def shape(self, progress: float) -> float:
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * progress))


class WarmupStableDecay(Schedule):
    """The peak rate, then a straight line down to `floor` over the last `decay` of the steps."""

    kind: Literal["wsd"] = "wsd"
    floor: float = Field(0.0, ge=0, le=1)
    """The factor at the end."""
    decay: float = Field(0.2, gt=0, le=1)
    """The share of the steps after warm-up that decay."""

    def shape(self, progress: float) -> float:
        return 1 - (1 - self.floor) * max(0.0, (progress - (1 - self.decay)) / self.decay)


class InverseSquareRoot(Schedule):
    """√(timescale / (timescale + steps since warm-up)): without an end, to be prolonged (arXiv:1706.03762, 5.3)."""

    kind: Literal["inverse_sqrt"] = "inverse_sqrt"
    timescale: int | None = Field(None, ge=1)
    """Steps after warm-up until the rate is 0.71 of the peak (none: as many as the warm-up has, or 10,000 without)."""

    def build(self, steps: int) -> Factor:
        warmup = warmup_steps(self.warmup, steps)
        timescale = self.timescale or warmup or 10_000
        return warmed(warmup, lambda since: math.sqrt(timescale / (timescale + since)))


AnySchedule = Annotated[
    Schedule,
    part(
        "llmcore.schedule",
        cosine=Cosine,
        linear=Linear,
        constant=Constant,
        wsd=WarmupStableDecay,
        inverse_sqrt=InverseSquareRoot,
    ),
]


def warmed(warmup: int, after: Factor) -> Factor:
    """A straight line up to the peak over `warmup` steps, then `after` of the steps since."""
    return lambda step: (step + 1) / warmup if step < warmup else after(step - warmup)


def warmup_steps(warmup: float, steps: int) -> int:
    """The whole number of warm-up steps of a setting that is a share of the steps below 1, and steps from 1 on."""
    return round(warmup * steps) if warmup < 1 else round(warmup)
