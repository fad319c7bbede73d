"""Where a number was not finite first: the module, and whether forward or backward; watching changes nothing."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llmcore.losses import Batch, next_token_loss
from llmcore.model.config import ModelConfig
from llmcore.model.transformer import Transformer
from llmcore.train.config import TrainConfig
from llmcore.train.precision import LossScale
from llmcore.train.probe import Probe
from llmcore.train.replay import Figures, one_step

IDS = torch.arange(18).view(2, 9) % 13
BATCH = Batch(IDS, torch.ones_like(IDS, dtype=torch.bool).index_fill(1, torch.tensor([0]), False))
CONFIG = TrainConfig(device="cpu", dtype="fp32")


def tiny() -> Transformer:
    return ModelConfig(vocab_size=13, width=16, depth=2, context=9, dropout=0.2).build(seed=0)


class Spoiled(nn.Module):
    """A layer that is given, and spoils its forward or its backward."""

    def __init__(self, inner: nn.Module, *, forward: bool) -> None:
        super().__init__()
        self.inner, self.spoils_forward = inner, forward

    def forward(self, *inputs: Any) -> Tensor:
        out: Tensor = self.inner(*inputs)
        return out / 0 if self.spoils_forward else BadBackward.apply(out)


class BadBackward(torch.autograd.Function):
    """The identity, with a gradient that is none."""

    @staticmethod
    def forward(_ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * math.nan


def take(model: Transformer) -> Figures:
    return one_step(
        model, [BATCH], next_token_loss, config=CONFIG, step=1, device=torch.device("cpu"), scale=LossScale()
    )


def probed(model: Transformer) -> Probe:
    probe = Probe(model)
    with probe:
        take(model)
    return probe


@pytest.mark.parametrize(
    ("forward", "expected"),
    [
        (True, "the forward of blocks.1.feedforward"),
        (False, "the backward, at the output of blocks.1.feedforward.inner.down"),
    ],
)
def test_the_module_and_the_direction_are_named(forward: bool, expected: str) -> None:
    model = tiny()
    model.blocks[1].feedforward = Spoiled(model.blocks[1].feedforward, forward=forward)  # type: ignore[union-attr]
    assert probed(model).first == expected


def test_a_bad_weight_is_named_before_all_that_follows_from_it() -> None:
    model = tiny()
    with torch.no_grad():
        model.final_norm.weight[3] = math.inf  # type: ignore[union-attr, index, operator]
    assert probed(model).first == "the weight final_norm.weight, before the step"


def test_watching_changes_no_number_and_leaves_nothing_behind() -> None:
    watched, alone = tiny(), tiny()
    probe = Probe(watched)
    with probe:
        seen = one_step(
            watched, [BATCH], next_token_loss, config=CONFIG, step=1, device=torch.device("cpu"), scale=LossScale()
        )
    assert seen == one_step(
        alone, [BATCH], next_token_loss, config=CONFIG, step=1, device=torch.device("cpu"), scale=LossScale()
    )
    for one, other in zip(watched.parameters(), alone.parameters(), strict=True):
        assert one.grad is not None and other.grad is not None and torch.equal(one.grad, other.grad)
    assert probe.first is None
    assert not any(module._forward_hooks for module in watched.modules())


def test_norms_are_those_of_outputs_weights_and_gradients() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    x = torch.randn(5, 3)
    probe = Probe(model)
    with probe:
        out = model(x)
        torch.autograd.backward(out.square().sum())
    found = dict(probe.table())
    assert found["1"].output == pytest.approx(float(out.detach().norm()))
    assert found["1"].output_gradient == pytest.approx(float((2 * out.detach()).norm()))
    weights = torch.cat([weight.detach().flatten() for weight in model[0].parameters()])
    assert found["0"].weight == pytest.approx(float(weights.norm()))
    gradients = torch.cat([weight.grad.flatten() for weight in model[0].parameters() if weight.grad is not None])
    assert found["0"].weight_gradient == pytest.approx(float(gradients.norm()))
