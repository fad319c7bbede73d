"""Which keys each query may see: causal, window and sinks, padding, documents of a packed row."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


@dataclass(frozen=True)
class Sight:
    """What the attention's own settings let a query see."""

    causal: bool = True
    window: int | None = None
    sinks: int = 0


@dataclass
class Mask:
    """`allowed` (B or 1, 1, T, S) says all; where it is None each query sees every key, or if `causal` none after it.

    The commonest masks have no tensor, so that kernels with a causal flag need none. Built once for all layers.
    """

    causal: bool
    allowed: Tensor | None
    distance: Sight | None = None
    """For kernels that take no tensor: what is seen, where that depends on the distance and on `documents` alone."""
    documents: Tensor | None = None
    """(B, T) of packed rows, which see their own document alone."""
    additive: Tensor | None = None
    """`bias`, made by the first layer that asks."""
    blocks: "BlockMask | None" = None
    """What the flex backend makes of it, at its first layer."""

    def bias(self, queries: Tensor, keys: Tensor) -> Tensor | None:
        """What is added to scores (B·Hkv, G·T, S) of queries (B, H, T, C): 0 where allowed, else -inf.

        None where nothing is hidden; (G·T, S) where all rows hide the same. Made by the first layer that asks.
        """
        if self.allowed is None and not self.causal:
            return None
        if self.additive is None or self.additive.dtype != queries.dtype:
            allowed = self.tensor(queries.shape[2], queries.device)
            bias = torch.zeros(allowed.shape, dtype=queries.dtype, device=queries.device)
            bias = bias.masked_fill_(~allowed, float("-inf"))
            rows, group = keys.shape[:2], queries.shape[1] // keys.shape[1]
            if allowed.dim() == 4 and allowed.shape[0] > 1:
                bias = bias.unsqueeze(1).expand(*rows, group, -1, -1).flatten(2, 3).flatten(0, 1)
            else:
                bias = bias.view(allowed.shape[-2:]).repeat(group, 1)
            self.additive = bias
        return self.additive

    def tensor(self, queries: int, device: torch.device) -> Tensor:
        """The mask as a tensor, where it has one or is causal."""
        if self.allowed is not None:
            return self.allowed
        return torch.ones(queries, queries, dtype=torch.bool, device=device).tril()


def build_mask(
    sight: Sight,
    *,
    queries: int,
    keys: int,
    device: torch.device,
    attended: Tensor | None = None,
    documents: Tensor | None = None,
) -> Mask:
    """The mask of `queries` tokens that stand last among `keys`.

    `attended` (B, S): False for padding. `documents` (B, S): a query sees its own document alone. Sinks are the
    first tokens of each row that are no padding, or of each document. A query always sees itself, so that a row of
    padding gives numbers.
    """
    windowed = sight.window is not None and keys > sight.window
    if attended is None and documents is None and not windowed:
        if not sight.causal or queries == 1:
            return Mask(causal=False, allowed=None, distance=Sight(causal=False))
        if queries == keys:
            return Mask(causal=True, allowed=None, distance=Sight())
    query = torch.arange(keys - queries, keys, device=device).unsqueeze(1)  # (T, 1)
    key = torch.arange(keys, device=device)  # (S,)
    allowed = (key <= query if sight.causal else torch.ones_like(key <= query)).unsqueeze(0)  # (1, T, S)
    if windowed and sight.window is not None:
        near = ((query - key).abs() < sight.window).unsqueeze(0)
        allowed = allowed & (near | (key_positions(key, attended, documents) < sight.sinks))
    if attended is not None:
        allowed = allowed & attended.unsqueeze(1)
    if documents is not None:
        allowed = allowed & (documents[:, keys - queries :].unsqueeze(2) == documents.unsqueeze(1))
    return Mask(
        causal=False,
        allowed=(allowed | (key == query)).unsqueeze(1),  # (B or 1, 1, T, S)
        distance=None if attended is not None or (windowed and sight.sinks) else Sight(sight.causal, sight.window),
        documents=documents,
    )


def key_positions(key: Tensor, attended: Tensor | None, documents: Tensor | None) -> Tensor:
    """Columns (S,) -> (S,) or (B, 1, S): where each key stands in its own sequence."""
    if documents is not None:
        return restart_positions(documents).unsqueeze(1)
    return key if attended is None else (attended.long().cumsum(1) - 1).unsqueeze(1)


def restart_positions(documents: Tensor) -> Tensor:
    """(B, T) document numbers -> (B, T) positions, counted anew where the number changes."""
    column = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return column - torch.where(begins, column, 0).cummax(1).values
