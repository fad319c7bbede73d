"""Whether a completion is as long as wanted, in tokens."""

from typing import Literal

from pydantic import Field

from llmrl.rewards.reward import Reward, RewardFunction, Sample


class LengthReward(Reward):
    """1 at `target` tokens, falling in a straight line to 0 at none and at twice as many."""

    kind: Literal["length"] = "length"
    target: int = Field(16, ge=1)
    """The wanted length in tokens, the stop token aside."""

    def build(self) -> RewardFunction:
        return lambda samples: [max(0.0, 1 - abs(spoken(s) - self.target) / self.target) for s in samples]


class OverlongReward(Reward):
    """0 up to `limit - cache` tokens, then a straight line to -1 at `limit` (DAPO, equation 13)."""

    kind: Literal["overlong"] = "overlong"
    limit: int = Field(64, ge=1)
    """Tokens from which the punishment is full."""
    cache: int = Field(16, ge=1)
    """Over how many tokens it grows."""

    def build(self) -> RewardFunction:
        return lambda samples: [-min(1.0, max(0.0, (len(s.ids) - self.limit) / self.cache + 1)) for s in samples]


def spoken(sample: Sample) -> int:
    """Tokens without the stop token."""
    return len(sample.ids) - int(sample.stopped)
