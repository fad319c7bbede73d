"""How the next token is chosen from the model's logits."""

import math
from typing import Annotated

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, field_validator
from torch import Tensor

from llmcore.config import Config
from llmcore.generate.penalties import Usage

SMALLEST_TEMPERATURE = 0.001


class Sampling(Config):
    """Settings of generation; the default samples from the model's own distribution."""

    max_new_tokens: PositiveInt = 128
    """Stop after this many tokens."""
    temperature: NonNegativeFloat = 1.0
    """Scores are divided by this; 0 always takes the best token."""
    top_k: NonNegativeInt = 0
    """Choose among this many best tokens; 0: all."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Choose among the fewest best tokens that together have this probability."""
    min_p: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Leave out tokens less probable than this share of the best token's probability."""
    repetition_penalty: PositiveFloat = 1.0
    """Above 1: tokens of the prompt and the text so far lose, by division of positive logits."""
    presence_penalty: float = 0.0
    """Subtracted from the logit of each token that was generated before."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit for each time it was generated before."""
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Texts that end a sequence."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """The same seed gives the same sequences."""

    @field_validator("temperature")
    @classmethod
    def not_nearly_zero(cls, value: float) -> float:
        if 0 < value < SMALLEST_TEMPERATURE:
            raise ValueError(f"must be 0 (greedy) or at least {SMALLEST_TEMPERATURE}")
        return value

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @property
    def penalises(self) -> bool:
        """Whether earlier tokens change later logits."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0


def steer(logits: Tensor, sampling: Sampling, *, usage: Usage | None = None) -> Tensor:
    """(B, V) float32 logits -> (B, V) unnormalised log-probabilities of the distribution that is sampled from.

    Penalties first, then the temperature, then truncation. Of greedy choices it is the one at temperature 1, whole.
    """
    if usage is not None:
        logits = usage.penalise(
            logits,
            repetition=sampling.repetition_penalty,
            presence=sampling.presence_penalty,
            frequency=sampling.frequency_penalty,
        )
    if sampling.greedy:
        return logits
    return truncate(logits if sampling.temperature == 1.0 else logits * (1.0 / sampling.temperature), sampling)


def choose_tokens(steered: Tensor, *, noise: Tensor | None) -> Tensor:
    """(B, V) -> (B,) the best token; with Gumbel noise (B, V) a sample of the softmax, without a sum or a search."""
    return (steered if noise is None else steered + noise).argmax(-1)


def chosen_logprobs(steered: Tensor, tokens: Tensor) -> Tensor:
    """(…, V), (…) tokens -> (…) their log-probabilities under what they were sampled from."""
    return steered.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) - steered.logsumexp(-1)


def truncate(logits: Tensor, sampling: Sampling) -> Tensor:
    """(B, V) -> (B, V) with -inf where top-k, then top-p, then min-p leave a token out; the best one always stays."""
    if 0 < sampling.top_k < logits.shape[-1]:
        logits = keep_best(logits, sampling.top_k)
    if sampling.top_p < 1.0:
        logits = keep_nucleus(logits, sampling.top_p)
    if sampling.min_p > 0.0:
        logits = below_to_nothing(logits, logits.amax(-1, keepdim=True) + math.log(sampling.min_p))
    return logits


def keep_best(logits: Tensor, count: int) -> Tensor:
    """The `count` best of each row; more only where logits tie with the last of them."""
    return below_to_nothing(logits, logits.topk(count, sorted=False).values.amin(-1, keepdim=True))


def keep_nucleus(logits: Tensor, share: float) -> Tensor:
    """The fewest best tokens whose probabilities reach `share` (Holtzman et al. 2020); ties with the last stay too."""
    ordered = logits.sort(-1, descending=True).values
    shares = ordered.softmax(-1)
    before = shares.cumsum(-1) - shares
    before[:, 0] = 0.0  # the best token stays, however the sum was rounded
    last = (before < share).sum(-1, keepdim=True) - 1
    return below_to_nothing(logits, ordered.gather(-1, last))


def below_to_nothing(logits: Tensor, threshold: Tensor) -> Tensor:
    return torch.where(logits < threshold, float("-inf"), logits)
