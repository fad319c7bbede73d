"""Which keys each query may see: causal, window and sinks, padding, documents of a packed row."""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Mask:
    """`allowed` (B or 1, 1, T, S) says all; where it is None each query sees every key, or if `causal` none after it.

    The commonest masks have no tensor, so that kernels with a causal flag need none. Built once for all layers.
    """

    causal: bool
    allowed: Tensor | None
    additive: dict[tuple[int, torch.dtype], Tensor] = field(default_factory=dict)

    def bias(self, queries: int, dtype: torch.dtype, device: torch.device) -> Tensor | None:
        """What is added to the scores: 0 where allowed, else -inf; (T, T) or (B or 1, 1, T, S)."""
        if self.allowed is None and not self.causal:
            return None
        key = (queries, dtype)
        if key not in self.additive:
            allowed = self.tensor(queries, device)
            bias = torch.zeros(allowed.shape, dtype=dtype, device=device)
            self.additive[key] = bias.masked_fill_(~allowed, float("-inf"))
        return self.additive[key]

    def tensor(self, queries: int, device: torch.device) -> Tensor:
        """The mask as a tensor, where it has one or is causal."""
        if self.allowed is not None:
            return self.allowed
        return torch.ones(queries, queries, dtype=torch.bool, device=device).tril()


@dataclass(frozen=True)
class Sight:
    """What the attention's own settings let a query see."""

    causal: bool = True
    window: int | None = None
    sinks: int = 0


def build_mask(
    sight: Sight,
    *,
    queries: int,
    keys: int,
    device: torch.device,
    attended: Tensor | None = None,
    documents: Tensor | None = None,
    key_positions: Tensor | None = None,
) -> Mask:
    """The mask of `queries` tokens that stand last among `keys`.

    `attended` (B, S): False for padding. `documents` (B, S): a query sees its own document alone. `key_positions`
    (B, S): which keys are sinks, where rows do not begin at column 0. A query always sees itself, so that a row of
    padding gives numbers.
    """
    windowed = sight.window is not None and keys > sight.window
    if attended is None and documents is None and not windowed:
        if not sight.causal or queries == 1:
            return Mask(causal=False, allowed=None)
        if queries == keys:
            return Mask(causal=True, allowed=None)
    query = torch.arange(keys - queries, keys, device=device).unsqueeze(1)  # (T, 1)
    key = torch.arange(keys, device=device)  # (S,)
    allowed = (key <= query if sight.causal else torch.ones_like(key <= query)).unsqueeze(0)  # (1, T, S)
    if windowed and sight.window is not None:
        near = ((query - key).abs() < sight.window).unsqueeze(0)
        begins = (key if key_positions is None else key_positions.unsqueeze(1)) < sight.sinks
        allowed = allowed & (near | begins)
    if attended is not None:
        allowed = allowed & attended.unsqueeze(1)
    if documents is not None:
        allowed = allowed & (documents[:, keys - queries :].unsqueeze(2) == documents.unsqueeze(1))
    return Mask(causal=False, allowed=(allowed | (key == query)).unsqueeze(1))  # (B or 1, 1, T, S)
