"""Early stopping: a run ends once its validation figure has not improved for some evaluations.

What decides is in metrics.jsonl, which a resumed run cuts at its step: there is no state to save and none to lose.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import Field

from llmcore.config import Config
from llmcore.errors import TrainingError


class EarlyStopping(Config):
    """When a run ends before its last step, as if that were its last."""

    patience: int = Field(3, ge=1)
    """Evaluations without an improvement after which it ends."""
    min_delta: float = Field(0.0, ge=0)
    """By how much a figure must be better than the best so far to be an improvement."""
    metric: str = "val_loss"
    """The figure, by its name in metrics.jsonl."""
    mode: Literal["min", "max"] = "min"
    """Whether lower or higher is better."""

    def verdict(self, rows: Iterable[Mapping[str, Any]]) -> str | None:
        """Why a run with these metrics ends, in words; None if it goes on."""
        best, best_step, waited = float("inf"), 0, 0
        for row in rows:
            value = self.figure(row)
            if value is None:
                continue
            if value < best - self.min_delta:
                best, best_step, waited = value, row["step"], 0
            else:
                waited += 1
        if waited < self.patience:
            return None
        shown = best if self.mode == "min" else -best
        return (
            f"{self.metric} has not improved on the {shown:.6g} of step {best_step} "
            f"in {waited} evaluations (train.early_stopping)"
        )

    def figure(self, row: Mapping[str, Any]) -> float | None:
        """The figure of one evaluation, turned so that lower is better; None of a step without one."""
        figures = [name for name in row if name.startswith("val_")]
        if not figures:
            return None
        if self.metric not in row:
            raise TrainingError(
                f"train.early_stopping.metric is {self.metric!r}, which the evaluation does not give",
                hint=f"it gives {', '.join(figures)}",
            )
        value = row[self.metric]
        if value is None:  # it was not finite
            return float("inf")
        return float(value) if self.mode == "min" else -float(value)
