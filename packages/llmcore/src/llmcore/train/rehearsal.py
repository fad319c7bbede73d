"""What is done with a stage's model, data and loss instead of training: `plan` and `replay`.

A stage's own `run` makes all it needs and calls `fit`. A run that was opened for a rehearsal writes to a temporary
folder only, and `fit` hands everything to the rehearsal, which ends the command.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from torch import nn

from llmcore.losses import Loss
from llmcore.train.config import TrainConfig
from llmcore.train.source import Source

if TYPE_CHECKING:
    from llmcore.train.run import Run

LossFunction = Callable[[Any, Any], Loss]


class Rehearsal(Protocol):
    """Given in place of `resume`, it is played in place of the training loop."""

    def play(
        self, run: Run, model: nn.Module, source: Source[Any], loss_fn: LossFunction, config: TrainConfig
    ) -> NoReturn:
        """Do it, and leave by SystemExit."""
        ...
