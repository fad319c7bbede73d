"""Norms against their formulas, gradients included."""

import pytest
import torch
import torch.nn.functional as F

from llmcore.model.norms import LayerNorm, RMSNorm, RMSNormFunction


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def test_rmsnorm_by_hand() -> None:
    norm = RMSNorm(eps=1e-12).build(2)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 10.0]))
    torch.testing.assert_close(norm(torch.tensor([[3.0, 4.0]])), torch.tensor([[3.0, 40.0]]) / 12.5**0.5)


def test_rmsnorm_matches_pytorch() -> None:
    x, norm = torch.randn(2, 3, 16), RMSNorm(eps=1e-5).build(16)
    torch.testing.assert_close(norm(x), F.rms_norm(x, (16,), norm.weight, 1e-5))


def test_rmsnorm_gradients() -> None:
    x = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: RMSNormFunction.apply(a, b, 1e-3), (x, weight))


def test_rmsnorm_leaves_its_input_and_upstream_alone() -> None:
    x = torch.randn(4, 8, requires_grad=True)
    before, upstream = x.detach().clone(), torch.randn(4, 8)
    kept = upstream.clone()
    RMSNorm().build(8)(x).backward(upstream)
    assert torch.equal(x.detach(), before) and torch.equal(upstream, kept)


@pytest.mark.parametrize("kind", [RMSNorm(), LayerNorm()])
def test_bfloat16_is_normalised_in_float32(kind: RMSNorm | LayerNorm) -> None:
    x, norm = torch.randn(4, 64) * 100, kind.build(64)
    low = norm(x.bfloat16())
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), norm(x.bfloat16().float()), rtol=2**-7, atol=2**-8)


def test_layernorm_matches_pytorch_with_and_without_bias() -> None:
    x = torch.randn(2, 3, 16)
    torch.testing.assert_close(LayerNorm(eps=1e-3).build(16)(x), F.layer_norm(x, (16,), eps=1e-3))
    assert [name for name, _ in LayerNorm(bias=False).build(4).named_parameters()] == ["weight"]
    assert [name for name, _ in LayerNorm().build(4).named_parameters()] == ["weight", "bias"]
