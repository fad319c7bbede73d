"""Shares of tokens per expert."""

import pytest
import torch

from llmcore.model.config import ModelConfig
from llmmoe.config import MoE
from llmmoe.usage import evenness, expert_usage


def test_shares_follow_the_router() -> None:
    config = ModelConfig(vocab_size=50, width=32, depth=2, context=16, feedforward=MoE(experts=4, active=2))
    model = config.build(seed=0).train()
    shares = expert_usage(model, [torch.randint(0, 50, (2, 16)) for _ in range(3)])
    assert list(shares) == ["blocks.0.feedforward", "blocks.1.feedforward"]
    assert all(sum(values) == pytest.approx(1.0) and len(values) == 4 for values in shares.values())
    assert all(max(values) <= 0.5 for values in shares.values()), "an expert serves a token once"
    assert model.training and not any(module._forward_hooks for module in model.modules())
    router = model.get_submodule("blocks.1.feedforward.router")
    with torch.no_grad():
        router.get_parameter("weight").zero_()
    tied = expert_usage(model, [torch.zeros(1, 16, dtype=torch.long)])["blocks.1.feedforward"]
    assert sorted(tied) == [0.0, 0.0, 0.5, 0.5], "equal scores send every token the same way"


def test_a_dense_model_has_no_shares() -> None:
    model = ModelConfig(vocab_size=50, width=32, depth=1, context=16).build(seed=0)
    assert expert_usage(model, [torch.zeros(1, 4, dtype=torch.long)]) == {}


def test_evenness_by_hand() -> None:
    assert evenness([0.25] * 4) == pytest.approx(1.0)
    assert evenness([1.0, 0.0]) == 0.0
    assert evenness([0.5, 0.5, 0.0, 0.0]) == pytest.approx(0.5)
    assert evenness([1.0]) == 1.0
