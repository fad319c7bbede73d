"""Bonus and penalty terms beside a learned reward: length, a missing end, repetition.

Each is a part of its own, `llmreward shape` says what it does to the ranking of answers, and `llmrl` takes it by name:

    llmreward shape runs/reward terms.repetition.amount=0.5 --policy runs/sft
    llmrl grpo --policy runs/sft --reward "runs/reward + 0.5*repetition + missing_end"

Terms are in units of the normalised reward, of which the base policy's answers have deviation 1. Another package adds
its own by the entry-point groups `llmreward.shaping` and `llmrl.reward`.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Literal, Protocol

from pydantic import Field

from llmcore.extensions import Part, part


class Answer(Protocol):
    """What a term sees of an answer."""

    @property
    def text(self) -> str:
        """The answer without its stop token."""

    @property
    def ids(self) -> Sequence[int]:
        """Its tokens, the stop token included."""

    @property
    def stopped(self) -> bool:
        """Whether it ended by itself."""


Terms = Callable[[Sequence[Answer]], list[float]]


class Shaping(Part):
    """A number for each answer that is added to its reward."""

    timeout: float = Field(default=60.0, gt=0)
    """Seconds that llmrl gives one call, as it gives any reward."""

    def build(self) -> Terms:
        """The function from answers to numbers, in their order."""
        raise NotImplementedError(f"{type(self).__name__} must define build")


class LengthBonus(Shaping):
    """`per_token` for each token, up to `up_to` of them: 0.01 · min(length, 100)."""

    kind: Literal["length_bonus"] = "length_bonus"
    per_token: float = Field(default=0.01, gt=0)
    """Reward of a token."""
    up_to: int = Field(default=100, ge=1)
    """Tokens after which there is no more."""

    def build(self) -> Terms:
        return lambda answers: [self.per_token * min(spoken(answer), self.up_to) for answer in answers]


class LengthPenalty(Shaping):
    """`-per_token` for each token beyond the first `free`: -0.01 · max(0, length - 64)."""

    kind: Literal["length_penalty"] = "length_penalty"
    per_token: float = Field(default=0.01, gt=0)
    """What a token costs."""
    free: int = Field(default=64, ge=0)
    """Tokens that cost nothing."""

    def build(self) -> Terms:
        return lambda answers: [-self.per_token * max(0, spoken(answer) - self.free) for answer in answers]


class MissingEnd(Shaping):
    """`-amount` for an answer that was stopped by length, so that going on for ever does not pay."""

    kind: Literal["missing_end"] = "missing_end"
    amount: float = Field(default=1.0, gt=0)
    """What it costs."""

    def build(self) -> Terms:
        return lambda answers: [0.0 if answer.stopped else -self.amount for answer in answers]


class Repetition(Shaping):
    """`-amount` times the share of runs of `size` tokens that the same answer holds earlier."""

    kind: Literal["repetition"] = "repetition"
    amount: float = Field(default=1.0, gt=0)
    """What an answer that only repeats itself costs."""
    size: int = Field(default=4, ge=1)
    """Tokens of a run."""

    def build(self) -> Terms:
        return lambda answers: [-self.amount * repeated(answer.ids, self.size) for answer in answers]


AnyShaping = Annotated[
    Shaping,
    part(
        "llmreward.shaping",
        length_bonus=LengthBonus,
        length_penalty=LengthPenalty,
        missing_end=MissingEnd,
        repetition=Repetition,
    ),
]


def spoken(answer: Answer) -> int:
    """Tokens without the stop token."""
    return len(answer.ids) - int(answer.stopped)


def repeated(ids: Sequence[int], size: int) -> float:
    """The share of runs of `size` tokens that stand earlier in the same row; 0 where there is none."""
    runs = [tuple(ids[i : i + size]) for i in range(len(ids) - size + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0
