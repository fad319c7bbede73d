"""The hidden states that sampled tokens were predicted from, with each prompt read once for all its completions.

A prompt is read as generation reads it, and its keys and values are kept, here with their graph; its completions then
go on from there, each for itself. With 8 completions of 64 tokens behind a prompt of 64 that is 568 positions instead
of 1024; the numbers are those of the plain rows up to rounding. The head reads the states that matter, and no others.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from llmcore.batching import pad_rows
from llmcore.head import linear_logprobs
from llmcore.model.cache import Cache
from llmcore.model.masks import Mask, Sight, build_mask
from llmcore.model.transformer import Transformer

FEWEST_ROWS = 8
"""Rows that go on together, at least, however different their lengths."""
LIKE_LENGTH = 0.75
"""Of the longest: shorter rows go on in a batch of their own."""


class Groups(NamedTuple):
    """Plain rows by the prompt they begin with; rows without a sampled token are left out."""

    prompts: list[tuple[int, ...]]
    prompt_of: dict[int, int]
    """By row: which prompt."""
    tails: dict[int, list[int]]
    """By row: its sampled tokens but the last, from which nothing is predicted."""


def sampled_logprobs(
    model: Transformer,
    ids: Tensor,
    mask: Tensor,
    *,
    temperature: float = 1.0,
    entropy: bool = False,
    entropy_gradient: bool = False,
) -> tuple[Tensor, Tensor]:
    """ids and mask (B, T) -> log-probabilities and entropies (B, T-1) of the masked tokens; 0 elsewhere."""
    states = sampled_states(model, ids, mask)
    return logprobs_of_states(model, states, ids, mask, temperature, entropy=entropy, entropy_gradient=entropy_gradient)


def logprobs_of_states(
    model: Transformer,
    states: Tensor,
    ids: Tensor,
    mask: Tensor,
    temperature: float,
    *,
    entropy: bool = False,
    entropy_gradient: bool = False,
) -> tuple[Tensor, Tensor]:
    """The same from states (N, D) that `sampled_states` gave."""
    logprobs, entropies = linear_logprobs(
        states,
        model.head_weight(),
        targets=ids[:, 1:][mask[:, 1:]],
        temperature=temperature,
        entropy=entropy,
        entropy_gradient=entropy_gradient,
    )
    return spread(logprobs, mask), spread(entropies, mask)


def spread(values: Tensor, mask: Tensor) -> Tensor:
    """(N,) -> (B, T-1), each at its masked token, 0 elsewhere."""
    flat = mask[:, 1:].flatten()
    places = flat.nonzero().squeeze(1)
    return values.new_zeros(flat.shape).index_put((places,), values).view(mask.shape[0], -1)


def sampled_states(model: Transformer, ids: Tensor, mask: Tensor) -> Tensor:
    """ids and mask (B, T) -> (N, D): the state before each masked token, row by row.

    Each row's mask must be one run of columns, as that of a completion is.
    """
    groups = group_rows(ids, mask)
    if len(groups.prompts) == len(groups.prompt_of) or reports_losses(model):
        return model.hidden(ids)[:, :-1][mask[:, 1:]]
    return states_behind_prompts(model, groups, device=ids.device)


def reports_losses(model: Transformer) -> bool:
    """Whether layers report losses of their last forward: a model of experts reads everything in one."""
    return any(hasattr(module, "aux_loss") for module in model.modules())


def group_rows(ids: Tensor, mask: Tensor) -> Groups:
    """Which rows begin alike."""
    starts, counts = mask.long().argmax(1).tolist(), mask.sum(1).tolist()
    runs = (mask[:, 1:] & ~mask[:, :-1]).sum(1) + mask[:, 0]
    assert int(runs.max()) <= 1, f"the completion of row {int(runs.argmax())} has a gap"
    numbers: dict[tuple[int, ...], int] = {}
    groups = Groups([], {}, {})
    for b, row in enumerate(ids.tolist()):
        if counts[b]:
            groups.prompt_of[b] = numbers.setdefault(tuple(row[: starts[b]]), len(numbers))
            groups.tails[b] = row[starts[b] : starts[b] + counts[b] - 1]
    groups.prompts.extend(numbers)
    return groups


def states_behind_prompts(model: Transformer, groups: Groups, *, device: torch.device) -> Tensor:
    """(N, D): the last state of its prompt for each row's first token, then those of its own tokens."""
    lengths = torch.tensor([len(prompt) for prompt in groups.prompts], device=device)
    reading, last = read_prompts(model, groups.prompts, lengths)
    parts, places, total = [last], {b: [p] for b, p in groups.prompt_of.items()}, len(last)
    for rows in alike(groups.tails):
        ids = pad_rows([groups.tails[b] for b in rows], value=0, multiple=1).to(device)
        behind = torch.tensor([groups.prompt_of[b] for b in rows], device=device)
        positions = lengths[behind, None] + torch.arange(ids.shape[1], device=device)
        hidden = model.hidden(ids, positions=positions, cache=GoingOn(reading, behind))  # (n, T, D)
        parts.append(hidden.flatten(0, 1))
        for n, b in enumerate(rows):
            first = total + n * ids.shape[1]
            places[b] += range(first, first + len(groups.tails[b]))
        total += ids.numel()
    order = torch.tensor([place for b in sorted(places) for place in places[b]], device=device)
    return torch.cat(parts).index_select(0, order)


def read_prompts(model: Transformer, prompts: list[tuple[int, ...]], lengths: Tensor) -> tuple["PromptReading", Tensor]:
    """Prompts padded on the left, so that all end in one column: their keys and values, and the last state (Q, D)."""
    longest = max(map(len, prompts))
    rows = [(0,) * (longest - len(prompt)) + prompt for prompt in prompts]
    columns = torch.arange(longest, device=lengths.device) - (longest - lengths)[:, None]  # (Q, P) positions
    ragged = any(len(prompt) < longest for prompt in prompts)
    reading = PromptReading(longest, columns >= 0 if ragged else None, lengths.device)
    ids = torch.tensor(rows, device=lengths.device)
    return reading, model.hidden(ids, positions=columns.clamp(min=0), cache=reading)[:, -1]


def alike(tails: dict[int, list[int]]) -> Iterator[list[int]]:
    """Rows of similar length together, the longest first; those without a token of their own are left out."""
    together: list[int] = []
    for b in sorted((b for b in tails if tails[b]), key=lambda b: -len(tails[b])):
        if len(together) >= FEWEST_ROWS and len(tails[b]) < LIKE_LENGTH * len(tails[together[0]]):
            yield together
            together = []
        together.append(b)
    if together:
        yield together


class PromptReading(Cache):
    """Keys and values (Q, H, P, C) of each layer as it computes them, with their graph."""

    def __init__(self, columns: int, attended: Tensor | None, device: torch.device) -> None:
        """`attended` (Q, P) is False for padding; None where there is none."""
        self.device = device
        self.layers: list[tuple[Tensor, Tensor]] = []
        self.columns = columns
        self.attended = attended
        self.padding = None
        self.length = 0

    def mask(self, sight: Sight, tokens: int, *, attended: Tensor | None, documents: Tensor | None) -> Mask:
        assert attended is None and documents is None, "padding is told when the reading begins"
        return build_mask(sight, queries=tokens, keys=tokens, device=self.device, attended=self.attended)

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        assert layer == len(self.layers), f"layer {layer} after {len(self.layers)} layers"
        self.layers.append((keys, values))
        return keys, values

    def advance(self, tokens: int, attended: Tensor | None) -> None:
        """Nothing follows in this reading."""


class GoingOn(Cache):
    """Rows that go on from a reading, each behind the prompt that `behind` (n,) says."""

    def __init__(self, reading: PromptReading, behind: Tensor) -> None:
        self.reading = reading
        self.behind = behind
        self.length = reading.columns
        self.padding = None

    def mask(self, sight: Sight, tokens: int, *, attended: Tensor | None, documents: Tensor | None) -> Mask:
        assert attended is None and documents is None, "rows are padded on the right"
        seen = self.reading.attended
        if seen is not None:
            seen = torch.nn.functional.pad(seen[self.behind], (0, tokens), value=True)
        keys = self.length + tokens
        return build_mask(sight, queries=tokens, keys=keys, device=self.behind.device, attended=seen)

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        before = self.reading.layers[layer]
        return torch.cat([before[0].index_select(0, self.behind), keys], 2), torch.cat(
            [before[1].index_select(0, self.behind), values], 2
        )

    def advance(self, tokens: int, attended: Tensor | None) -> None:
        """Nothing follows these rows."""
