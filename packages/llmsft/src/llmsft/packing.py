"""Packing: several conversations in one row, each seeing itself alone, with positions that begin anew.

The conversations of a step are packed among themselves, so that a step has the loss and the gradient that it has
unpacked; only the padding goes. How long the rows become is arithmetic: longer ones have less padding, but a masked
attention computes all pairs of a row's tokens, also those that do not see each other.
"""

import bisect
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from llmcore.batching import MULTIPLE
from llmcore.model.config import ModelConfig
from llmcore.model.size import count_parameters, skeleton

TRIES = 16
"""Row lengths that are weighed: those of which a whole number of rows would just hold all tokens."""
SLACK = (1.0, 1.03)
"""A little more room than that, with which conversations of uneven lengths may fit."""


class Packed(NamedTuple):
    """Rows of conversations, by their numbers, and how long the rows are."""

    rows: list[list[int]]
    width: int

    @property
    def cells(self) -> int:
        """Tokens and padding together."""
        return len(self.rows) * self.width


def pack(lengths: Sequence[int], *, limit: int, pair_cost: float) -> Packed:
    """The cheapest of some packings into rows of at most `limit` tokens; no conversation is cut.

    A row of T tokens costs T · (1 + T · pair_cost): `pair_cost` is what attention to one more key costs a token,
    over all else that it costs (`relative_pair_cost`).
    """
    packings = [packed_into(lengths, capacity) for capacity in capacities(lengths, limit)]
    return min(packings, key=lambda packed: packed.cells * (1 + packed.width * pair_cost))


def capacities(lengths: Sequence[int], limit: int) -> list[int]:
    """Row lengths worth a try, from the longest conversation to `limit`."""
    longest, total = max(lengths), sum(lengths)
    most = max(1, total // longest)
    counts = {round(count) for count in np.geomspace(1, most, TRIES)} | {most}
    wanted = {rounded(slack * total / count) for count in counts for slack in SLACK}
    return sorted({min(max(width, longest), max(limit, longest)) for width in wanted | {rounded(longest)}})


def packed_into(lengths: Sequence[int], capacity: int) -> Packed:
    rows = best_fit_decreasing(lengths, capacity)
    return Packed(rows, min(capacity, rounded(max(sum(lengths[i] for i in row) for row in rows))))


def best_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Each conversation, the longest first, goes where it leaves the least room; a new row where none has room."""
    rows: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (room, row), ascending
    for number in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        place = bisect.bisect_left(rooms, (lengths[number], -1))
        if place == len(rooms):
            rows.append([])
            room, row = capacity, len(rows) - 1
        else:
            room, row = rooms.pop(place)
        rows[row].append(number)
        bisect.insort(rooms, (room - lengths[number], row))
    return rows


def relative_pair_cost(config: ModelConfig) -> float:
    """Multiplications of a token with one more key, over those with the weights, in all layers."""
    model = skeleton(config)
    weights = count_parameters(model) - (0 if model.head is None else model.embedding.weight.numel())
    return config.depth * config.attention.products(config.width) / weights


def rounded(width: float) -> int:
    """Up to a multiple that suits the kernels."""
    return -(-int(np.ceil(width)) // MULTIPLE) * MULTIPLE
