"""Feed-forwards against their formulas."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llmcore.model.feedforward import GEGLU, GELU, FeedForward, GatedLayer, PlainLayer, ReLU2, SwiGLU


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def test_the_default_hidden_width_is_eight_thirds_rounded_up_to_sixteen() -> None:
    assert SwiGLU().hidden_width(256) == 688
    assert GEGLU().hidden_width(64) == 176
    assert GELU().hidden_width(64) == 256
    assert ReLU2(expansion=2).hidden_width(10) == 32
    assert SwiGLU(hidden=5, expansion=9).hidden_width(64) == 5


@pytest.mark.parametrize(
    ("kind", "activation"),
    [(SwiGLU(hidden=6), F.silu), (GEGLU(hidden=6), lambda x: F.gelu(x, approximate="tanh"))],
)
def test_gated_layers_by_their_formula(kind: FeedForward, activation: object) -> None:
    layer, x = kind.build(4), torch.randn(2, 3, 4)
    assert isinstance(layer, GatedLayer) and callable(activation)
    randomise(layer)
    gate, up = layer.gate_up.weight[:6], layer.gate_up.weight[6:]
    expected = (activation(x @ gate.T) * (x @ up.T)) @ layer.down.weight.T
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize(
    ("kind", "activation"),
    [
        (GELU(hidden=6, bias=True), lambda x: F.gelu(x, approximate="tanh")),
        (GELU(hidden=6, bias=True, exact=True), F.gelu),
        (ReLU2(hidden=6, bias=True), lambda x: F.relu(x) ** 2),
    ],
)
def test_plain_layers_by_their_formula(kind: FeedForward, activation: object) -> None:
    layer, x = kind.build(4), torch.randn(2, 3, 4)
    assert isinstance(layer, PlainLayer) and callable(activation)
    randomise(layer)
    expected = F.linear(activation(F.linear(x, layer.up.weight, layer.up.bias)), layer.down.weight, layer.down.bias)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("kind", [SwiGLU(hidden=4), GEGLU(hidden=4), GELU(hidden=4), ReLU2(hidden=4)])
def test_gradients(kind: FeedForward) -> None:
    layer = kind.build(3).double()
    randomise(layer)
    x = torch.randn(1, 2, 3, dtype=torch.float64, requires_grad=True)

    def run(x: Tensor, *_weights: Tensor) -> Tensor:
        result: Tensor = layer(x)
        return result

    assert torch.autograd.gradcheck(run, (x, *layer.parameters()))


def randomise(layer: torch.nn.Module) -> None:
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
