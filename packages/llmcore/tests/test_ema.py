"""The moving average of the weights: its formula, what sees it, and that it goes on with the run."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from llmcore.losses import Loss
from llmcore.train.config import TrainConfig
from llmcore.train.ema import Average
from llmcore.train.loop import fit
from llmcore.train.metrics import read_metrics
from llmcore.train.optim import SGD, AdamW, Muon, Optimizer
from llmcore.train.run import Run
from llmcore.train.signals import Stopped
from llmcore.train.source import FromFunction


def test_the_average_follows_its_formula_and_forgets_the_first_weights() -> None:
    model = nn.Linear(2, 1, bias=False)
    optimizer = SGD(momentum=0.0).build(model, 0.1)
    average = Average(optimizer, 0.6)
    expected: Tensor | None = None
    for step in range(12):
        model.weight.grad = torch.full_like(model.weight, float(step - 3))
        optimizer.step()
        average.update(step)
        decay = min(0.6, (1 + step) / (10 + step))
        now = model.weight.detach().clone()
        expected = now if expected is None else decay * expected + (1 - decay) * now
    weights = model.weight.detach().clone()
    assert expected is not None
    with average.applied():
        torch.testing.assert_close(model.weight.detach(), expected)
    assert torch.equal(model.weight, weights)


def test_a_weight_that_first_moves_later_is_averaged_from_then_on() -> None:
    model = nn.ModuleList([nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False)])
    optimizer = AdamW().build(model, 0.1)
    average = Average(optimizer, 0.9)
    for step in range(3):
        for index, layer in enumerate(model):
            layer.weight.grad = torch.ones_like(layer.weight) if index == 0 or step else None
        optimizer.step()
        average.update(step)
    late = optimizer.state[model[1].weight]
    assert set(late) >= {"ema", "exp_avg"} and not torch.equal(late["ema"], model[1].weight)


def batch(step: int) -> Sequence[Tensor]:
    return [torch.randn(6, 3, generator=torch.Generator().manual_seed(step))]


def squares(model: nn.Module, x: Tensor) -> Loss:
    return Loss((model(x) - x.sum(1, keepdim=True)).square().sum(), len(x))


def train(out: Path, config: TrainConfig, seen: list[Tensor] | None = None) -> nn.Linear:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)

    def evaluate(model: nn.Module) -> dict[str, float]:
        assert isinstance(model, nn.Linear)
        if seen is not None:
            seen.append(model.weight.detach().clone())
        return {"loss": float(squares(model, batch(99)[0]).total)}

    with Run(out, made_by="test", config=config, quiet=True) as run:
        fit(model, FromFunction(batch), squares, config, run, evaluate=evaluate)
        run.finish(model)
    return model


def settings(**changes: object) -> TrainConfig:
    base = TrainConfig(steps=8, lr=0.1, ema=0.8, device="cpu", dtype="fp32", log_every=1, eval_every=4, save_every=3)
    return base.model_copy(update=changes)


def test_evaluation_and_artifact_have_the_average_and_training_goes_on_from_the_weights(tmp_path: Path) -> None:
    seen: list[Tensor] = []
    model = train(tmp_path / "with", settings(), seen)
    train(tmp_path / "without", settings(ema=None))
    last = "run/checkpoints/step-00000008"
    kept = load_file(tmp_path / "with" / last / "model.safetensors")
    average = load_file(tmp_path / "with" / last / "optimizer.safetensors")["ema/weight"]
    assert torch.equal(kept["weight"], load_file(tmp_path / "without/model.safetensors")["weight"])
    assert not torch.equal(kept["weight"], average)
    assert torch.equal(seen[-1], average)
    assert torch.equal(load_file(tmp_path / "with/model.safetensors")["weight"], average)
    assert torch.equal(model.weight, average)
    losses = [[r["loss"] for r in read_metrics(tmp_path / name / "run/metrics.jsonl")] for name in ("with", "without")]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("optimizer", [AdamW(), Muon(), SGD()])
def test_the_average_goes_on_with_the_run_to_the_bit(optimizer: Optimizer, tmp_path: Path) -> None:
    train(tmp_path / "whole", settings(optimizer=optimizer))
    for stop in (2, 4, 7):
        with pytest.raises(Stopped):
            train(tmp_path / "parts", settings(optimizer=optimizer, stop_after=stop))
    train(tmp_path / "parts", settings(optimizer=optimizer))
    for name in ("model.safetensors", "run/checkpoints/step-00000008/optimizer.safetensors"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_the_best_weights_are_those_that_were_evaluated(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, seen = nn.Linear(3, 1), []
    config = settings(artifact="best", keep_best=1, eval_every=2)

    def evaluate(model: nn.Linear) -> dict[str, float]:
        seen.append(model.weight.detach().clone())
        return {"loss": float(len(seen))}  # the first is the best

    with Run(tmp_path / "out", made_by="test", config=config, quiet=True) as run:
        fit(model, FromFunction(batch), squares, config, run, evaluate=evaluate)
        run.finish(model)
    assert torch.equal(load_file(tmp_path / "out/model.safetensors")["weight"], seen[0])
    assert len(seen) == 4 and not torch.equal(seen[0], seen[-1])
