"""The hidden states that sampled tokens were predicted from, with each prompt read once for all its completions.

Completions of one prompt stand in one row behind it, `prompt a a a b b c c c`: each sees the prompt and itself, and its
positions go on from the prompt's. With 8 completions of 10 tokens behind a prompt of 40 that is 112 positions instead
of 400; the numbers are those of the plain rows up to rounding. The head reads the states that matter, and no others.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from llmcore.losses import linear_logprobs
from llmcore.model.attention import Around, GroupedQuery
from llmcore.model.masks import Mask, Sight
from llmcore.model.transformer import Transformer

FLEXIBLE_BACKENDS = frozenset({"auto", "sdpa", "matmul", "manual"})
"""Backends that take any mask."""


class Packed(NamedTuple):
    """Prompts with their completions behind them: R rows of S columns."""

    ids: Tensor
    """(R, S) long."""
    positions: Tensor
    """(R, S) long: where each token stands in its own completion's sequence."""
    members: Tensor
    """(R, S) long: 0 the prompt, 1, 2, … its completions, -1 padding."""
    sources: Tensor
    """(N,) for each sampled token, in the order of the plain rows: row · S + column of the state before it."""


def sampled_logprobs(
    model: Transformer, ids: Tensor, mask: Tensor, *, temperature: float = 1.0, entropy: bool = False
) -> tuple[Tensor, Tensor]:
    """ids and mask (B, T) -> log-probabilities and entropies (B, T-1) of the masked tokens; 0 elsewhere."""
    return logprobs_of_states(model, sampled_states(model, ids, mask), ids, mask, temperature, entropy=entropy)


def logprobs_of_states(
    model: Transformer, states: Tensor, ids: Tensor, mask: Tensor, temperature: float, *, entropy: bool
) -> tuple[Tensor, Tensor]:
    """The same from states (N, D) that `sampled_states` gave."""
    logprobs, entropies = linear_logprobs(
        states, model.head_weight(), targets=ids[:, 1:][mask[:, 1:]], temperature=temperature, entropy=entropy
    )
    return spread(logprobs, mask), spread(entropies, mask)


def sampled_states(model: Transformer, ids: Tensor, mask: Tensor) -> Tensor:
    """ids and mask (B, T) -> (N, D): the state before each masked token, row by row."""
    packed = pack(ids, mask, limit=model.config.context) if takes_any_mask(model) else None
    if packed is None:
        return model.hidden(ids)[:, :-1][mask[:, 1:]]
    hidden = hidden_of_packed(model, packed)  # (R, S, D)
    return hidden.flatten(0, 1)[packed.sources]


def spread(values: Tensor, mask: Tensor) -> Tensor:
    """(N,) -> (B, T-1), each at its masked token, 0 elsewhere."""
    flat = mask[:, 1:].flatten()
    places = flat.nonzero().squeeze(1)
    return values.new_zeros(flat.shape).index_put((places,), values).view(mask.shape[0], -1)


def takes_any_mask(model: Transformer) -> bool:
    """Whether attention depends on the mask and on positions alone, not on the distance of columns."""
    attention = model.config.attention
    return (
        isinstance(attention, GroupedQuery)
        and attention.sight() == Sight()
        and attention.backend.kind in FLEXIBLE_BACKENDS
    )


def pack(ids: Tensor, mask: Tensor, *, limit: int) -> Packed | None:
    """Rows of one prompt behind one copy of it, up to `limit` columns; None where no prompt comes twice.

    Each row's mask must be one run of columns, as that of a completion is.
    """
    rows = ids.tolist()
    starts = mask.long().argmax(1).tolist()
    counts = mask.sum(1).tolist()
    runs = (mask[:, 1:] & ~mask[:, :-1]).sum(1) + mask[:, 0]
    assert int(runs.max()) <= 1, f"the completion of row {int(runs.argmax())} has a gap"
    groups: dict[tuple[int, ...], list[int]] = {}
    for b, row in enumerate(rows):
        if counts[b]:
            groups.setdefault(tuple(row[: starts[b]]), []).append(b)
    if len(groups) == sum(map(len, groups.values())):
        return None
    packed: list[tuple[list[int], list[int], list[int]]] = []  # ids, positions and members of each row
    where: dict[int, tuple[int, int]] = {}  # of each plain row: packed row, and column of its first token
    for prompt, behind in groups.items():
        for b in behind:
            words = rows[b][starts[b] : starts[b] + counts[b] - 1]  # nothing is predicted from the last one
            fits = where and packed[-1][0][: len(prompt)] == list(prompt) and b != behind[0]
            if not fits or len(packed[-1][0]) + len(words) > limit:
                packed.append((list(prompt), list(range(len(prompt))), [0] * len(prompt)))
            row_ids, positions, members = packed[-1]
            where[b] = (len(packed) - 1, len(row_ids))
            row_ids += words
            positions += range(len(prompt), len(prompt) + len(words))
            members += [members[-1] + 1] * len(words)
    columns = max(len(row[0]) for row in packed)
    sources: list[int] = []
    for b in sorted(where):
        r, first = where[b]
        sources.append(r * columns + starts[b] - 1)
        sources += range(r * columns + first, r * columns + first + counts[b] - 1)

    def padded(part: int, fill: int) -> Tensor:
        rows_of_part = [row[part] + [fill] * (columns - len(row[part])) for row in packed]
        return torch.tensor(rows_of_part, device=ids.device)

    return Packed(padded(0, 0), padded(1, 0), padded(2, -1), torch.tensor(sources, device=ids.device))


def hidden_of_packed(model: Transformer, packed: Packed) -> Tensor:
    """(R, S, D): what `Transformer.hidden` computes, under the mask of packed completions."""
    x = model.embedding(packed.ids, model.activation_dtype) * model.config.embedding_scale
    x = model.positions.embed(x, 0, packed.positions)
    around = Around(mask=packed_mask(packed.members), rotation=model.positions.rotation(x, 0, packed.positions))
    for block in model.blocks:
        x = block(x, around)
    hidden: Tensor = model.final_norm(x)
    return hidden


def packed_mask(members: Tensor) -> Mask:
    """Each token sees the prompt, and what is before it of its own completion. (R, S) -> (R, 1, S, S)"""
    query, key = members[:, :, None], members[:, None, :]
    allowed = ((key == 0) | (key == query)).tril()
    return Mask(causal=False, allowed=allowed.unsqueeze(1))
