"""Curricula: training begins with the easy examples, and the others join as competence grows.

A `Difficulty` says how hard each example is, a `Pacing` how competence grows (Platanios et al., arXiv:1903.09848).
Competence c at a step opens the easiest share c of the examples, from which the step draws at random: no order inside
that share is left that could correlate batches. After the ramp every example comes once an epoch. Which examples a
step sees is a function of (seed, step), so a run that goes on needs nothing but its step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Literal, NamedTuple

import numpy as np
from pydantic import Field

from llmcore.chat import Rendered
from llmcore.config import Config
from llmcore.errors import ConfigError, DataError
from llmcore.extensions import Part, part
from llmcore.records import Chat
from llmcore.train.schedule import warmup_steps

Scores = np.ndarray[tuple[int], np.dtype[np.float64]]


class Examples(NamedTuple):
    """What a difficulty is judged by."""

    rows: Sequence[Rendered]
    """The examples as they are trained on."""
    chats: Sequence[Chat]
    """The same as records."""
    numbers: Sequence[int]
    """Where each stands in the data, from 0: those with nothing to train on are left out before."""
    reference_loss: Callable[[Sequence[Rendered]], Scores]
    """Nats per trained token of each row under the reference checkpoint."""


class Difficulty(Part):
    """The contract: `scores` gives each example a number, the hardest the highest."""

    def scores(self, examples: Examples) -> Scores:
        raise NotImplementedError(f"{type(self).__name__} must define scores")

    def keys(self) -> tuple[str, ...]:
        """Keys of the data's rows that must be read along."""
        return ()


class ByLength(Difficulty):
    """Longer conversations are harder."""

    kind: Literal["length"] = "length"

    def scores(self, examples: Examples) -> Scores:
        return np.array([len(row.ids) for row in examples.rows], dtype=np.float64)


class ByLoss(Difficulty):
    """What a reference checkpoint (`inputs.reference`; the base if none) finds less likely is harder."""

    kind: Literal["loss"] = "loss"

    def scores(self, examples: Examples) -> Scores:
        return examples.reference_loss(examples.rows)


class ByKey(Difficulty):
    """A key of the data's rows says it: a number, or one of the words of `order`."""

    kind: Literal["key"] = "key"
    key: str = "difficulty"
    """The key of each row."""
    order: tuple[str, ...] = ()
    """Its words, the easiest first, where it is not a number."""

    def keys(self) -> tuple[str, ...]:
        return (self.key,)

    def scores(self, examples: Examples) -> Scores:
        pairs = zip(examples.numbers, examples.chats, strict=True)
        return np.array([self.score(number, chat) for number, chat in pairs], dtype=np.float64)

    def score(self, number: int, chat: Chat) -> float:
        value = chat.extra.get(self.key)
        if self.order and value in self.order:
            return float(self.order.index(str(value)))
        if not self.order and isinstance(value, int | float) and math.isfinite(value):
            return float(value)
        wanted = f"one of {', '.join(self.order)}" if self.order else "a number"
        raise DataError(
            f"conversation {number + 1}: {self.key} is {value!r}, a curriculum needs {wanted}",
            hint="give each row the key, or set curriculum.by.key to another, or curriculum.by.order to its words",
        )


AnyDifficulty = Annotated[Difficulty, part("llmsft.difficulty", length=ByLength, loss=ByLoss, key=ByKey)]


class Pacing(Part):
    """The contract: `shape` gives competence for a progress from 0 to 1 through the ramp, from `start` up to 1."""

    def shape(self, progress: float, start: float) -> float:
        raise NotImplementedError(f"{type(self).__name__} must define shape")


class LinearPacing(Pacing):
    """New examples join at a constant rate."""

    kind: Literal["linear"] = "linear"

    def shape(self, progress: float, start: float) -> float:
        return start + (1 - start) * progress


class RootPacing(Pacing):
    """√(start² + (1 - start²) · progress): each example gets an equal time to be learned before others join."""

    kind: Literal["root"] = "root"

    def shape(self, progress: float, start: float) -> float:
        return math.sqrt(start**2 + (1 - start**2) * progress)


class StepPacing(Pacing):
    """Equal stages, at whose ends equal shares join at once."""

    kind: Literal["step"] = "step"
    stages: int = Field(4, ge=1)
    """How many stages the ramp has."""

    def shape(self, progress: float, start: float) -> float:
        return start + (1 - start) * math.floor(progress * self.stages) / self.stages


AnyPacing = Annotated[Pacing, part("llmsft.pacing", root=RootPacing, linear=LinearPacing, step=StepPacing)]


class Curriculum(Config):
    """From easy to hard."""

    by: AnyDifficulty = ByLength()
    """What makes an example hard: length, loss (of a reference checkpoint), or key (of the data's rows)."""
    pacing: AnyPacing = RootPacing()
    """How the open share of the data grows: root, linear or step."""
    ramp: float = Field(0.5, gt=0)
    """Steps until all of the data is open; below 1, a share of all steps."""
    start: float = Field(0.1, gt=0, le=1)
    """The share that is open at the first step."""


class Ramp:
    """The rows of each step: drawn from the open share, and after the ramp as `after` has them."""

    def __init__(
        self, scores: Scores, curriculum: Curriculum, *, batch: int, steps: int, seed: int, after: RowsOf
    ) -> None:
        if not np.isfinite(scores).all():
            raise ConfigError(
                f"curriculum.by {curriculum.by.kind!r}: not every difficulty is a finite number",
                hint="give every row a finite number, or choose another curriculum.by",
            )
        random = np.random.default_rng(seed).permutation(len(scores))  # which of equals comes first
        self.easiest = random[np.argsort(scores[random], kind="stable")]
        self.curriculum, self.seed, self.after = curriculum, seed, after
        self.batch = min(batch, len(scores))
        self.steps = warmup_steps(curriculum.ramp, steps)

    def competence(self, step: int) -> float:
        """The share of the examples that are open at a step."""
        if step >= self.steps:
            return 1.0
        return min(1.0, self.curriculum.pacing.shape(step / self.steps, self.curriculum.start))

    def rows_of(self, step: int) -> np.ndarray:
        """Row numbers of one step."""
        if step >= self.steps:
            return self.after(step - self.steps)
        count = max(self.batch, math.ceil(self.competence(step) * len(self.easiest)))
        chosen = np.random.default_rng([self.seed, step]).choice(count, self.batch, replace=False)
        return self.easiest[chosen]


RowsOf = Callable[[int], np.ndarray]
