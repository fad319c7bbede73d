"""Muon against torch's own, and on what torch's refuses."""

import pytest
import torch
from torch import Tensor, nn

from llmcore.model.config import ModelConfig
from llmcore.train.muon import newton_schulz, orthogonal
from llmcore.train.optim import Muon


@pytest.mark.parametrize("shape", [(6, 6), (4, 12), (12, 4), (1, 8)])
def test_an_orthogonal_update_has_the_directions_of_the_matrix_and_singular_values_near_one(
    shape: tuple[int, int],
) -> None:
    matrix = torch.randn(shape, dtype=torch.float64)
    (update,) = orthogonal([matrix], steps=8)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    turned = left.mT @ update @ right.mT  # diagonal, if the directions are kept
    assert turned.diag().min() > 0.6 and turned.diag().max() < 1.3
    torch.testing.assert_close(turned, torch.diag(turned.diag()), atol=1e-9, rtol=0)
    assert values.max() / values.min() > 1.5 or shape[0] == 1


def test_the_iteration_is_the_published_polynomial_of_the_singular_values() -> None:
    matrix = torch.randn(1, 5, 7, dtype=torch.float64)
    values = torch.linalg.svdvals(matrix) / matrix.norm()
    for _ in range(3):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    found = torch.linalg.svdvals(newton_schulz(matrix, steps=3))
    torch.testing.assert_close(found, values.sort(descending=True).values)


def test_each_expert_of_a_stack_is_made_orthogonal_alone() -> None:
    stacks = [torch.randn(3, 4, 6) for _ in range(2)]
    together = orthogonal(stacks, steps=5)
    for stack, updates in zip(stacks, together, strict=True):
        assert updates.shape == stack.shape
        for matrix, update in zip(stack, updates, strict=True):
            torch.testing.assert_close(update, orthogonal([matrix], steps=5)[0])


def test_a_matrix_of_zeros_gives_zeros() -> None:
    assert not orthogonal([torch.zeros(3, 5)], steps=5)[0].any()


@pytest.mark.parametrize("nesterov", [False, True])
def test_hidden_matrices_move_as_by_torchs_muon_and_the_rest_as_by_adamw(nesterov: bool) -> None:
    ours, theirs = (nn.Sequential(nn.Embedding(7, 8), nn.Linear(8, 12), nn.LayerNorm(12)) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    optimizer = Muon(nesterov=nesterov, weight_decay=0.2).build(ours, 0.05)
    muon = torch.optim.Muon(
        [theirs[1].weight], lr=0.05, weight_decay=0.2, nesterov=nesterov, adjust_lr_fn="match_rms_adamw"
    )
    others = [p for p in theirs.parameters() if p is not theirs[1].weight]
    adamw = torch.optim.AdamW(others, lr=0.05, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    for number in range(4):
        for model, optimizers in ((ours, [optimizer]), (theirs, [muon, adamw])):
            give_gradients(model, number)
            for each in optimizers:
                each.step()
    assert all(torch.equal(a, b) for a, b in zip(others, rest_of(ours), strict=True))
    moved = (ours[1].weight - theirs[1].weight).norm() / 0.05
    assert moved < 0.02 * theirs[1].weight.norm() / 0.05  # torch's iterates in bfloat16, ours on a CPU in float32


def rest_of(model: nn.Sequential) -> list[Tensor]:
    return [p for p in model.parameters() if p is not model[1].weight]


def give_gradients(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_stacks_of_experts_are_hidden_and_heads_and_vectors_are_not() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stack = nn.Parameter(torch.randn(3, 4, 6))
            self.policy = ModelConfig(vocab_size=20, width=16, depth=1, context=8, tie_embeddings=False).build(seed=0)
            self.value = nn.Linear(16, 1)

    model = Experts()
    optimizer = Muon().build(model, 0.1)
    muon = {id(p) for group in optimizer.param_groups if group["muon"] for p in group["params"]}
    assert id(model.stack) in muon
    assert not muon & {id(p) for p in (model.value.weight, model.policy.head_weight(), model.policy.embedding.weight)}
    everything = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(everything) == sorted(id(p) for p in model.parameters())
    give_gradients(model, 0)
    before = model.stack.detach().clone()
    optimizer.step()
    moved = (model.stack - before * (1 - 0.1 * 0.1)).flatten(1).square().mean(1).sqrt()
    assert ((moved > 0.1 * 0.1) & (moved < 0.1 * 0.3)).all()  # AdamW's root mean square: about 0.2 of the rate
