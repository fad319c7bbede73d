"""The cache of samples that share a prompt: its keys and values once, and each row's own after them.

Decoding many rows on a CPU is bound by reading the cache. Where each sample has a copy of its prompt, most of what is
read is that copy; here the queries of all samples of a prompt are one matrix, multiplied with the prompt's keys once
(as Juravsky et al. 2024, "Hydragen", do), and one softmax joins the scores with those of the row's own keys.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from llmcore.model.backends.contract import Backend, Prefix, Scores
from llmcore.model.cache import Cache, values_of
from llmcore.model.masks import Sight


class SharedColumn(NamedTuple):
    """Where each layer writes one more token of each row, and what that token sees."""

    new_keys: Sequence[Tensor]
    """For each layer (Hkv, B, C)."""
    new_values: Sequence[Tensor]
    keys: Sequence[Tensor]
    """For each layer (Hkv·B, T, C), the rows' own."""
    values: Sequence[Tensor]
    prefixes: Sequence[Prefix]

    def attend(
        self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, *, backend: Backend, scores: Scores
    ) -> Tensor:
        """Put (B, Hkv, C) of one layer in their place; return what the queries (B, H, C) take away: (B, H·Cv)."""
        self.new_keys[layer].copy_(keys.transpose(0, 1))
        self.new_values[layer].copy_(values.transpose(0, 1)[..., : self.new_values[layer].shape[-1]])
        seen, prefix = self.keys[layer], self.prefixes[layer]
        prefix = prefix._replace(values=values_of(prefix.keys, prefix.values, values))
        return backend.attend_shared(
            queries.to(seen.dtype), seen, values_of(seen, self.values[layer], values), prefix=prefix, scores=scores
        )


class SharedCache:
    """Prompts that were read once, and the tokens of the rows that continue them.

    Heads come before rows, (layers, Hkv, B, columns, C), so that the scores of both parts lie in the same order. The
    columns of the prompts come first in `length`, and `padding` is as in `Cache`.
    """

    def __init__(self, prompts: Cache, *, samples: int, columns: int) -> None:
        """`samples` rows for each row of `prompts`, side by side, with room for so many `columns` of their own."""
        layers, count, heads = prompts.keys.shape[:3]
        self.prompt_keys, self.prompt_values = (
            filled[:, :, :, : prompts.length].transpose(1, 2).contiguous()  # (layers, Hkv, P, S, C)
            for filled in (prompts.keys, prompts.values)
        )
        self.attended = None if prompts.attended is None else prompts.attended[:, : prompts.length]  # (P, S)
        self.keys, self.values = (
            filled.new_empty(layers, heads, count * samples, columns, filled.shape[-1])
            for filled in (prompts.keys, prompts.values)
        )
        self.length = prompts.length
        self.padding = None if prompts.padding is None else prompts.padding.repeat_interleave(samples)
        self.owners = torch.arange(count, device=self.keys.device).repeat_interleave(samples)  # (B,) prompts of rows
        self.prefixes = self.view_prefixes()

    @property
    def rows(self) -> int:
        return self.keys.shape[2]

    @property
    def own_length(self) -> int:
        """How many columns the rows have filled behind their prompts."""
        return self.length - self.prompt_keys.shape[3]

    @property
    def next_position(self) -> Tensor:
        """(B,) the position of each row's next token."""
        ends = torch.full((self.rows,), self.length, device=self.keys.device)
        return ends if self.padding is None else ends - self.padding

    def column(self, sight: Sight) -> SharedColumn:  # noqa: ARG002 - `Step.shares` has seen that it hides nothing
        """The next column, with the views that all layers need made at once."""
        place = self.own_length
        assert place < self.keys.shape[3], f"{place + 1} tokens in a cache of {self.keys.shape[3]}"
        return SharedColumn(
            self.keys.select(3, place).unbind(),
            self.values.select(3, place).unbind(),
            self.keys.flatten(1, 2).narrow(2, 0, place + 1).unbind(),
            self.values.flatten(1, 2).narrow(2, 0, place + 1).unbind(),
            self.prefixes,
        )

    def advance(self, tokens: int, attended: None) -> None:  # noqa: ARG002 - one signature with `Cache`
        """Count the columns that all layers have now written."""
        self.length += tokens

    def keep(self, rows: Tensor) -> None:
        """Keep these rows, and the prompts that one of them continues."""
        self.keys, self.values = (self.select(filled, rows) for filled in (self.keys, self.values))
        self.padding = None if self.padding is None else self.padding[rows]
        prompts, self.owners = torch.unique(self.owners[rows], return_inverse=True)
        if len(prompts) < self.prompt_keys.shape[2]:
            self.prompt_keys, self.prompt_values = self.prompt_keys[:, :, prompts], self.prompt_values[:, :, prompts]
            self.attended = None if self.attended is None else self.attended[prompts]
        self.prefixes = self.view_prefixes()

    def select(self, filled: Tensor, rows: Tensor) -> Tensor:
        layers, heads, _, capacity, width = filled.shape
        chosen = filled.new_empty(layers, heads, len(rows), capacity, width)
        chosen[:, :, :, : self.own_length] = filled[:, :, rows, : self.own_length]
        return chosen

    def view_prefixes(self) -> list[Prefix]:
        """Each layer's prompts, with what all layers share: who reads them, and what is hidden of them."""
        hidden = None
        if self.attended is not None:
            hidden = torch.zeros(self.attended.shape, dtype=self.keys.dtype, device=self.keys.device)
            hidden = hidden.masked_fill_(~self.attended, float("-inf")).unsqueeze(1)  # (P, 1, S)
            hidden = hidden.repeat(self.keys.shape[1], 1, 1)  # (Hkv·P, 1, S)
        seats = find_seats(self.owners, self.prompt_keys.shape[2])
        keys, values = (filled.flatten(1, 2).unbind() for filled in (self.prompt_keys, self.prompt_values))
        return [Prefix(*layer, hidden, *seats) for layer in zip(keys, values, strict=True)]


def find_seats(owners: Tensor, prompts: int) -> tuple[Tensor | None, Tensor | None]:
    """(B,) prompts of rows -> (P·G,) the row of each seat and (B,) the seat of each row, None where they are the same.

    Each prompt has as many seats as the prompt with most rows; row 0 sits on those that are left.
    """
    counts = owners.bincount(minlength=prompts)
    group = int(counts.max())
    order = owners.argsort(stable=True)
    rows = torch.arange(len(owners), device=owners.device)
    ranks = rows - (counts.cumsum(0) - counts)[owners[order]]
    seats = torch.empty_like(rows)
    seats[order] = owners[order] * group + ranks
    if len(rows) == prompts * group and bool((seats == rows).all()):
        return None, None
    sitting = rows.new_zeros(prompts * group)
    sitting[seats] = rows
    return sitting, seats
