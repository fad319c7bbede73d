"""Rows of tokens that begin alike, laid out so that what they share is read once.

Answers to one prompt stand in one row behind it, `prompt a a a b b`, and what is short stands behind one another, as
far as the longest reaches. A token sees the beginning that it shares and what precedes it in its own answer, and its
positions go on from there: the numbers are those of plain rows, padded on the right, up to rounding. A model that
looks both ways sees its whole row and shares nothing.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from llmcore.model.attention import GroupedQuery
from llmcore.model.masks import Mask
from llmcore.model.transformer import Transformer

FLEXIBLE_BACKENDS = frozenset({"auto", "sdpa", "matmul", "manual"})
"""Attention backends that take any mask."""
WORTH = 0.15
"""The share of tokens that sharing must save: below it, the longer rows of attention cost more."""
LIMIT = 512
"""Tokens up to which attention, which grows with the square, costs little: a longer tree must save attention too."""


class Layout(NamedTuple):
    """N rows of up to T tokens, laid out in R rows of S columns."""

    ids: Tensor
    """(R, S) long."""
    positions: Tensor
    """(R, S) long: where each token stands in its own row."""
    trees: Tensor
    """(R, S) long: which rows belong together, counted from 1; 0 padding."""
    branches: Tensor
    """(R, S) long: 0 what a tree's rows share, then each row's own number."""
    places: Tensor
    """(N, T) long: where token t of row n stands, as row · S + column; 0 beyond its end."""
    lengths: Tensor
    """(N,) long: tokens of each row."""


class Tree(NamedTuple):
    """Rows with a shared beginning."""

    shared: int
    rows: list[int]
    size: int


def takes_branches(model: Transformer) -> bool:
    """Whether the model's attention depends on the mask and on positions alone, not on the distance of columns."""
    attention = model.config.attention
    return (
        isinstance(attention, GroupedQuery) and attention.window is None and attention.backend.kind in FLEXIBLE_BACKENDS
    )


def lay_out(rows: Sequence[Sequence[int]], families: Sequence[Sequence[int]], *, pad_id: int, share: bool) -> Layout:
    """Lay out rows, of which each family (numbers of rows) begins alike; every row is in one family.

    Without `share` each row stands alone, as a model needs that also looks ahead.
    """
    trees = sorted(
        (tree for family in families for tree in trees_of(rows, family, share=share)), key=lambda tree: -tree.size
    )
    columns = -(-trees[0].size // 8) * 8
    bins = first_fit(trees, columns)
    ids, positions = np.full((len(bins), columns), pad_id), np.zeros((len(bins), columns), dtype=np.int64)
    numbers, branches = np.zeros_like(positions), np.zeros_like(positions)
    places = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
    for r, together in enumerate(bins):
        column = 0
        for number, tree in enumerate(together, 1):
            for branch, n in enumerate(tree.rows, 1):
                first = tree.shared if branch > 1 else 0  # the first row brings the shared beginning
                count = len(rows[n]) - first
                here = slice(column, column + count)
                ids[r, here] = rows[n][first:]
                positions[r, here] = np.arange(first, len(rows[n]))
                numbers[r, here] = number
                branches[r, here] = branch
                if first == 0:
                    begin = column
                    branches[r, column : column + tree.shared] = 0
                places[n, : tree.shared] = r * columns + begin + np.arange(tree.shared)
                places[n, first : len(rows[n])] = r * columns + column + np.arange(count)
                column += count
    lengths = np.array([len(row) for row in rows])
    return Layout(*map(torch.from_numpy, (ids, positions, numbers, branches, places, lengths)))


def row_states(model: Transformer, layout: Layout) -> tuple[Tensor, Tensor]:
    """(M, D) the state after each token, and (N, T) where in it those of each row stand.

    A model whose attention cannot take any mask reads the plain rows.
    """
    if takes_branches(model):
        return hidden_states(model, layout).flatten(0, 1), layout.places
    ids, inside = plain_rows(layout)
    hidden = model.hidden(ids, attended=None if model.config.attention.sight().causal else inside)  # (N, T, D)
    return hidden.flatten(0, 1), torch.arange(ids.numel(), device=ids.device).view(ids.shape)


def plain_rows(layout: Layout) -> tuple[Tensor, Tensor]:
    """The rows as they are, padded on the right with whatever, (N, T), and which of it is no padding, (N, T)."""
    ids = layout.ids.flatten()[layout.places]
    return ids, torch.arange(ids.shape[1], device=ids.device) < layout.lengths.unsqueeze(1)


def hidden_states(model: Transformer, layout: Layout) -> Tensor:
    """(R, S, D): what `Transformer.hidden` computes of plain rows, under the mask of a layout."""
    mask = Mask(causal=False, allowed=visible(layout, causal=model.config.attention.sight().causal))
    return model.hidden(layout.ids, positions=layout.positions, mask=mask)


def visible(layout: Layout, *, causal: bool) -> Tensor:
    """(R, 1, S, S): a token sees its own row, or of it what is not after it."""
    same = layout.trees[:, :, None] == layout.trees[:, None, :]
    key, query = layout.branches[:, None, :], layout.branches[:, :, None]
    allowed = same & ((key == 0) | (key == query))
    return (allowed.tril() if causal else allowed).unsqueeze(1)


def trees_of(rows: Sequence[Sequence[int]], family: Sequence[int], *, share: bool) -> Iterator[Tree]:
    """A family as one tree, as several where one would be too long, or each row alone where sharing saves too little.

    The attention of K rows of T tokens costs K · T², that of a tree of S tokens S²: a tree may have up to T · √K.
    """
    total = sum(len(rows[n]) for n in family)
    shared = shared_length([rows[n] for n in family]) if share and len(family) > 1 else 0
    if shared * (len(family) - 1) < WORTH * total:
        yield from (Tree(0, [n], len(rows[n])) for n in family)
        return
    longest = max(len(rows[n]) for n in family)
    tree = Tree(shared, [], shared)
    for n in family:
        size = tree.size + len(rows[n]) - shared
        if tree.rows and size > max(LIMIT, longest * math.sqrt(len(tree.rows) + 1)):
            yield tree
            size = len(rows[n])
            tree = Tree(shared, [], shared)
        tree = Tree(shared, [*tree.rows, n], size)
    yield tree


def largest_tree(rows: Sequence[Sequence[int]], *, share: bool) -> int:
    """Tokens of the largest tree of one family: batches of similar ones leave little padding."""
    return max(tree.size for tree in trees_of(rows, range(len(rows)), share=share))


def shared_length(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens all rows begin with alike; the last token of each is its own."""
    first, last = min(rows, key=list), max(rows, key=list)  # in order, what these two share all others share
    limit = min(map(len, rows)) - 1
    return next((i for i in range(limit) if first[i] != last[i]), limit)


def first_fit(trees: Sequence[Tree], columns: int) -> list[list[Tree]]:
    """Trees, longest first, each into the first row that has room."""
    bins: list[list[Tree]] = []
    room: list[int] = []
    for tree in trees:
        r = next((r for r, left in enumerate(room) if left >= tree.size), len(bins))
        if r == len(bins):
            bins.append([])
            room.append(columns)
        bins[r].append(tree)
        room[r] -= tree.size
    return bins
