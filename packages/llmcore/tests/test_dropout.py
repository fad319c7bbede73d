"""A model whose dropout is switched off says in training what it says in evaluation."""

import pytest
import torch

from llmcore.lora import LoRA
from llmcore.model.adapters import add_adapters
from llmcore.model.attention import Attention, GroupedQuery
from llmcore.model.config import ModelConfig
from llmcore.model.dropout import switch_dropout_off, without_dropout
from llmcore.model.latent import MultiHeadLatent
from llmcore.model.transformer import Transformer

IDS = torch.arange(12)[None]


def tiny(attention: Attention, *, dropout: float = 0.0) -> Transformer:
    return ModelConfig(vocab_size=16, width=16, depth=2, context=16, attention=attention, dropout=dropout).build(seed=0)


@pytest.mark.parametrize("outside", [0.0, 0.4])
@pytest.mark.parametrize("attention", [GroupedQuery(dropout=0.5), MultiHeadLatent(dropout=0.5)], ids=["gqa", "mla"])
def test_nothing_is_dropped_anywhere(attention: Attention, outside: float) -> None:
    model = tiny(attention, dropout=outside).train()
    assert not torch.equal(model(IDS), model(IDS))
    switch_dropout_off(model)
    assert torch.equal(model(IDS), model(IDS))
    assert torch.equal(model(IDS), model.eval()(IDS))
    assert model.config.dropout == model.config.attention.dropout == 0


def test_adapters_drop_nothing_either() -> None:
    model = tiny(GroupedQuery())
    add_adapters(model, LoRA(rank=2, dropout=0.5), seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1
    model.train()
    assert not torch.equal(model(IDS), model(IDS))
    switch_dropout_off(model)
    assert torch.equal(model(IDS), model(IDS))


def test_settings_without_dropout_are_the_same_and_others_are_left_alone() -> None:
    calm, noisy = GroupedQuery(heads=2, window=5), GroupedQuery(heads=2, window=5, dropout=0.3)
    config = ModelConfig(attention=noisy, dropout=0.1, width=64)
    assert without_dropout(config) == ModelConfig(attention=calm, width=64)
    assert (config.dropout, noisy.dropout) == (0.1, 0.3)
    assert without_dropout(calm) is calm
