"""What the evaluations of a run decide: when it ends, which checkpoints stay, and whose weights it ends with.

All of it is read from the lines of metrics, which a resumed run cuts at its step. Rank 0 has them and decides for all.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from llmcore.errors import TrainingError
from llmcore.train.config import TrainConfig
from llmcore.train.distributed import Ranks
from llmcore.train.metrics import MetricsFile, read_metrics
from llmcore.train.retention import Retention, read_pins, snapshot_paths


class Verdicts:
    """Early stopping, and the ranking of the checkpoints below `snapshots`."""

    def __init__(self, config: TrainConfig, metrics: MetricsFile, snapshots: Path, ranks: Ranks) -> None:
        self.config, self.metrics, self.snapshots, self.ranks = config, metrics, snapshots, ranks
        self.retention = Retention(config, metrics.rows)
        read_pins(snapshots.parent)  # a damaged list is told now, not at the first save

    def note(self, row: Mapping[str, float | int]) -> None:
        """Take in one line of metrics."""
        self.retention.note(row)

    def evaluated(self, step: int) -> bool:
        """Whether this step has its validation figures."""
        return bool(self.ranks.first(self.metrics.evaluated(step)))

    def end_after(self, step: int, *, stopping: bool) -> str | None:
        """Why this evaluated step is the last one, if it is; `stopping`: a signal may have put its evaluation off."""
        if self.config.early_stopping is None or not step or step % self.config.eval_every:
            return None
        reason: str | None = self.ranks.first(self.verdict(step, stopping=stopping) if self.ranks.main else None)
        return reason

    def verdict(self, step: int, *, stopping: bool) -> str | None:
        """What the evaluations so far say of early stopping."""
        assert self.config.early_stopping is not None
        if self.metrics.evaluated(step):
            return self.config.early_stopping.verdict(read_metrics(self.metrics.path))
        if stopping:
            return None
        raise TrainingError(
            "train.early_stopping is set, but this run has no evaluation", hint="leave it out, or hold data out"
        )

    def among_best(self, step: int) -> bool:
        """Whether this step is one of the best so far, and therefore to be saved."""
        if not self.config.keep_best:
            return False
        return bool(self.ranks.first(self.metrics.evaluated(step) and self.retention.among_best(step)))

    def prune(self) -> None:
        """Remove the checkpoints that need not stay."""
        if self.ranks.main:
            self.retention.prune(self.snapshots)

    def best_step(self) -> int:
        """The best step of which there is a checkpoint."""
        ranked: list[int] = self.ranks.first(self.retention.best(snapshot_paths(self.snapshots)))
        if not ranked:
            raise TrainingError(
                f"train.artifact is 'best', and no checkpoint has a {self.config.best_metric}",
                hint="evaluate more often: train.eval_every",
            )
        return ranked[0]


def need_no_evaluation(config: TrainConfig) -> None:
    """Refuse, before the first step, to rank checkpoints that nothing will evaluate."""
    if config.keep_best:
        raise TrainingError(
            f"train.keep_best is {config.keep_best}, and this run has no evaluation to rank by",
            hint="give held-out data, or leave keep_best out",
        )
