"""The choice of the next token, against naive references."""

import math

import pytest
import torch
from pydantic import ValidationError

from llmcore.config import load_config
from llmcore.errors import ConfigError
from llmcore.generate.noise import gumbel_noise
from llmcore.generate.penalties import Usage
from llmcore.generate.sampling import Sampling, choose_tokens, chosen_logprobs, steer, truncate

SCORES = torch.tensor([[2.0, 1.0, 0.5, 0.0, -1.0], [0.0, 3.0, 2.9, -2.0, 1.0]])


def naive_survivors(row: list[float], sampling: Sampling) -> set[int]:
    """Which tokens stay, by sorting and adding in plain Python."""
    total = sum(math.exp(s) for s in row)
    order = sorted(range(len(row)), key=lambda i: -row[i])
    if sampling.top_k:
        order = order[: sampling.top_k]
    kept, mass, whole = [], 0.0, sum(math.exp(row[i]) for i in order)
    for i in order:
        if mass >= sampling.top_p:
            break
        kept.append(i)
        mass += math.exp(row[i]) / whole
    best = math.exp(row[order[0]]) / total
    return {i for i in kept if math.exp(row[i]) / total >= sampling.min_p * best}


@pytest.mark.parametrize("top_k", [0, 1, 3, 40, 99])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.5, 0.01])
@pytest.mark.parametrize("min_p", [0.0, 0.05, 0.5, 1.0])
def test_truncation_keeps_what_a_naive_reading_keeps(top_k: int, top_p: float, min_p: float) -> None:
    sampling = Sampling(top_k=top_k, top_p=top_p, min_p=min_p)
    scores = torch.randn(6, 40, generator=torch.Generator().manual_seed(0)) * 2
    kept = truncate(scores, sampling)
    for before, after in zip(scores, kept, strict=True):
        survivors = naive_survivors(before.double().tolist(), sampling)
        assert set(after.isfinite().nonzero().flatten().tolist()) == survivors
        assert torch.equal(after[after.isfinite()], before[after.isfinite()])


def test_greedy_takes_the_best_token_and_reports_its_logprob() -> None:
    steered = steer(SCORES, Sampling(temperature=0, top_k=1))
    tokens = choose_tokens(steered, noise=None)
    assert tokens.tolist() == [0, 1]
    torch.testing.assert_close(chosen_logprobs(steered, tokens), SCORES.log_softmax(-1).amax(-1))


def test_logprobs_are_those_of_what_is_sampled_from() -> None:
    """Penalties, then the temperature, then truncation: the shares of a million draws."""
    sampling = Sampling(temperature=0.5, top_k=3, presence_penalty=1.0)
    usage = Usage(torch.zeros(2, 5, dtype=torch.bool), torch.tensor([[1.0, 0, 0, 0, 0], [0, 0, 0, 0, 0]]))
    steered = steer(SCORES, sampling, usage=usage)
    by_hand = (SCORES[0] - torch.tensor([1.0, 0, 0, 0, 0])) / 0.5
    kept = by_hand.topk(3).indices
    torch.testing.assert_close(steered[0, kept], by_hand[kept])
    assert steered[0].isfinite().sum() == 3
    noise = gumbel_noise(torch.zeros(10**6, dtype=torch.long), torch.arange(10**6), vocab_size=5)
    tokens = choose_tokens(steered[:1], noise=noise)
    shares = torch.bincount(tokens, minlength=5) / len(tokens)
    expected = chosen_logprobs(steered[:1].expand(5, 5), torch.arange(5)).exp()
    torch.testing.assert_close(shares, expected, atol=3e-3, rtol=0)


def test_noise_cannot_bring_back_a_token_that_was_left_out() -> None:
    noise = torch.zeros(2, 5)
    noise[:, 3] = 1000.0
    tokens = choose_tokens(steer(SCORES, Sampling(top_k=3)), noise=noise)
    assert tokens.tolist() == [0, 1]


def test_low_temperature_makes_noise_small() -> None:
    noise = torch.tensor([[0.0, 1.5, 0.0, 0.0, 0.0]] * 2)
    assert choose_tokens(steer(SCORES, Sampling(temperature=1.0)), noise=noise).tolist() == [1, 1]
    assert choose_tokens(steer(SCORES, Sampling(temperature=0.5)), noise=noise).tolist() == [0, 1]


def test_penalties_follow_their_formulas() -> None:
    usage = Usage.of_prompts([[3, 0], [1]], 5, torch.device("cpu"))
    for token in (1, 1, 4):
        usage.add(torch.tensor([token, 2]))
    steered = usage.penalise(SCORES, repetition=2.0, presence=0.5, frequency=0.25)
    first = [2.0 / 2, 1.0 / 2 - 0.5 - 0.5, 0.5, 0.0, -1.0 * 2 - 0.5 - 0.25]
    second = [0.0, 3.0 / 2, 2.9 / 2 - 0.5 - 0.75, -2.0, 1.0]
    torch.testing.assert_close(steered, torch.tensor([first, second]))
    usage.keep(torch.tensor([1]))
    torch.testing.assert_close(
        usage.penalise(SCORES[1:], repetition=2.0, presence=0.5, frequency=0.25), torch.tensor([second])
    )


def test_greedy_choice_heeds_penalties() -> None:
    usage = Usage.of_prompts([[0], [1]], 5, torch.device("cpu"))
    tokens = choose_tokens(steer(SCORES, Sampling(temperature=0, repetition_penalty=5.0), usage=usage), noise=None)
    assert tokens.tolist() == [1, 2]


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1.0},
        {"temperature": 1e-9},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"min_p": -0.1},
        {"top_k": -1},
        {"max_new_tokens": 0},
        {"repetition_penalty": 0.0},
        {"stop": ("",)},
        {"seed": 2**63},
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Sampling.model_validate(wrong)


def test_a_refused_setting_is_named() -> None:
    with pytest.raises(ConfigError, match=r"temperature.*at least 0\.001"):
        load_config(Sampling, ["temperature=0.0001"])
