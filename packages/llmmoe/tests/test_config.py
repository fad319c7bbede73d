"""The mixture joins the core by entry point, and its settings are checked."""

import copy

import pytest
import torch
from pydantic import ValidationError

from llmcore.extensions import needs_of
from llmcore.losses import Batch, next_token_loss
from llmcore.model.config import ModelConfig
from llmcore.model.size import flops_per_token, skeleton
from llmcore.model.transformer import take_aux_losses
from llmmoe.config import MoE
from llmmoe.layer import MoELayer

SETTINGS = {"vocab_size": 50, "width": 32, "depth": 2, "context": 16, "feedforward": {"kind": "moe"}}


def test_the_core_finds_the_mixture_by_its_kind() -> None:
    config = ModelConfig.model_validate(SETTINGS)
    assert config.feedforward == MoE()
    assert all(isinstance(block.feedforward, MoELayer) for block in config.build(seed=0).blocks)
    assert "llmmoe" in needs_of(config)


def test_a_config_with_a_mixture_survives_json() -> None:
    config = ModelConfig.model_validate(SETTINGS | {"feedforward": {"kind": "moe", "experts": 4, "balance": 0.1}})
    again = ModelConfig.model_validate_json(config.model_dump_json())
    assert again == config and again.feedforward == MoE(experts=4, balance=0.1)


def test_active_experts_cost_what_the_dense_layer_does() -> None:
    assert MoE().hidden_width(256) == 344
    dense, sparse = skeleton(ModelConfig(vocab_size=50)), skeleton(ModelConfig(vocab_size=50, feedforward=MoE()))
    router = 6 * 4 * 8 * 256
    assert flops_per_token(sparse) == flops_per_token(dense) + router


def test_more_active_experts_than_there_are_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"active \(3\) cannot exceed experts \(2\)"):
        MoE(experts=2, active=3)


def test_a_model_with_experts_learns_and_can_be_copied() -> None:
    torch.manual_seed(0)
    model = ModelConfig.model_validate(SETTINGS).build(seed=0).train()
    ids = torch.arange(12).repeat(4, 1)
    batch = Batch(ids, torch.ones_like(ids).bool())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(15):
        loss = next_token_loss(model, batch)
        aux = take_aux_losses(model)
        assert aux is not None
        (loss.total / loss.count + aux).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.total.item())
    assert losses[-1] < 0.5 * losses[0]
    copied = copy.deepcopy(model)
    assert torch.equal(copied.eval()(ids), model.eval()(ids))
