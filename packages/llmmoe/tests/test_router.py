"""The router's choices and its losses in closed form."""

import math

import pytest
import torch

from llmmoe.router import Router, Routing, balance_loss, z_loss


def routing_of(scores: torch.Tensor, active: int) -> Routing:
    best, chosen = scores.topk(active)
    return Routing(scores, chosen, best.softmax(-1))


def test_the_best_are_chosen_and_share_by_a_softmax_over_them() -> None:
    router = Router(2, experts=3, active=2)
    with torch.no_grad():
        router.weight.copy_(torch.tensor([[0.0, 1.0], [2.0, 0.0], [1.0, 0.0]]))
    routing = router(torch.tensor([[1.0, 0.0], [0.0, 3.0]]))
    assert routing.chosen[0].tolist() == [1, 2] and routing.chosen[1, 0] == 0
    odds = math.exp(2.0 - 1.0)
    assert routing.proportions[0].tolist() == pytest.approx([odds / (1 + odds), 1 / (1 + odds)])
    torch.testing.assert_close(routing.proportions.sum(-1), torch.ones(2))


@pytest.mark.parametrize("active", [1, 2])
def test_even_routing_has_the_least_balance_loss(active: int) -> None:
    """Each expert is chosen equally often and is equally probable on average: exactly 1."""
    scores = torch.tensor([[3.0, 2.0, 0.0, 1.0]])
    even = torch.cat([scores.roll(shift, 1) for shift in range(4)])
    assert balance_loss(routing_of(even, active)).item() == pytest.approx(1.0)
    uneven = even.clone()
    uneven[:, 0] += 4.0
    assert balance_loss(routing_of(uneven, active)).item() > 1.05


def test_one_expert_for_all_has_the_greatest_balance_loss() -> None:
    scores = torch.tensor([[100.0, 0.0, 0.0, 0.0]]).expand(7, 4)
    assert balance_loss(routing_of(scores, 1)).item() == pytest.approx(4.0)


def test_balance_loss_by_hand() -> None:
    scores = torch.log(torch.tensor([[0.7, 0.2, 0.1], [0.6, 0.1, 0.3]]))
    expected = 3 * (1.0 * 0.65 + 0.0 * 0.15 + 0.0 * 0.2)
    assert balance_loss(routing_of(scores, 1)).item() == pytest.approx(expected)
    expected = 3 * (0.5 * 0.65 + 0.25 * 0.15 + 0.25 * 0.2)
    assert balance_loss(routing_of(scores, 2)).item() == pytest.approx(expected)


def test_the_balance_gradient_lowers_the_busy_expert() -> None:
    scores = torch.tensor([[1.0, 0.0, 0.0]]).repeat(5, 1).requires_grad_()
    balance_loss(routing_of(scores, 1)).backward()
    assert scores.grad is not None
    assert (scores.grad[:, 0] > 0).all() and (scores.grad[:, 1:] < 0).all()


def test_z_loss_by_hand() -> None:
    scores = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0]])
    expected = (math.log(2.0) ** 2 + math.log(4.0) ** 2) / 2
    assert z_loss(routing_of(scores, 1)).item() == pytest.approx(expected)


def test_scores_are_float32_whatever_the_activations() -> None:
    router = Router(8, experts=3, active=1)
    torch.nn.init.normal_(router.weight)
    x = torch.randn(4, 8).bfloat16()
    routing = router(x)
    assert routing.scores.dtype == torch.float32
    torch.testing.assert_close(routing.scores, x.float() @ router.weight.T)
