"""float16: small gradients survive, overflows cost no step, and the scale goes on with the run."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from llmcore.errors import TrainingError
from llmcore.losses import Batch, Loss, next_token_loss
from llmcore.model.config import ModelConfig
from llmcore.train.config import TrainConfig
from llmcore.train.diverged import NotFiniteError
from llmcore.train.loop import StepResult, fit
from llmcore.train.metrics import read_metrics
from llmcore.train.precision import LARGEST, LossScale, loss_scale
from llmcore.train.run import Run
from llmcore.train.signals import Stopped
from llmcore.train.snapshot import ScaleState
from llmcore.train.source import FromFunction

FINE = StepResult(1.0, 1.0, 1, 1, {})


def take(scale: LossScale, *outcomes: bool) -> list[float]:
    """The scales that one step was tried with, if its attempts go as said."""
    tried: list[float] = []
    going = iter(outcomes)
    noise: set[float] = set()

    def step(scale: float) -> StepResult:
        tried.append(scale)
        noise.add(float(torch.rand(())))
        if not next(going):
            raise NotFiniteError(losses=[1.0], grad_norm=float("inf"))
        return FINE

    scale.take(step, seed=3)
    assert len(noise) == 1  # every attempt has the same
    return tried


def test_an_overflow_halves_the_scale_and_the_same_step_is_taken_again() -> None:
    scale = LossScale(8.0, growth_interval=3)
    assert take(scale, False, False, True) == [8.0, 4.0, 2.0]
    assert scale.state() == ScaleState(value=2.0, good_steps=1, overflows=2)


def test_the_scale_doubles_after_good_steps_alone_up_to_what_float16_holds() -> None:
    scale = LossScale(4.0, growth_interval=3)
    assert [take(scale, True) for _ in range(4)] == [[4.0], [4.0], [4.0], [8.0]]
    take(scale, True)
    assert take(scale, False, True) == [8.0, 4.0]  # the count begins anew
    assert [take(scale, True) for _ in range(3)] == [[4.0], [4.0], [8.0]]
    high = LossScale(LARGEST, growth_interval=1)
    assert [take(high, True) for _ in range(2)] == [[LARGEST], [LARGEST]]


def test_what_no_scale_mends_ends_the_run() -> None:
    with pytest.raises(NotFiniteError, match="norm is inf"):
        take(LossScale(2.0, growth_interval=3), False, False, False)

    def nan(scale: float) -> StepResult:
        raise NotFiniteError(losses=[float("nan")], grad_norm=float("nan"))

    scale = LossScale(8.0, growth_interval=3)
    with pytest.raises(NotFiniteError, match="loss of micro-batch 0 is nan"):
        scale.take(nan, seed=3)
    assert scale.value == 8.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_precisions_have_no_scale(dtype: torch.dtype) -> None:
    scale = loss_scale(dtype, initial=64.0, growth_interval=10)
    assert take(scale, True) == [1.0] and scale.state() is None
    with pytest.raises(NotFiniteError):
        take(scale, False)


def batch(step: int) -> Sequence[Batch]:
    ids = torch.randint(0, 13, (4, 9), generator=torch.Generator().manual_seed(step))
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[:, 0] = False
    return [Batch(ids[:3], mask[:3]), Batch(ids[3:], mask[3:])]


def steep(model: nn.Module, batch: Batch) -> Loss:
    """A loss whose gradient overflows in float16 at scales above about 1,000."""
    loss = next_token_loss(model, batch)  # type: ignore[arg-type]
    return loss._replace(total=loss.total * 40)


def settings(**changes: object) -> TrainConfig:
    base = TrainConfig(steps=9, batch=4, lr=0.01, device="cpu", dtype="fp16", log_every=1, eval_every=9, save_every=4)
    return base.model_copy(update={"loss_scale": 2.0**13, "loss_scale_window": 3, **changes})


def train(out: Path, config: TrainConfig) -> nn.Module:
    model = ModelConfig(vocab_size=13, width=16, depth=1, context=9, dropout=0.2).build(seed=0)
    with Run(out, made_by="test", config=config, quiet=True) as run:
        fit(model, FromFunction(batch), steep, config, run)
        run.finish(model)
    return model


def history(out: Path) -> list[dict[str, float]]:
    rows = read_metrics(out / "run/metrics.jsonl")
    return [{n: v for n, v in row.items() if n not in ("seconds", "tokens_per_s")} for row in rows]


def test_a_float16_run_overflows_without_losing_a_step_and_goes_on_to_the_bit(tmp_path: Path) -> None:
    model = train(tmp_path / "whole", settings())
    rows = history(tmp_path / "whole")
    assert [row["step"] for row in rows] == list(range(1, 10))  # every step is an update
    assert rows[0]["overflows"] > 0 and rows[-1]["overflows"] > rows[0]["overflows"]  # at first, and after growing
    assert all(weight.dtype == torch.float32 for weight in model.parameters())
    for stop in (2, 5, 7):  # inside the interval after which the scale grows
        with pytest.raises(Stopped):
            train(tmp_path / "parts", settings(stop_after=stop))
    state = json.loads((tmp_path / "parts/run/checkpoints/step-00000007/state.json").read_text())["loss_scale"]
    assert 0 < state["good_steps"] < 3
    train(tmp_path / "parts", settings())
    assert history(tmp_path / "parts") == rows
    for name in ("model.safetensors", "run/checkpoints/step-00000009/optimizer.safetensors"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_the_scale_changes_no_update_and_float16_trains_as_float32_does(tmp_path: Path) -> None:
    train(tmp_path / "low", settings(loss_scale=1.0, loss_scale_window=1000))
    train(tmp_path / "high", settings(loss_scale=8.0, loss_scale_window=1000))
    train(tmp_path / "full", settings(dtype="fp32"))
    low, high, full = (load_file(tmp_path / name / "model.safetensors") for name in ("low", "high", "full"))
    for name in full:
        assert (low[name] - high[name]).norm() <= 0.02 * full[name].norm()
        assert (high[name] - full[name]).norm() <= 0.1 * full[name].norm()
    losses = [[row["loss"] for row in history(tmp_path / name)] for name in ("high", "full")]
    assert losses[0] == pytest.approx(losses[1], rel=0.01)


def test_a_scale_keeps_gradients_that_float16_alone_would_lose() -> None:
    weight = torch.tensor(1.0, requires_grad=True)

    def gradient(scale: float) -> float:
        weight.grad = None
        small = (weight.half() * 2.0**-13) * torch.tensor(2.0**-13, dtype=torch.float16)
        torch.autograd.backward(small.float() * scale)
        assert weight.grad is not None
        return float(weight.grad) / scale

    assert gradient(1.0) == 0.0
    assert gradient(256.0) == 2.0**-26


def test_a_nan_ends_a_float16_run_as_any_other(tmp_path: Path) -> None:
    def broken(model: nn.Module, batch: Batch) -> Loss:
        loss = steep(model, batch)
        return loss._replace(total=loss.total * float("nan"))

    model = ModelConfig(vocab_size=13, width=16, depth=1, context=9).build(seed=0)
    config = settings()
    with (
        Run(tmp_path / "out", made_by="test", config=config, quiet=True) as run,
        pytest.raises(TrainingError, match="is nan"),
    ):
        fit(model, FromFunction(batch), broken, config, run)
