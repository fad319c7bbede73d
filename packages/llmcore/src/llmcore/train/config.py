"""The settings every stage trains with: `[train]`."""

from typing import Literal

from pydantic import Field, model_validator

from llmcore.config import Config
from llmcore.train.optim import AdamW, AnyOptimizer
from llmcore.train.schedule import AnySchedule, Cosine


class TrainConfig(Config):
    """How long, how fast and how precisely to train."""

    steps: int = Field(1000, ge=1)
    """Optimizer steps of the whole run."""
    batch: int = Field(16, ge=1)
    """Rows per optimizer step."""
    micro_batch: int | None = Field(None, ge=1)
    """Rows per forward pass; fewer than `batch` need less memory and give the same update (none: all at once)."""
    lr: float = Field(1e-3, gt=0)
    """Peak learning rate."""
    optimizer: AnyOptimizer = AdamW()
    """What turns gradients into updates."""
    schedule: AnySchedule = Cosine()
    """The learning rate over the steps."""
    clip: float = Field(1.0, gt=0)
    """Largest norm of the gradient; a longer one is shortened to it."""
    seed: int = Field(0, ge=0)
    """What all randomness is a function of, together with the step."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the activations; weights are kept in fp32."""
    log_every: int = Field(10, ge=1)
    """Steps between two lines of metrics."""
    eval_every: int = Field(100, ge=1)
    """Steps between two evaluations; the last step has one in any case."""
    save_every: int = Field(200, ge=1)
    """Steps between two resumable checkpoints; the last step has one in any case."""
    keep: int = Field(2, ge=2)
    """How many resumable checkpoints to keep."""
    stop_after: int | None = Field(None, ge=0)
    """End early, and resumably, after this step."""

    @model_validator(mode="after")
    def check_rows(self) -> "TrainConfig":
        """A micro-batch is a part of the batch."""
        if self.micro_batch is not None and self.micro_batch > self.batch:
            raise ValueError(f"micro_batch is {self.micro_batch}, more than the batch of {self.batch}")
        return self

    @property
    def rows(self) -> int:
        """Rows per forward pass."""
        return self.micro_batch or self.batch


SAFE_TO_CHANGE = frozenset({"device", "micro_batch", "log_every", "eval_every", "save_every", "keep", "stop_after"})
"""Settings that may differ when a run goes on: they change neither the data nor the updates (beyond rounding)."""
