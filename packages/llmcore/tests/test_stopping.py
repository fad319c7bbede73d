"""Early stopping: what counts as an improvement, and that an ended run is a finished one, interrupted or not."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from llmcore.errors import TrainingError
from llmcore.losses import Loss
from llmcore.manifest import read_manifest
from llmcore.train.config import TrainConfig
from llmcore.train.loop import fit
from llmcore.train.metrics import read_metrics
from llmcore.train.run import Run
from llmcore.train.signals import Stopped
from llmcore.train.source import FromFunction
from llmcore.train.stopping import EarlyStopping


def rows(*values: float | None, metric: str = "val_loss") -> list[dict[str, float | int | None]]:
    """Evaluations at steps 10, 20, …, each after a step that has none."""
    pairs = [[{"step": 10 * n - 5, "loss": 1.0}, {"step": 10 * n, metric: v}] for n, v in enumerate(values, 1)]
    return [row for pair in pairs for row in pair]  # type: ignore[misc]


def test_it_ends_after_patience_evaluations_without_an_improvement_and_says_why() -> None:
    stopping = EarlyStopping(patience=2)
    assert stopping.verdict(rows(3.0, 2.0, 2.0)) is None
    assert stopping.verdict(rows(3.0, 2.0, 2.5, 1.9, 1.95)) is None
    reason = stopping.verdict(rows(3.0, 2.0, 2.5, 2.0))
    assert reason is not None and "val_loss has not improved on the 2 of step 20 in 2 evaluations" in reason


def test_less_than_min_delta_is_no_improvement() -> None:
    falling = rows(3.0, 2.95, 2.93, 2.91)
    assert EarlyStopping(patience=2).verdict(falling) is None
    assert EarlyStopping(patience=3, min_delta=0.1).verdict(falling) is not None
    assert EarlyStopping(patience=2, min_delta=0.05).verdict(rows(3.0, 2.96, 2.92, 2.88)) is None


def test_where_more_is_better_it_waits_for_more() -> None:
    stopping = EarlyStopping(patience=2, metric="val_accuracy", mode="max")
    assert stopping.verdict(rows(0.1, 0.2, 0.3, metric="val_accuracy")) is None
    reason = stopping.verdict(rows(0.3, 0.2, 0.1, metric="val_accuracy"))
    assert reason is not None and "improved on the 0.3 of step 10" in reason


def test_a_figure_that_is_not_finite_is_no_improvement() -> None:
    assert EarlyStopping(patience=1).verdict(rows(2.0, None)) is not None


def test_a_metric_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(TrainingError, match="'val_los', which the evaluation does not give") as caught:
        EarlyStopping(metric="val_los").verdict(rows(2.0))
    assert "val_loss" in str(caught.value.hint)


def settings(**changes: object) -> TrainConfig:
    base = TrainConfig(steps=30, lr=0.1, device="cpu", dtype="fp32", log_every=1, eval_every=2, save_every=5)
    return base.model_copy(update={"early_stopping": EarlyStopping(patience=3), **changes})


def train(out: Path, config: TrainConfig, *, held_out: bool = True, quiet: bool = True) -> None:
    torch.manual_seed(0)
    model, data = nn.Linear(3, 1), torch.randn(6, 3)

    def squares(model: nn.Module, x: Tensor) -> Loss:
        return Loss((model(x) - x.sum(1, keepdim=True)).square().sum(), len(x))

    def batch(step: int) -> Sequence[Tensor]:
        return [data]

    def evaluate(model: nn.Module) -> dict[str, float]:  # falls until step 6
        return {"loss": abs(len(read_metrics(out / "run/metrics.jsonl")) - 6.0)}

    with Run(out, made_by="test", config=config, quiet=quiet) as run:
        fit(model, FromFunction(batch), squares, config, run, evaluate=evaluate if held_out else None)
        run.finish(model)


def test_an_ended_run_is_finished_and_stays_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path / "out", settings(), quiet=False)
    assert "ended at step 12 of 30: val_loss has not improved on the 0 of step 6" in capsys.readouterr().err
    manifest = read_manifest(tmp_path / "out")
    assert manifest.counts["steps"] == 12
    assert (tmp_path / "out/run/checkpoints/step-00000012").is_dir()
    train(tmp_path / "out", settings())
    assert read_manifest(tmp_path / "out") == manifest


def test_its_patience_survives_interruptions(tmp_path: Path) -> None:
    train(tmp_path / "whole", settings())
    for stop in (3, 7, 8, 11):
        with pytest.raises(Stopped):
            train(tmp_path / "parts", settings(stop_after=stop))
    train(tmp_path / "parts", settings())
    assert read_manifest(tmp_path / "parts").files == read_manifest(tmp_path / "whole").files
    assert read_manifest(tmp_path / "parts").counts["steps"] == 12


def test_killed_between_the_last_save_and_the_artifact_it_still_ends_there(tmp_path: Path) -> None:
    train(tmp_path / "out", settings())
    files = read_manifest(tmp_path / "out").files
    (tmp_path / "out/manifest.json").unlink()
    train(tmp_path / "out", settings())
    assert read_manifest(tmp_path / "out").files == files


def test_without_an_evaluation_it_is_an_error_not_a_setting_that_does_nothing(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="this run has no evaluation"):
        train(tmp_path / "out", settings(), held_out=False)
