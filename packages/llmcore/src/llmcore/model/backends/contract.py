"""The contract of attention backends."""

import importlib
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from llmcore.errors import ExtensionError
from llmcore.extensions import Part
from llmcore.model.masks import Mask


class Scores(NamedTuple):
    """How scores become weights."""

    scale: float
    soft_cap: float | None = None
    dropout: float = 0.0


class Needs(NamedTuple):
    """What an attention asks of its backend, of which not every backend has all."""

    soft_cap: bool = False
    dropout: bool = False
    sinks: bool = False
    narrow_values: bool = False
    """Whether values have another width than keys."""


class Prefix(NamedTuple):
    """What several rows see before their own keys: P prompts of one layer, and who continues them."""

    keys: Tensor
    """(Hkv·P, S, C)."""
    values: Tensor
    hidden: Tensor | None
    """(Hkv·P, 1, S) -inf where a prompt has padding, else 0."""
    sitting: Tensor | None
    """(P·G,) which row each of a prompt's G seats is for; none: the rows in their order."""
    seats: Tensor | None
    """(B,) the seat of each row; none with the former."""


class Backend(Part):
    """The contract: queries (B, H, T, C), keys (B, Hkv, S, C), values (B, Hkv, S, Cv) -> (B, T, H·Cv).

    With it the weights (B, H, T, S), where the backend has them.
    """

    def attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, *, mask: Mask, scores: Scores
    ) -> tuple[Tensor, Tensor | None]:
        raise NotImplementedError(f"{type(self).__name__} must define attend")

    def attend_one(self, queries: Tensor, keys: Tensor, values: Tensor, *, mask: Mask, scores: Scores) -> Tensor:
        """One query of each row: (B, H, C), keys (B·Hkv, S, C), values (B·Hkv, S, Cv) -> (B, H·Cv)."""
        keys, values = (x.view(len(queries), -1, *x.shape[1:]) for x in (keys, values))  # (B, Hkv, S, ·)
        return self.attend(queries.unsqueeze(2), keys, values, mask=mask, scores=scores)[0].squeeze(1)

    def shares(self, device: torch.device) -> bool:  # noqa: ARG002 - the default is for all devices
        """Whether it has `attend_shared`, and that is the faster way on this device."""
        return False

    def attend_shared(self, queries: Tensor, keys: Tensor, values: Tensor, *, prefix: Prefix, scores: Scores) -> Tensor:
        """The same of rows that share prompts: (B, H, C), their own keys (Hkv·B, T, C) and values -> (B, H·Cv)."""
        raise NotImplementedError(f"{type(self).__name__} must define attend_shared")

    def check(self, needs: Needs) -> None:
        """Raise a ValueError where it lacks one of the needs; asked when settings are read."""

    def prepare(self) -> None:
        """Raise an ExtensionError where a package that it needs is not installed; asked when a model is built."""


def lacks(kind: str, what: str, *, instead: str = "auto, matmul or manual") -> ValueError:
    """The sentence of a backend that lacks something."""
    return ValueError(f"the {kind} backend has no {what}: choose backend {instead}")


def outside_module(module: str, *, package: str, kind: str) -> ModuleType:
    """A module of a package that people install themselves: it is never a dependency of ours."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ExtensionError(
            f"attention backend {kind!r} needs {package}, which cannot be imported ({error})",
            hint=f"install {package}, or set model.attention.backend=auto: the weights are the same",
        ) from error


def merge_heads(mixed: Tensor) -> Tensor:
    """(B, H, T, C) -> (B, T, H·C)."""
    return mixed.transpose(1, 2).flatten(2)


def spread_heads(shared: Tensor, heads: int) -> Tensor:
    """(B, Hkv, S, C) -> (B, H, S, C): each key head once for every query head that it serves."""
    return shared if shared.shape[1] == heads else shared.repeat_interleave(heads // shared.shape[1], dim=1)
