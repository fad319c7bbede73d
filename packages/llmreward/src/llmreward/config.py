"""Settings of a reward run."""

from typing import Literal

from pydantic import Field

from llmcore.config import Config
from llmcore.train.config import TrainConfig
from llmreward.loss import AnyPreferenceLoss, BradleyTerry
from llmreward.trunk import AnyTrunk, BaseTrunk


class RewardInputs(Config):
    """What the run is made from."""

    base: str | None = None
    """The policy whose trunk the reward model begins from."""
    data: str | None = None
    """Preferences: an artifact or a JSONL file; the built-in ones if absent."""


class RewardData(Config):
    """How preferences become rows of tokens."""

    max_length: int | None = Field(default=None, ge=8)
    """Longest conversation in tokens; the model's context if absent."""
    long: Literal["cut", "drop"] = "cut"
    """A pair that is too long: cut (the prompt's beginning, then the answers' ends), or drop it."""
    group: Literal["prompt", "pair"] = "prompt"
    """What is learned from at once: all comparisons of a prompt, each weighing 1 / their number, or each pair alone."""
    answers: int = Field(default=16, ge=2)
    """At most so many answers of one prompt are compared at once; of more, several groups are made."""
    max_dropped: float = Field(default=0.01, ge=0, le=1)
    """The share of pairs that may be dropped before the run refuses to start."""


class Normalization(Config):
    """Samples of the base policy over which the finished reward gets mean 0 and deviation 1."""

    prompts: int = Field(default=64, ge=0)
    """Training prompts to answer; 0 leaves the reward as it is."""
    samples: int = Field(default=4, ge=1)
    """Answers to each."""
    max_new_tokens: int = Field(default=64, ge=1)
    """Longest answer."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature."""


class RewardConfig(Config):
    """A reward model from preferences."""

    inputs: RewardInputs = RewardInputs()
    """What the run is made from; each has an option of the same name."""
    data: RewardData = RewardData()
    """How preferences become rows of tokens."""
    trunk: AnyTrunk = BaseTrunk()
    """What reads a conversation: the base as it is, the base made an encoder, or a new model."""
    loss: AnyPreferenceLoss = BradleyTerry()
    """How the two scores of a pair become a loss."""
    token_share: float = Field(default=0.0, ge=0, lt=1)
    """The share of the loss that is taken at every token from where the answers part, rather than at the last."""
    normalize: Normalization = Normalization()
    """What the scale of the finished reward is measured on."""
    train: TrainConfig = TrainConfig(steps=800, batch=16, lr=5e-4)
    """The optimization; `batch` counts prompts (pairs, with data.group = "pair")."""
