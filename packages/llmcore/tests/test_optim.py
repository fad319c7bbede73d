"""What decays, what trains, and at which rate."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from llmcore.errors import TrainingError
from llmcore.model.config import ModelConfig
from llmcore.model.transformer import Transformer
from llmcore.train.config import TrainConfig
from llmcore.train.optim import SGD, AdamW, Muon, Optimizer, describe_groups, parameter_groups, set_rate


def tiny(**settings: object) -> Transformer:
    return ModelConfig(vocab_size=20, width=16, depth=1, context=8).model_copy(update=settings).build(seed=0)


def test_matrices_decay_and_norms_and_embeddings_do_not() -> None:
    groups = parameter_groups(tiny())
    assert "embedding.weight" in groups.kept
    assert "final_norm.weight" in groups.kept
    assert all(weight.ndim >= 2 for weight in groups.decayed.values())
    assert any(name.startswith("blocks.0.") for name in groups.decayed)


def test_an_untied_head_decays_and_biases_and_other_embeddings_do_not() -> None:
    assert "head.weight" in parameter_groups(tiny(tie_embeddings=False)).decayed
    other = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3))
    groups = parameter_groups(other)
    assert set(groups.decayed) == {"1.weight"}
    assert set(groups.kept) == {"0.weight", "1.bias"}


def test_every_trainable_parameter_is_in_exactly_one_group() -> None:
    model = tiny()
    optimizer = AdamW().build(model, 0.1)
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())


def test_frozen_parameters_are_left_out() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    model[0].requires_grad_(False)
    groups = parameter_groups(model)
    assert {*groups.decayed, *groups.kept} == {"1.weight", "1.bias"}


def test_a_model_with_nothing_to_train_is_an_error() -> None:
    with pytest.raises(TrainingError, match="nothing to train"):
        parameter_groups(nn.Linear(2, 2).requires_grad_(False))


def test_decay_alone_shrinks_only_the_decayed() -> None:
    model = nn.Linear(3, 2)
    weight, bias = model.weight.detach().clone(), model.bias.detach().clone()
    optimizer = AdamW(weight_decay=0.5).build(model, 0.1)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert torch.allclose(model.weight, weight * (1 - 0.1 * 0.5))
    assert torch.equal(model.bias, bias)


def test_the_rate_is_the_peak_times_the_factor_however_often_it_is_set() -> None:
    optimizer = AdamW().build(nn.Linear(3, 2), 0.2)
    for factor in (0.5, 1.0, 0.25):
        set_rate(optimizer, factor)
        assert [group["lr"] for group in optimizer.param_groups] == [0.2 * factor] * 2


def test_adamw_is_torchs_to_the_bit() -> None:
    ours, theirs = tiny(), tiny()
    optimizer = AdamW(weight_decay=0.2).build(ours, 0.01)
    groups = parameter_groups(theirs)
    reference = torch.optim.AdamW(
        [
            {"params": list(groups.decayed.values()), "weight_decay": 0.2},
            {"params": list(groups.kept.values()), "weight_decay": 0.0},
        ],
        lr=0.01,
        betas=(0.9, 0.95),
        eps=1e-8,
        fused=True,
    )
    for step in range(4):
        for model, each in ((ours, optimizer), (theirs, reference)):
            for parameter in model.parameters():
                parameter.grad = torch.full_like(parameter, 0.1 * (step + 1)) * parameter.sign()
            each.step()
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    assert not torch.equal(ours.embedding.weight, tiny().embedding.weight)


def test_sgd_is_torchs_to_the_bit() -> None:
    ours, theirs = nn.Linear(5, 3), nn.Linear(5, 3)
    theirs.load_state_dict(ours.state_dict())
    settings = {"lr": 0.1, "momentum": 0.8, "nesterov": True}
    optimizer = SGD(momentum=0.8, nesterov=True, weight_decay=0.3).build(ours, 0.1)
    reference = torch.optim.SGD(
        [{"params": [theirs.weight], "weight_decay": 0.3}, {"params": [theirs.bias], "weight_decay": 0.0}], **settings
    )
    for step in range(4):
        for model, each in ((ours, optimizer), (theirs, reference)):
            for parameter in model.parameters():
                parameter.grad = torch.full_like(parameter, 0.1 * (step + 1)) * parameter.sign()
            each.step()
    assert torch.equal(ours.weight, theirs.weight) and torch.equal(ours.bias, theirs.bias)


def test_nesterov_without_momentum_is_refused() -> None:
    with pytest.raises(ValueError, match="nesterov needs a momentum"):
        SGD(momentum=0.0, nesterov=True)


def test_every_group_is_described_with_its_rule_its_size_and_what_is_done_to_it() -> None:
    model = tiny(tie_embeddings=False)
    rows = {row.group: row for row in describe_groups(model, Muon(weight_decay=0.2).build(model, 0.3))}
    hidden = [p for name, p in model.named_parameters() if name.startswith("blocks.") and p.ndim == 2]
    assert set(rows) == {"hidden matrices", "matrices", "embeddings, norms, biases"}
    assert rows["hidden matrices"].tensors == len(hidden)
    assert rows["hidden matrices"].parameters == sum(p.numel() for p in hidden)
    assert rows["hidden matrices"].example.startswith("blocks.0.")
    assert (rows["matrices"].example, rows["matrices"].tensors) == ("head.weight", 1)
    assert [rows[name].weight_decay for name in rows] == [0.2, 0.1, 0.0]
    assert {row.lr for row in rows.values()} == {0.3}
    assert sum(row.parameters for row in rows.values()) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("kind", ["adamw", "muon", "sgd"])
def test_settings_choose_an_optimizer_by_its_kind(kind: str) -> None:
    config = TrainConfig.model_validate({"optimizer": {"kind": kind, "weight_decay": 0.25}})
    assert config.optimizer.kind == kind
    assert TrainConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize("part", [AdamW(), Muon(), SGD()])
def test_an_optimizer_goes_on_from_its_state_to_the_bit(part: Optimizer) -> None:
    def steps(model: Transformer, optimizer: torch.optim.Optimizer, numbers: range) -> None:
        for number in numbers:
            generator = torch.Generator().manual_seed(number)
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()

    whole, halves = tiny(), tiny()
    steps(whole, part.build(whole, 0.01), range(5))
    first = part.build(halves, 0.01)
    steps(halves, first, range(2))
    second = part.build(halves, 0.01)
    second.load_state_dict(first.state_dict())
    steps(halves, second, range(2, 5))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), halves.parameters(), strict=True))


def test_a_step_of_training_does_not_import_the_compiler() -> None:
    program = """
import sys
import torch
from llmcore.model.config import ModelConfig
from llmcore.losses import Batch, next_token_loss
from llmcore.train.loop import train_step
from llmcore.model.transformer import Transformer
from llmcore.train.optim import SGD, AdamW, Muon
model = ModelConfig(vocab_size=9, width=16, depth=1, context=8).build(seed=0)
ids = torch.ones(2, 8, dtype=torch.long)
for part in (AdamW(), Muon(), SGD()):
    optimizer = part.build(model, 0.1)
    train_step(model, optimizer, [Batch(ids, ids.bool())], next_token_loss, clip=1.0)
    optimizer.load_state_dict(optimizer.state_dict())
print(sorted({"torch._dynamo", "torch._inductor", "sympy"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
