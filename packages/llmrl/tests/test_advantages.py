"""Advantages against closed forms and slow references."""

import math

import pytest
import torch
from torch import Tensor

from llmrl.advantages import (
    GROUP_EPSILON,
    generalized_advantages,
    group_advantages,
    last_masked,
    token_rewards,
    whiten,
)

NAN = math.nan


def ragged_mask(rows: int = 5, columns: int = 9, seed: int = 0) -> Tensor:
    """Completions that begin and end at different columns; each has at least one token."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(0, 3, (rows,), generator=generator)
    lengths = torch.randint(1, columns - 3, (rows,), generator=generator)
    column = torch.arange(columns)
    return (column >= starts[:, None]) & (column < (starts + lengths)[:, None])


def slow_gae(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float) -> Tensor:
    """O(T²): A_t = Σ_k (γλ)^k δ_{t+k}, over each row's own tokens."""
    advantages = torch.zeros(mask.shape, dtype=torch.float64)
    for b in range(len(mask)):
        columns = mask[b].nonzero().flatten().tolist()
        r = [float(rewards[b, t]) for t in columns]
        v = [float(values[b, t]) for t in columns] + [0.0]
        deltas = [r[i] + gamma * v[i + 1] - v[i] for i in range(len(columns))]
        for i, t in enumerate(columns):
            advantages[b, t] = sum((gamma * lam) ** (k - i) * deltas[k] for k in range(i, len(columns)))
    return advantages


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.99, 0.0)])
def test_gae_matches_the_slow_sum_with_junk_in_padded_slots(gamma: float, lam: float) -> None:
    mask = ragged_mask()
    rewards, values = torch.randn(2, *mask.shape, generator=torch.Generator().manual_seed(1))
    junk = torch.where(mask, 0.0, NAN)
    advantages, returns = generalized_advantages(rewards + junk, values + junk, mask, gamma=gamma, lam=lam)
    wanted = slow_gae(rewards, values, mask, gamma=gamma, lam=lam)
    torch.testing.assert_close(advantages.double(), wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(returns, torch.where(mask, advantages + values, 0.0), rtol=0, atol=1e-6)


def test_undiscounted_returns_are_the_rewards_still_to_come() -> None:
    mask = ragged_mask()
    rewards, values = torch.randn(2, *mask.shape, generator=torch.Generator().manual_seed(2))
    _, returns = generalized_advantages(rewards, values, mask, gamma=1.0, lam=1.0)
    paid = torch.where(mask, rewards, 0.0)
    to_come = paid.flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(returns, torch.where(mask, to_come, 0.0), rtol=0, atol=1e-5)


def test_group_advantages_by_hand() -> None:
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0, 5.0, 5.0, 5.0, 9.0])
    found = group_advantages(rewards, samples=4)
    first, second = math.sqrt(1 / 3), 2.0
    assert found.spread.tolist() == pytest.approx([first, second])
    assert found.advantages.tolist() == pytest.approx(
        [s * 0.5 / (first + GROUP_EPSILON) for s in (1, -1, -1, 1)]
        + [x / (second + GROUP_EPSILON) for x in (-1, -1, -1, 3)]
    )


def test_group_advantages_without_scale_are_distances_from_the_mean() -> None:
    rewards = torch.tensor([1.0, 0.0, 2.0, 7.0])
    assert group_advantages(rewards, samples=2, scale="none").advantages.tolist() == [0.5, -0.5, -2.5, 2.5]


def test_batch_scale_divides_by_the_deviation_of_all_rewards() -> None:
    rewards = torch.tensor([1.0, 0.0, 2.0, 7.0])
    found = group_advantages(rewards, samples=2, scale="batch").advantages
    scale = float(rewards.double().std()) + GROUP_EPSILON
    assert found.tolist() == pytest.approx([x / scale for x in (0.5, -0.5, -2.5, 2.5)])


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_equal_rewards_give_exactly_zero(scale) -> None:  # type: ignore[no-untyped-def]
    rewards = torch.tensor([0.1, 0.1, 0.1, 0.3, 0.5, 0.9])
    found = group_advantages(rewards, samples=3, scale=scale)
    assert found.advantages[:3].tolist() == [0.0, 0.0, 0.0]
    assert found.flat.tolist() == [True, False]
    assert found.advantages[3:].abs().min() > 0.01


def test_an_unscorable_completion_leaves_the_baseline_and_gets_nothing() -> None:
    found = group_advantages(torch.tensor([1.0, NAN, 3.0, NAN, NAN, 4.0]), samples=3, scale="none")
    assert found.advantages.tolist() == [-1.0, 0.0, 1.0, 0.0, 0.0, 0.0]
    assert found.flat.tolist() == [False, True]


def test_a_prompt_dependent_offset_changes_no_advantage() -> None:
    rewards = torch.rand(12, generator=torch.Generator().manual_seed(3))
    offsets = torch.tensor([0.0, 10.0, -5.0]).repeat_interleave(4)
    before = group_advantages(rewards, samples=4).advantages
    after = group_advantages(rewards + offsets, samples=4).advantages
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
    wrong = group_advantages((rewards + offsets).view(3, 4).T.flatten(), samples=4).advantages
    assert (wrong.view(4, 3).T.flatten() - before).abs().max() > 0.5, "mixed groups must show in this test"


def test_whitening_is_over_masked_tokens_only() -> None:
    mask = ragged_mask()
    values = torch.randn(mask.shape, generator=torch.Generator().manual_seed(4)) * 3 + 2
    white = whiten(torch.where(mask, values, NAN), mask)
    assert float(white[mask].mean()) == pytest.approx(0, abs=1e-6)
    assert float(white[mask].std()) == pytest.approx(1, abs=1e-5)
    assert white[~mask].abs().max() == 0
    kept = whiten(values, mask, shift_mean=False)
    assert float(kept[mask].mean()) == pytest.approx(float(values[mask].mean()), abs=1e-5)


def test_whitening_one_token_does_not_divide_by_zero() -> None:
    mask = torch.tensor([[False, True, False]])
    assert whiten(torch.tensor([[9.0, 4.0, 9.0]]), mask).tolist() == [[0.0, 0.0, 0.0]]
    assert whiten(torch.ones(1, 3), torch.zeros(1, 3, dtype=torch.bool)).tolist() == [[0.0, 0.0, 0.0]]


def test_token_rewards_add_up_to_score_minus_kl() -> None:
    mask = ragged_mask()
    kl = torch.randn(mask.shape, generator=torch.Generator().manual_seed(5))
    scores = torch.arange(5.0)
    rewards = token_rewards(scores, torch.where(mask, kl, NAN), mask, kl_coef=0.3)
    spent = 0.3 * torch.where(mask, kl, 0.0).sum(1)
    torch.testing.assert_close(rewards.sum(1) + spent, scores, rtol=0, atol=1e-5)
    assert rewards[~mask].abs().max() == 0


def test_the_score_is_paid_at_the_last_sampled_token() -> None:
    mask = torch.tensor([[False, True, True, False], [True, False, False, False]])
    assert last_masked(mask).tolist() == [[False, False, True, False], [True, False, False, False]]
    rewards = token_rewards(torch.tensor([2.0, 3.0]), torch.zeros(2, 4), mask, kl_coef=1.0)
    assert rewards.tolist() == [[0.0, 0.0, 2.0, 0.0], [3.0, 0.0, 0.0, 0.0]]
