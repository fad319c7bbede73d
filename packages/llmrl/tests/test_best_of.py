"""pass@k and best-of-n, against enumeration."""

import itertools
import math

import pytest
import torch

from llmrl.best_of import best_of, best_of_divergence, pass_at, pass_rates

NAN = math.nan


@pytest.mark.parametrize("k", [1, 2, 4])
def test_pass_at_k_is_the_share_of_all_choices_of_k_completions_with_a_right_one(k: int) -> None:
    right = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0, 0.0, NAN, 0.0, 1.0, 1.0, 1.0, 1.0])
    for group, found in zip(right.view(3, 4).tolist(), pass_at(right, 4, k).tolist(), strict=True):
        choices = list(itertools.combinations(group, k))
        assert found == pytest.approx(sum(1.0 in choice for choice in choices) / len(choices))


def test_only_terms_of_right_and_wrong_have_a_pass_rate() -> None:
    terms = {"exact": torch.tensor([1.0, 0.0, NAN, 0.0]), "length": torch.tensor([0.5, 0.0, 1.0, 1.0])}
    assert set(pass_rates(terms, 4)) == {"pass@1/exact", "pass@2/exact", "pass@4/exact"}
    assert set(pass_rates(terms, 1)) == {"pass@1/exact"}


def test_the_best_is_chosen_by_the_whole_reward_and_judged_by_every_term() -> None:
    rewards = torch.tensor([0.1, 0.9, NAN, NAN, NAN, 0.2])
    terms = {"true": torch.tensor([1.0, 0.0, 1.0, 1.0, 1.0, 0.5])}
    found = best_of(rewards, terms, 2)
    torch.testing.assert_close(
        found["best_of_2"], torch.tensor([0.9, NAN, 0.2]).double(), equal_nan=True, rtol=0, atol=1e-6
    )
    assert found["best_of_2/rewards/true"].tolist() == [0.0, 1.0, 0.5]


def test_the_divergence_of_best_of_n_is_that_of_its_distribution() -> None:
    """Of many equally likely completions, the best of n has the density n·u^(n-1) over their ranks u."""
    n, grid = 4, (torch.arange(200_000).double() + 0.5) / 200_000
    density = n * grid ** (n - 1)
    assert best_of_divergence(n) == pytest.approx(float((density * density.log()).mean()), abs=1e-4)
