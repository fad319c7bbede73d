"""Keys and values of the tokens so far, in tensors allocated once and written in place."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from llmcore.model.backends.contract import Backend, Scores
from llmcore.model.masks import Mask, Sight, build_mask

if TYPE_CHECKING:
    from llmcore.model.config import ModelConfig


class CacheShape(NamedTuple):
    """What a layer keeps of a token."""

    heads: int
    key_width: int
    value_width: int

    @property
    def numbers(self) -> int:
        """How many numbers that is."""
        return self.heads * (self.key_width + self.value_width)


class Column(NamedTuple):
    """Where each layer writes one more token of each row, and what that token then sees, itself included."""

    new_keys: Sequence[Tensor]
    """For each layer (B, H, C)."""
    new_values: Sequence[Tensor]
    keys: Sequence[Tensor]
    """For each layer (B·H, S, C)."""
    values: Sequence[Tensor]
    mask: Mask

    def attend(
        self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, *, backend: Backend, scores: Scores
    ) -> Tensor:
        """Put (B, Hkv, C) of one layer in their place; return what queries (B, H, C) take from all they see: (B, H·Cv).

        Where the cache keeps no values, they are the first numbers of the keys.
        """
        seen, worth = self.write(layer, keys, values)
        return backend.attend_one(
            queries.to(seen.dtype), seen, values_of(seen, worth, values), mask=self.mask, scores=scores
        )

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        self.new_keys[layer].copy_(keys)
        self.new_values[layer].copy_(values[..., : self.new_values[layer].shape[-1]])
        return self.keys[layer], self.values[layer]


class WholeColumn(NamedTuple):
    """The same from the whole cache, so that one compilation, in which `seen` is any number, serves all tokens."""

    all_keys: Sequence[Tensor]
    """For each layer (B, H, capacity, C)."""
    all_values: Sequence[Tensor]
    seen: int
    """How many columns the token sees, the last of which is its own."""
    mask: Mask

    def attend(
        self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, *, backend: Backend, scores: Scores
    ) -> Tensor:
        """Put (B, Hkv, C) of one layer in their place; return what queries (B, H, C) take from all they see."""
        seen, worth = self.write(layer, keys, values)
        return backend.attend_one(
            queries.to(seen.dtype), seen, values_of(seen, worth, values), mask=self.mask, scores=scores
        )

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        kept = []
        for store, new in ((self.all_keys[layer], keys), (self.all_values[layer], values)):
            store.narrow(2, self.seen - 1, 1).copy_(new[..., : store.shape[-1]].unsqueeze(2))
            kept.append(store.flatten(0, 1).narrow(1, 0, self.seen))
        return kept[0], kept[1]


def values_of(keys: Tensor, values: Tensor, like: Tensor) -> Tensor:
    """The values, or the first numbers of the keys where none are kept of such as `like`."""
    return values if values.shape[-1] else keys[..., : like.shape[-1]]


class Cache:
    """Keys and values (layers, B, H, capacity, C) of which the first `length` columns are filled.

    `attended` (B, capacity) is False where a row has padding, or None while no row has any.
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys = keys
        self.values = values
        self.length = 0
        self.attended: Tensor | None = None
        self.padding: Tensor | None = None

    @classmethod
    def allocate(
        cls,
        config: "ModelConfig",
        rows: int,
        capacity: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> "Cache":
        return cls(*empty_columns(config, rows, capacity, dtype=dtype, device=device))

    @property
    def rows(self) -> int:
        return self.keys.shape[1]

    @property
    def capacity(self) -> int:
        return self.keys.shape[3]

    @property
    def next_position(self) -> Tensor:
        """(B,) the position of each row's next token: how many attended tokens it has."""
        ends = torch.full((self.rows,), self.length, device=self.keys.device)
        return ends if self.padding is None else ends - self.padding

    def mask(self, sight: Sight, tokens: int, *, attended: Tensor | None, documents: Tensor | None) -> Mask:
        """What the next `tokens` may see of what `append` will return; asked once, before all layers append."""
        assert self.length == 0 or documents is None, "packed rows cannot follow a cache"
        assert self.length == 0 or sight.causal, "only causal attention can follow a cache"
        return build_mask(
            sight,
            queries=tokens,
            keys=self.length + tokens,
            device=self.keys.device,
            attended=self.mark(tokens, attended),
            documents=documents,
        )

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write (B, H, T, C) after what is there; return the (B, H, length + T, C) so far, in the dtype of the new."""
        stop = self.length + keys.shape[2]
        assert stop <= self.capacity, f"{stop} tokens in a cache of {self.capacity}"
        self.keys[layer, :, :, self.length : stop] = keys
        self.values[layer, :, :, self.length : stop] = values
        return self.keys[layer, :, :, :stop].to(keys.dtype), self.values[layer, :, :, :stop].to(keys.dtype)

    def column(self, sight: Sight) -> Column | None:
        """The next column, with the views that all layers need made at once; None where only `append` will do."""
        if sight.window is not None and self.length >= sight.window:
            return None
        assert self.length < self.capacity, f"{self.length + 1} tokens in a cache of {self.capacity}"
        seen = self.length + 1
        allowed = None if self.attended is None else self.attended[:, None, None, :seen]
        return self.view_column(self.length, seen, Mask(causal=False, allowed=allowed))

    def view_column(self, place: int, seen: int, mask: Mask) -> Column:
        """A column at `place`, of which the token sees the first `seen`, as far as the mask allows."""
        return Column(
            self.keys.select(3, place).unbind(),
            self.values.select(3, place).unbind(),
            self.keys.flatten(1, 2).narrow(2, 0, seen).unbind(),
            self.values.flatten(1, 2).narrow(2, 0, seen).unbind(),
            mask,
        )

    def mark(self, tokens: int, attended: Tensor | None) -> Tensor | None:
        """Note which of the next `tokens` columns are padding; return (B, length + tokens), None if none is."""
        if attended is not None:
            if self.attended is None:
                self.attended = torch.ones(self.rows, self.capacity, dtype=torch.bool, device=self.keys.device)
            self.attended[:, self.length : self.length + tokens] = attended
        return None if self.attended is None else self.attended[:, : self.length + tokens]

    def advance(self, tokens: int, attended: Tensor | None) -> None:
        """Count the columns that all layers have now written."""
        if attended is not None:
            skipped = (~attended).sum(1)
            self.padding = skipped if self.padding is None else self.padding + skipped
        self.length += tokens

    def keep(self, rows: Tensor) -> None:
        """Keep these rows, in this order; a row may come more than once."""
        self.keys = self.select(self.keys, rows)
        self.values = self.select(self.values, rows)
        self.attended = None if self.attended is None else self.attended[rows]
        self.padding = None if self.padding is None else self.padding[rows]

    def select(self, filled: Tensor, rows: Tensor) -> Tensor:
        layers, _, heads, capacity, head_width = filled.shape
        chosen = filled.new_empty(layers, len(rows), heads, capacity, head_width)
        chosen[:, :, :, : self.length] = filled[:, rows, :, : self.length]
        return chosen

    def repeat(self, samples: int) -> None:
        """Give each row `samples` copies, side by side, so that samples share one reading of their prompt."""
        self.keep(torch.arange(self.rows, device=self.keys.device).repeat_interleave(samples))


def empty_columns(
    config: "ModelConfig", rows: int, columns: int, *, dtype: torch.dtype, device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """Keys (layers, B, H, columns, C) and values (layers, B, H, columns, Cv)."""
    shape = config.attention.cache_shape(config.width)
    first = (config.depth, rows, shape.heads, columns)
    keys = torch.zeros(*first, shape.key_width, dtype=dtype, device=device)
    return keys, torch.zeros(*first, shape.value_width, dtype=dtype, device=device)
