"""Which checkpoints stay, and which weights a run ends with."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from llmcore.errors import ArtifactError, ConfigError, TrainingError
from llmcore.losses import Loss
from llmcore.manifest import Manifest
from llmcore.train.config import TrainConfig
from llmcore.train.loop import fit
from llmcore.train.retention import Retention, better, read_pins, snapshot_paths, write_pins
from llmcore.train.run import Run
from llmcore.train.signals import Stopped
from llmcore.train.source import FromFunction

pytestmark = pytest.mark.usefixtures("one_thread")
VALUES = {2: 5.0, 4: 1.0, 6: 3.0, 8: 2.0, 10: 4.0, 12: 6.0}


def settings(**changes: Any) -> TrainConfig:
    base = TrainConfig(steps=12, batch=2, device="cpu", dtype="fp32", log_every=1, save_every=4, eval_every=2, watch=())
    return TrainConfig.model_validate({**base.model_dump(), **changes})


def loss_fn(model: nn.Module, x: Tensor) -> Loss:
    return Loss(model(x).square().sum(), len(x))


def train(out: Path, config: TrainConfig, *, metric: str = "loss", resume: str = "auto") -> Manifest:
    """A run whose evaluations give the VALUES of their steps, which the batches tell."""
    torch.manual_seed(0)
    model, at = nn.Linear(3, 1), 0

    def batch(step: int) -> list[Tensor]:
        nonlocal at
        at = step + 1
        return [torch.randn(2, 3, generator=torch.Generator().manual_seed(step))]

    with Run(out, made_by="test", config=config, resume=resume, quiet=True) as run:
        fit(model, FromFunction(batch), loss_fn, config, run, evaluate=lambda _: {metric: VALUES[at]})
        return run.finish(model)


def there(out: Path) -> list[int]:
    return list(snapshot_paths(out / "run/checkpoints"))


def test_the_best_stay_beside_the_newest_and_are_saved_when_they_are_found(tmp_path: Path) -> None:
    train(tmp_path / "plain", settings())
    assert there(tmp_path / "plain") == [8, 12]
    train(tmp_path / "best", settings(keep_best=2, save_every=12))
    assert there(tmp_path / "best") == [4, 8, 12]
    train(tmp_path / "highest", settings(keep_best=1, best_mode="max", save_every=4))
    assert there(tmp_path / "highest") == [8, 12]


def test_a_run_that_was_stopped_keeps_the_same_ones(tmp_path: Path) -> None:
    for stop in (5, 9):
        with pytest.raises(Stopped):
            train(tmp_path, settings(keep_best=2, stop_after=stop))
    assert {4, 8} <= set(there(tmp_path))
    train(tmp_path, settings(keep_best=2))
    assert there(tmp_path) == [4, 8, 9, 12]  # 9 is the second newest


def test_the_artifact_is_the_last_or_the_best_and_says_so(tmp_path: Path) -> None:
    last = train(tmp_path / "last", settings(keep_best=1))
    best = train(tmp_path / "best", settings(keep_best=1, artifact="best"))
    assert "best_step" not in last.counts and last.metrics["val_loss"] == 6.0
    assert best.counts["best_step"] == 4 and best.counts["steps"] == 12 and best.metrics["val_loss"] == 1.0
    for name, step in (("last", 12), ("best", 4)):
        saved = load_file(tmp_path / name / f"run/checkpoints/step-{step:08d}/model.safetensors")
        found = load_file(tmp_path / name / "model.safetensors")
        assert all(torch.equal(saved[key], found[key]) for key in saved)
    assert best.id != last.id


def test_the_best_of_an_averaged_run_is_the_average_at_that_step(tmp_path: Path) -> None:
    train(tmp_path, settings(keep_best=1, artifact="best", ema=0.9))
    saved = load_file(tmp_path / "run/checkpoints/step-00000004/optimizer.safetensors")
    found = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(saved[f"ema/{name}"], tensor) for name, tensor in found.items())


def test_best_weights_without_a_best_checkpoint_are_refused() -> None:
    with pytest.raises(ValueError, match="set keep_best=1"):
        settings(artifact="best")


def test_a_metric_that_no_evaluation_gives_is_named_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"'val_reward', which no evaluation(.|\n)*choose one of val_loss"):
        train(tmp_path, settings(keep_best=1, best_metric="val_reward"))


def test_ranking_without_any_evaluation_is_refused(tmp_path: Path) -> None:
    config, model = settings(keep_best=1), nn.Linear(3, 1)
    with (
        Run(tmp_path, made_by="test", config=config, quiet=True) as run,
        pytest.raises(TrainingError, match="keep_best is 1, and this run has no evaluation"),
    ):
        fit(model, FromFunction(lambda _: [torch.ones(2, 3)]), loss_fn, config, run)


def test_changing_what_the_artifact_is_is_refused_with_both_values(tmp_path: Path) -> None:
    train(tmp_path, settings(keep_best=1))
    with pytest.raises(ConfigError, match="artifact is 'best', it was 'last'"):
        train(tmp_path, settings(keep_best=1, artifact="best"))


def test_pinned_checkpoints_stay(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        train(tmp_path, settings(stop_after=5, save_every=1, pin_every=3))
    assert there(tmp_path) == [3, 4, 5]
    write_pins(tmp_path / "run", [4])
    train(tmp_path, settings(save_every=1, pin_every=3))
    assert there(tmp_path) == [3, 4, 6, 9, 11, 12]


def test_a_damaged_list_of_pins_prunes_nothing(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        train(tmp_path, settings(stop_after=4, save_every=2))
    for content in ("", "{}", '["3"]', "[true]", "[" * 10_000):
        (tmp_path / "run/pins.json").write_text(content)
        with pytest.raises(ArtifactError, match=r"pins\.json is not a list of steps"):
            train(tmp_path, settings(stop_after=5, save_every=1))
        assert {2, 4} <= set(there(tmp_path))
    assert read_pins(tmp_path / "none") == set()


@pytest.mark.parametrize(
    ("metric", "mode"),
    [
        ("val_loss", "min"),
        ("val_accuracy", "max"),
        ("val_reward", "max"),
        ("val_bits_per_byte", "min"),
        ("val_kl", "min"),
    ],
)
def test_which_way_is_better_follows_from_the_name(metric: str, mode: str) -> None:
    assert better(metric, "auto") == mode
    assert better(metric, "max") == "max"


def test_retention_goes_by_step_and_nothing_foreign_goes(tmp_path: Path) -> None:
    for step in (30, 10, 100, 20):
        folder = tmp_path / f"step-{step:08d}"
        folder.mkdir()
        (folder / "manifest.json").write_text("{}")
    (tmp_path / "step-00000005").mkdir()  # never committed
    (tmp_path / "notes").mkdir()
    Retention(settings(keep=2), []).prune(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["notes", "step-00000005", "step-00000030", "step-00000100"]
