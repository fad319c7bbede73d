"""The layer against its dense twin and a naive loop over tokens."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llmcore.model.feedforward import GatedLayer, SwiGLU
from llmcore.model.linear import held_weights, initialise
from llmcore.model.transformer import take_aux_losses
from llmmoe.config import MoE
from llmmoe.layer import Experts, MoELayer, split_product


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def test_one_expert_is_its_dense_twin() -> None:
    layer, x = layer_of(MoE(experts=1, active=1, hidden=24)), torch.randn(2, 5, 16)
    assert torch.equal(layer(x), dense_twin(layer, 0)(x))


@pytest.mark.parametrize("active", [1, 2, 4])
def test_equal_experts_are_the_dense_layer(active: int) -> None:
    layer, x = layer_of(MoE(experts=4, active=active, hidden=24)), torch.randn(2, 5, 16)
    with torch.no_grad():
        for weight in (layer.experts.gate_up, layer.experts.down):
            weight.copy_(weight[:1].expand_as(weight))
    torch.testing.assert_close(layer(x), dense_twin(layer, 2)(x))


@pytest.mark.parametrize(("experts", "active"), [(4, 2), (4, 1), (3, 3), (16, 2)])
def test_equals_a_naive_loop_over_tokens(experts: int, active: int) -> None:
    """Sixteen experts for ten tokens: some serve nobody."""
    layer = layer_of(MoE(experts=experts, active=active, hidden=8))
    x, upstream = torch.randn(2, 5, 16, requires_grad=True), torch.randn(2, 5, 16)
    outputs = layer(x)
    outputs.backward(upstream)
    got = {name: parameter.grad for name, parameter in layer.named_parameters()}
    got_x, x.grad = x.grad, None
    layer.zero_grad()

    expected = naive(layer, x)
    expected.backward(upstream)
    torch.testing.assert_close(outputs, expected)
    torch.testing.assert_close(got_x, x.grad)
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(got[name], parameter.grad, atol=1e-5, rtol=1e-4, msg=name)


def test_gradients() -> None:
    layer = layer_of(MoE(experts=3, active=2, hidden=4), width=4).double()
    x = torch.randn(1, 3, 4, dtype=torch.float64, requires_grad=True)

    def run(x: Tensor, *_weights: Tensor) -> Tensor:
        result: Tensor = layer(x)
        return result

    assert torch.autograd.gradcheck(run, (x, *layer.parameters()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_grouped_kernel_equals_one_expert_at_a_time(dtype: torch.dtype) -> None:
    experts = Experts(16, 24, experts=4, active=1)
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter)
    x, counts = torch.randn(11, 16).to(dtype), torch.tensor([3, 0, 7, 1])
    gate_up, down = experts.gate_up.to(dtype), experts.down.to(dtype)
    gate, up = split_product(x, gate_up, counts).chunk(2, -1)
    expected = split_product(F.silu(gate) * up, down, counts)
    torch.testing.assert_close(experts(x, counts), expected)


def test_a_token_does_not_depend_on_the_others() -> None:
    layer, x = layer_of(MoE(experts=4, active=2, hidden=8)), torch.randn(3, 6, 16)
    torch.testing.assert_close(layer(x)[1:2, 2:3], layer(x[1:2, 2:3]))


def test_two_runs_give_the_same_bits() -> None:
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        layer, x = layer_of(MoE(experts=4, active=2, hidden=8)).train(), torch.randn(2, 50, 16)
        (layer(x).sum() + layer.aux_loss).backward()
        results.append([parameter.grad for parameter in layer.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_bfloat16_activations_keep_float32_weights_and_router() -> None:
    layer, x = layer_of(MoE(experts=4, active=2, hidden=8)).train(), torch.randn(2, 20, 16).bfloat16()
    low, exact = layer(x), layer(x.float())
    assert low.dtype == torch.bfloat16
    assert (low.float() - exact).norm() / exact.norm() < 0.02
    low.sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for n, p in layer.named_parameters())


def test_aux_loss_is_left_in_training_and_can_be_taken() -> None:
    layer, x = layer_of(MoE(experts=4, active=2, hidden=8, z_loss=0.1)), torch.randn(2, 5, 16)
    layer(x)
    assert take_aux_losses(layer) is None, "none in evaluation"
    layer.train()
    with torch.no_grad():
        layer(x)
    assert take_aux_losses(layer) is None, "none without gradients"
    layer(x)
    loss = take_aux_losses(layer)
    assert loss is not None and loss.item() > 0
    loss.backward()
    assert layer.router.weight.grad is not None and layer.router.weight.grad.any()
    copied = copy.deepcopy(layer)
    assert torch.equal(copied.eval()(x), layer.eval()(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_held_weights_compute_the_same(dtype: torch.dtype) -> None:
    layer, x = layer_of(MoE(experts=4, active=2, hidden=8)), torch.randn(3, 1, 16).to(dtype)
    with torch.no_grad():
        expected = layer(x)
        with held_weights(layer, dtype):
            torch.testing.assert_close(layer(x), expected)


def naive(layer: MoELayer, x: Tensor) -> Tensor:
    """One token at a time."""
    rows = []
    for token in x.flatten(0, 1):
        scores = layer.router.weight @ token
        best = sorted(range(len(scores)), key=lambda e: -scores[e].item())[: layer.config.active]
        shares = torch.softmax(torch.stack([scores[e] for e in best]), 0)
        rows.append(sum(share * dense_twin(layer, e)(token) for share, e in zip(shares, best, strict=True)))
    return torch.stack(rows).view(x.shape)


def dense_twin(layer: MoELayer, expert: int) -> GatedLayer:
    """The core's SwiGLU with one expert's weights, sharing their gradients."""
    twin = SwiGLU(hidden=layer.experts.down.shape[-1]).build(layer.experts.down.shape[1])
    assert isinstance(twin, GatedLayer)
    del twin.gate_up.weight, twin.down.weight
    twin.gate_up.weight = layer.experts.gate_up[expert]
    twin.down.weight = layer.experts.down[expert]
    return twin


def layer_of(config: MoE, width: int = 16) -> MoELayer:
    layer = config.build(width)
    initialise(layer, std=0.3, depth=1)
    with torch.no_grad():
        layer.router.weight.mul_(3)
    return layer.eval()
