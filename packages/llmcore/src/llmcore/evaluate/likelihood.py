"""log p of the scored tokens of rows, in batches of similar size that read what an item's rows share once."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from llmcore.branches import Layout, largest_tree, lay_out, row_states, takes_branches
from llmcore.errors import ConfigError
from llmcore.evaluate.options import Scored
from llmcore.generate.engine import evaluating
from llmcore.head import chunks
from llmcore.model.linear import widen
from llmcore.model.transformer import Transformer

TOKENS = 16384
ITEMS = 256
"""At most this many tokens and items in one forward."""


class Likelihood(NamedTuple):
    """How likely the scored tokens of one row are."""

    total: float
    """Σ log p(token | all before it), in nats."""
    tokens: int
    """How many were scored."""
    greedy: bool
    """Whether each is the most likely one: greedy decoding would have said them."""


def likelihoods(
    model: Transformer,
    families: Sequence[Sequence[Scored]],
    *,
    pad_id: int,
    tell: Callable[[int], None] = lambda _done: None,
) -> list[list[Likelihood]]:
    """Of each row of each family, in the order given; `tell` hears how many families are done.

    Rows of a family that begin alike are read together (`llmcore.branches`). The figures are those of a row alone, up
    to rounding: log-probabilities in float32, their sums in float64.
    """
    check_model(model)
    share, device = takes_branches(model), next(model.parameters()).device
    sizes = [largest_tree([row.ids[:-1] for row in family], share=share) if family else 0 for family in families]
    found: list[list[Likelihood]] = [[] for _ in families]
    with evaluating(model), torch.inference_mode():
        for numbers in batches(sizes, [len(family) for family in families]):
            rows = [row for number in numbers for row in families[number]]
            scored = iter(score(model, rows, numbered(families[n] for n in numbers), pad_id, share, device))
            for number in numbers:
                found[number] = list(itertools.islice(scored, len(families[number])))
            tell(len(numbers))
    return found


def check_model(model: Transformer) -> None:
    """Refuse what has no next token."""
    if model.config.head != "lm" or not model.config.attention.sight().causal:
        raise ConfigError(
            "only a causal model with a language-model head gives texts a likelihood "
            f"(head {model.config.head!r}, causal {model.config.attention.sight().causal!r})",
            hint="give a policy",
        )


def batches(sizes: Sequence[int], counts: Sequence[int]) -> Iterator[list[int]]:
    """Numbers of families of similar size, the largest first; those without rows are left out."""
    order = sorted((n for n in range(len(sizes)) if counts[n]), key=lambda n: (-sizes[n], n))
    start = 0
    while start < len(order):
        first = order[start]
        most = max(1, min(ITEMS, TOKENS // (sizes[first] * counts[first])))
        yield order[start : start + most]
        start += most


def numbered(families: Iterator[Sequence[Scored]]) -> list[list[int]]:
    """The numbers that the rows of each family have when all stand in one list."""
    count = itertools.count()
    return [[next(count) for _ in family] for family in families]


def score(
    model: Transformer,
    rows: Sequence[Scored],
    families: Sequence[Sequence[int]],
    pad_id: int,
    share: bool,
    device: torch.device,
) -> list[Likelihood]:
    """The rows of one batch."""
    layout = lay_out([row.ids[:-1] for row in rows], families, pad_id=pad_id, share=share)
    states, places = row_states(model, Layout(*(part.to(device) for part in layout)))  # (M, D), (N, T)
    starts = torch.tensor([row.start - 1 for row in rows], device=device)
    lengths = torch.tensor([len(row.ids) - 1 for row in rows], device=device)
    column = torch.arange(places.shape[1], device=device)
    wanted = (column >= starts[:, None]) & (column < lengths[:, None])  # (N, T) states that a scored token follows
    targets = torch.from_numpy(np.concatenate([row.ids[row.start :] for row in rows])).to(device)
    logprobs, first = target_logprobs(states[places[wanted]], model.head_weight(), targets)
    owner = wanted.nonzero()[:, 0]
    totals = torch.zeros(len(rows), dtype=torch.float64, device=device).index_add_(0, owner, logprobs.double())
    missed = torch.zeros(len(rows), dtype=torch.long, device=device).index_add_(0, owner, (~first).long())
    counts = (lengths - starts).tolist()
    return [Likelihood(*one) for one in zip(totals.tolist(), counts, (missed == 0).tolist(), strict=True)]


def target_logprobs(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """(N, D), (V, D), (N,) -> (N,) log-probabilities, and (N,) whether greedy decoding would have said the target."""
    head = weight.to(hidden.dtype)
    logprobs = torch.empty(len(targets), dtype=widen(hidden[:0]).dtype, device=hidden.device)
    first = torch.empty(len(targets), dtype=torch.bool, device=hidden.device)
    for chunk in chunks(len(targets), len(weight)):
        logits = widen(F.linear(hidden[chunk], head))
        logprobs[chunk] = logits.gather(-1, targets[chunk, None]).squeeze(-1) - logits.logsumexp(-1)
        first[chunk] = logits.argmax(-1) == targets[chunk]
    return logprobs, first
