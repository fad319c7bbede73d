"""PyTorch's FlexAttention: one fused kernel for any mask and soft cap, compiled at its first use.

It is imported at its first use too: that takes two seconds, because it brings PyTorch's compiler.
"""

import warnings
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from llmcore.errors import ConfigError
from llmcore.model.backends.contract import Backend, Needs, Scores, lacks, merge_heads
from llmcore.model.masks import Mask

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


class Flex(Backend):
    """On a GPU fused, with a backward; on a CPU unfused and forward only, to check a result."""

    kind: Literal["flex"] = "flex"

    def check(self, needs: Needs) -> None:
        if needs.dropout:
            raise lacks(self.kind, "dropout", instead="auto, sdpa, matmul or manual")

    def attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, *, mask: Mask, scores: Scores
    ) -> tuple[Tensor, Tensor | None]:
        if queries.device.type == "cpu" and any(x.requires_grad for x in (queries, keys, values)):
            raise ConfigError(
                "the flex attention backend has no backward on a CPU",
                hint="train with model.attention.backend=auto: the weights are the same",
            )
        if mask.blocks is None:
            mask.blocks = block_mask(mask, queries, keys)
        attend = fused() if queries.is_cuda else unfused
        mixed: Tensor = attend(
            queries,
            keys,
            values,
            score_mod=None if scores.soft_cap is None else capped(scores.soft_cap),
            block_mask=mask.blocks,
            scale=scores.scale,
            enable_gqa=queries.shape[1] != keys.shape[1],
        )
        return merge_heads(mixed), None


@cache
def fused() -> Callable[..., Any]:
    """The kernel, compiled once in a process; lengths that vary share one compilation."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


def unfused(queries: Tensor, keys: Tensor, values: Tensor, **settings: Any) -> Any:
    """The same without a kernel; PyTorch's advice to compile it is known."""
    from torch.nn.attention.flex_attention import flex_attention

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
        return flex_attention(queries, keys, values, **settings)


def block_mask(mask: Mask, queries: Tensor, keys: Tensor) -> "BlockMask | None":
    """Which tiles of the scores have anything to see; None where nothing is hidden."""
    if mask.allowed is None and not mask.causal:
        return None
    from torch.nn.attention.flex_attention import create_block_mask

    allowed = None if mask.allowed is None else mask.allowed.expand(len(queries), -1, -1, -1)

    def sees(row: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return key <= query if allowed is None else allowed[row, 0, query, key]

    rows = len(queries) if mask.allowed is not None and len(mask.allowed) > 1 else None
    return create_block_mask(sees, rows, None, queries.shape[2], keys.shape[2], device=str(queries.device))


def capped(cap: float) -> Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]:
    """cap·tanh(score / cap)."""

    def cap_score(score: Tensor, _row: Tensor, _head: Tensor, _query: Tensor, _key: Tensor) -> Tensor:
        return cap * torch.tanh(score / cap)

    return cap_score
