"""Blocks with experts, computed again in the backward or compiled: the same gradient, and one auxiliary loss."""

import copy

import pytest
import torch
from torch import Tensor

from llmcore.losses import Batch, next_token_loss
from llmcore.model.config import ModelConfig
from llmcore.model.transformer import Transformer, take_aux_losses
from llmcore.train.blocks import training_blocks
from llmcore.train.config import TrainConfig

IDS = torch.randint(0, 50, (4, 32), generator=torch.Generator().manual_seed(0))
BATCH = Batch(IDS, torch.ones_like(IDS, dtype=torch.bool))


def build(*, dropout: float) -> Transformer:
    sizes = {"vocab_size": 50, "width": 32, "depth": 3, "context": 32, "attention": {"heads": 2}, "dropout": dropout}
    experts = {"feedforward": {"kind": "moe", "experts": 4}}
    return ModelConfig.model_validate({**sizes, **experts}).build(seed=0).train()


def gradients(model: Transformer) -> dict[str, Tensor]:
    """Of one forward and backward with a fixed seed, the auxiliary loss among them."""
    model.zero_grad()
    torch.manual_seed(5)
    loss = next_token_loss(model, BATCH)
    auxiliary = take_aux_losses(model)
    assert auxiliary is not None
    (loss.total + auxiliary).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recomputed_experts_give_the_same_gradient_to_the_bit(dtype: torch.dtype) -> None:
    model = build(dropout=0.1)
    model.activation_dtype = dtype
    expected = gradients(model)
    with training_blocks(model, TrainConfig(checkpoint_activations=True), say=lambda _: None):
        found = gradients(model)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert take_aux_losses(model) is None  # nothing that the second forward reported stays behind
    copy.deepcopy(model)


@pytest.mark.slow
def test_compiled_experts_equal_eager_ones_to_rounding() -> None:
    model, said = build(dropout=0.0), []
    expected = gradients(model)
    for again in (False, True):
        config = TrainConfig(compile=True, checkpoint_activations=again)
        with training_blocks(model, config, say=said.append) as tell:
            found = gradients(model)
            tell()
        for name, gradient in expected.items():
            assert (found[name] - gradient).norm() < 1e-4 * gradient.norm(), name
    assert "torch.compile:" in said[0] and "failed" not in "".join(said)
