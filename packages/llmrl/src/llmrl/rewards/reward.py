"""Reward: a rule that gives each completion one number, and what such a rule sees.

A rule is a Part in the entry-point group `llmrl.reward`, so that another package can offer its own:

    class Polite(Reward):
        kind: Literal["polite"] = "polite"

        def build(self) -> RewardFunction:
            return lambda samples: [float("please" in sample.text) for sample in samples]

A package that shall not need this one offers any other Part with such a `build`: what a Sample has, it is given.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from pydantic import Field

from llmcore.extensions import Part
from llmcore.records import Prompt

GROUP = "llmrl.reward"
DEFAULT_TIMEOUT = 60.0


class Sample(NamedTuple):
    """A completion as a reward sees it."""

    prompt: Prompt
    """The prompt's record: messages, answer, and the row's other keys as `extra`."""
    text: str
    """The completion without its stop token; a control token inside it is spelled out."""
    ids: tuple[int, ...] = ()
    """The completion's tokens, the stop token included."""
    stopped: bool = True
    """Whether it ended by itself; False if it was cut at the longest length."""


RewardFunction = Callable[[Sequence[Sample]], Sequence[float | None]]
"""A number for each completion, in their order; None where there is no saying."""


class Reward(Part):
    """A rule that gives each completion one number."""

    timeout: float = Field(DEFAULT_TIMEOUT, gt=0)
    """Seconds that one call, for all completions of a rollout, may take."""

    def build(self) -> RewardFunction:
        """The function from completions to rewards, in their order."""
        raise NotImplementedError(f"{type(self).__name__} must define build()")
