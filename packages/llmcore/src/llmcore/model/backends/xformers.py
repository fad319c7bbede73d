"""Memory-efficient attention (Rabe and Staats 2021), from the package xformers where a person has installed it."""

from typing import Literal

from torch import Tensor

from llmcore.model.backends.contract import Backend, Needs, Scores, lacks, outside_module, spread_heads
from llmcore.model.masks import Mask

ALIGNED = 8
"""Its kernels want each row of a bias to begin at a multiple of this many numbers."""


class XFormers(Backend):
    """Its kernels take a causal flag or any bias."""

    kind: Literal["xformers"] = "xformers"

    def check(self, needs: Needs) -> None:
        if needs.soft_cap:
            raise lacks(self.kind, "soft_cap", instead="auto, flex, matmul or manual")
        if needs.narrow_values:
            raise lacks(self.kind, "values narrower than keys", instead="auto, sdpa, flex, matmul or manual")

    def prepare(self) -> None:
        outside_module("xformers.ops", package="xformers", kind=self.kind)

    def attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, *, mask: Mask, scores: Scores
    ) -> tuple[Tensor, Tensor | None]:
        operations = outside_module("xformers.ops", package="xformers", kind=self.kind)
        heads = queries.shape[1]
        bias = operations.LowerTriangularMask() if mask.causal else aligned_bias(mask, queries, keys)
        mixed: Tensor = operations.memory_efficient_attention(
            *(spread_heads(x, heads).transpose(1, 2) for x in (queries, keys, values)),  # (B, T, H, C)
            attn_bias=bias,
            p=scores.dropout,
            scale=scores.scale,
        )
        return mixed.flatten(2), None


def aligned_bias(mask: Mask, queries: Tensor, keys: Tensor) -> Tensor | None:
    """(B, H, T, S) in the dtype of the queries, 0 where allowed, else -inf; None where nothing is hidden."""
    if mask.allowed is None:
        return None
    rows, heads, tokens, _ = queries.shape
    length = keys.shape[2]
    padded = queries.new_zeros(rows, 1, tokens, -(-length // ALIGNED) * ALIGNED)
    padded[..., :length].masked_fill_(~mask.allowed, float("-inf"))
    return padded.expand(-1, heads, -1, -1)[..., :length]
