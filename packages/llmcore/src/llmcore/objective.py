"""Settings of the next-token loss: `[loss]` of pretraining and fine-tuning. Reads without torch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from pydantic import Field

from llmcore.config import Config

if TYPE_CHECKING:
    from llmcore.losses import Batch, Loss
    from llmcore.model.transformer import Transformer


class NextToken(Config):
    """What training adds to the cross-entropy; evaluation is always the plain one."""

    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """The share of each target that is spread evenly over all tokens (0.1 in arXiv:1706.03762)."""
    z_loss: float = Field(0.0, ge=0)
    """Weight of the squared log of the softmax's normaliser, which keeps scores from drifting (1e-4 in PaLM)."""

    def build(self) -> Callable[[Transformer, Batch], Loss]:
        """`next_token_loss` with these settings."""
        from llmcore.losses import next_token_loss

        return partial(next_token_loss, label_smoothing=self.label_smoothing, z_loss=self.z_loss)
