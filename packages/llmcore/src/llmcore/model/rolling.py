"""The cache of a sliding window: a ring that is written over, so that a sequence may go on for ever."""

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from llmcore.model.cache import Cache, Column, empty_columns
from llmcore.model.masks import Mask, Sight, build_mask

if TYPE_CHECKING:
    from llmcore.model.config import ModelConfig

NEVER = torch.iinfo(torch.long).max
"""The column of a sink that has not come yet."""


def allocate_cache(
    config: "ModelConfig", rows: int, columns: int, *, dtype: torch.dtype, device: torch.device | str
) -> Cache:
    """A cache for sequences of so many columns: rolling where that is smaller.

    On a CPU it is float32 at least: bfloat16 products of one query with its keys take three to five times as long
    (4 heads of 64, 192 keys, 1 thread of a Zen 5, a layer: 45 against 8 µs for 1 row, 349 against 104 for 16).
    """
    if torch.device(device).type == "cpu":
        dtype = torch.promote_types(dtype, torch.float32)
    sight = config.attention.sight()
    if sight.causal and sight.window is not None and sight.window + sight.sinks < columns:
        return RollingCache.of_window(config, rows, dtype=dtype, device=device)
    return Cache.allocate(config, rows, columns, dtype=dtype, device=device)


class Arrivals(NamedTuple):
    """(N,) each: row, place among the tokens of this forward, and slot, of the sinks among them."""

    rows: Tensor
    tokens: Tensor
    slots: Tensor


class RollingCache(Cache):
    """The last `window` tokens of each row and its first `sinks`: memory that does not grow.

    Column c of the sequence stands in slot c % window. Sinks are written once more, to slots of their own behind the
    ring: there they are seen from when the window has left them. Keys keep the rotation of their own positions, so
    all is as if every key were kept and the window a mask. `attended` (B, window) is of the ring. No
    gradient passes through what it holds.
    """

    def __init__(self, keys: Tensor, values: Tensor, *, window: int) -> None:
        super().__init__(keys, values)
        self.window = window
        self.sinks = self.capacity - window
        self.sink_columns = torch.full((self.rows, self.sinks), NEVER, device=keys.device)
        self.hidden_until = -1  # no padding and no sink stands in a later column
        self.arrivals: Arrivals | None = None
        self.places: Tensor | slice = slice(0, 0)

    @classmethod
    def of_window(
        cls,
        config: "ModelConfig",
        rows: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> "RollingCache":
        sight = config.attention.sight()
        assert sight.causal and sight.window is not None, f"{sight} has no window to roll"
        columns = sight.window + sight.sinks
        keys, values = empty_columns(config, rows, columns, dtype=dtype, device=device)
        return cls(keys, values, window=sight.window)

    def mask(self, sight: Sight, tokens: int, *, attended: Tensor | None, documents: Tensor | None) -> Mask:
        assert documents is None, "packed rows have no rolling cache"
        self.arrivals = self.find_sinks(tokens, attended)
        self.places = self.ring_places(tokens)
        if self.length == 0:
            return build_mask(sight, queries=tokens, keys=tokens, device=self.keys.device, attended=attended)
        return self.step_mask() if tokens == 1 else self.chunk_mask(tokens, attended)

    def column(self, sight: Sight) -> Column | None:  # noqa: ARG002 - the ring itself is the window
        if self.sinks and self.length <= self.hidden_until + 1:
            return None  # the token may be a sink, and is then written twice
        self.arrivals, self.places = None, self.ring_places(1)
        return self.view_column(self.length % self.window, self.filled(), self.step_mask())

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write (B, H, T, C); return what the mask is about.

        One token: the slots with it among them. The first tokens: themselves. Later ones: the slots before them and
        themselves behind, because those that they push out are still seen by the first of them.
        """
        held = self.keys[layer], self.values[layer]
        if keys.shape[2] > 1:
            seen = (keys, values)
            if self.length:
                seen = (torch.cat([held[0].to(keys.dtype), keys], 2), torch.cat([held[1].to(keys.dtype), values], 2))
            self.write(held, (keys, values))
            return seen
        self.write(held, (keys, values))
        stop = self.filled()
        return held[0][:, :, :stop].to(keys.dtype), held[1][:, :, :stop].to(keys.dtype)

    def advance(self, tokens: int, attended: Tensor | None) -> None:
        if attended is not None and self.attended is None:
            self.attended = torch.ones(self.rows, self.window, dtype=torch.bool, device=self.keys.device)
        if self.attended is not None:
            self.attended[:, self.places] = True if attended is None else attended[:, -self.window :]
        if attended is not None and not bool(attended.all()):
            self.hidden_until = self.length + int((~attended).any(0).nonzero().max())
        if self.arrivals is not None:
            rows, places, slots = self.arrivals
            self.sink_columns[rows, slots] = self.length + places
            self.hidden_until = max(self.hidden_until, self.length + int(places.max()))
        super().advance(tokens, attended)

    def keep(self, rows: Tensor) -> None:
        super().keep(rows)
        self.sink_columns = self.sink_columns[rows]

    def select(self, filled: Tensor, rows: Tensor) -> Tensor:
        return filled[:, rows]

    def filled(self) -> int:
        """How many slots one more token has to look at: all, once the ring is full."""
        return self.length + 1 if self.length < self.window else self.capacity

    def write(self, held: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor]) -> None:
        """Put new keys and values (B, H, T, C) into the slots of one layer."""
        for store, added in zip(held, (new[0].detach(), new[1].detach()), strict=True):
            store[:, :, self.places] = added[:, :, -self.window :].to(store.dtype)
            if self.arrivals is not None:
                rows, tokens, slots = self.arrivals
                store[rows, :, self.window + slots] = added[rows, :, tokens].to(store.dtype)

    def ring_places(self, tokens: int) -> Tensor | slice:
        """The slots of the next tokens, of the last of them if they are more than the ring has."""
        if tokens == 1:
            return slice(self.length % self.window, self.length % self.window + 1)
        stop = self.length + tokens
        return torch.arange(max(self.length, stop - self.window), stop, device=self.keys.device) % self.window

    def ring_columns(self, last: int) -> Tensor:
        """(window,) which column each slot holds when `last` was written last; negative: none yet."""
        slots = torch.arange(self.window, device=self.keys.device)
        return last - (last - slots) % self.window

    def find_sinks(self, tokens: int, attended: Tensor | None) -> Arrivals | None:
        """Which of the next tokens are sinks; None where none can be."""
        if self.sinks == 0 or self.length > self.hidden_until + 1:
            return None  # the last column was neither padding nor a sink, in any row
        steps = torch.ones(self.rows, tokens, dtype=torch.long, device=self.keys.device)
        steps = steps if attended is None else attended.long()
        positions = self.next_position.unsqueeze(1) + steps.cumsum(1) - 1  # (B, T)
        rows, places = ((positions < self.sinks) & (steps > 0)).nonzero(as_tuple=True)
        return Arrivals(rows, places, positions[rows, places]) if len(rows) else None

    def step_mask(self) -> Mask:
        """Of one token over the slots; nothing is hidden once padding and sinks have left every row's ring."""
        outside = self.length - self.window  # the last column that the token does not see
        every_slot = outside >= -1 and outside >= self.hidden_until and self.arrivals is None
        if every_slot or (outside < 0 and self.attended is None):
            return Mask(causal=False, allowed=None)
        columns = self.ring_columns(self.length)
        allowed = (columns >= 0).unsqueeze(0)
        if self.attended is not None:
            allowed = allowed & self.attended
        allowed = allowed | (columns == self.length)
        allowed = torch.cat([allowed.expand(self.rows, -1), self.sink_columns <= outside], 1)
        return Mask(causal=False, allowed=allowed[:, None, None, : self.filled()])  # (B, 1, 1, S)

    def chunk_mask(self, tokens: int, attended: Tensor | None) -> Mask:
        """Of several tokens over the slots before them and themselves -> (B, 1, T, window + sinks + T)."""
        queries = torch.arange(self.length, self.length + tokens, device=self.keys.device).unsqueeze(1)  # (T, 1)
        columns = self.ring_columns(self.length - 1)
        ring = (columns >= 0) & (columns > queries - self.window)
        ring = ring.expand(self.rows, -1, -1)
        if self.attended is not None:
            ring = ring & self.attended.unsqueeze(1)
        sinks = self.sink_columns.unsqueeze(1) <= queries - self.window  # (B, T, sinks)
        sight = Sight(window=self.window)
        own = build_mask(sight, queries=tokens, keys=tokens, device=self.keys.device, attended=attended)
        seen = own.tensor(tokens, self.keys.device).view(-1, tokens, tokens).expand(self.rows, -1, -1).clone()
        if self.arrivals is not None:
            rows, places, _ = self.arrivals
            seen[rows, :, places] |= torch.arange(tokens, device=seen.device) >= places.unsqueeze(1)
        return Mask(causal=False, allowed=torch.cat([ring, sinks, seen], 2).unsqueeze(1))
