"""Settings of a pretraining run."""

from llmcore.config import Config
from llmcore.model.config import ModelConfig
from llmcore.objective import NextToken
from llmcore.train.config import TrainConfig


class PretrainInputs(Config):
    """What the run is made from."""

    data: str | None = None
    """A tokens artifact (`llmdata tokens`); the built-in standard-library tokens if absent."""
    init: str | None = None
    """A policy whose weights and shape the run begins with, at step 0; fresh weights if absent."""


class PretrainConfig(Config):
    """A base model from tokens."""

    inputs: PretrainInputs = PretrainInputs()
    """What the run is made from; each has an option of the same name."""
    model: ModelConfig = ModelConfig()
    """The architecture."""
    loss: NextToken = NextToken()
    """What training adds to the cross-entropy."""
    train: TrainConfig = TrainConfig(steps=2000, batch=16, lr=2e-3)
    """The optimization."""
