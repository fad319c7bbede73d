"""PyTorch's fused kernels."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from llmcore.model.backends.contract import Backend, Needs, Scores, lacks, merge_heads
from llmcore.model.masks import Mask


class SDPA(Backend):
    """`scaled_dot_product_attention`."""

    kind: Literal["sdpa"] = "sdpa"

    def check(self, needs: Needs) -> None:
        if needs.soft_cap:
            raise lacks(self.kind, "soft_cap")

    def attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, *, mask: Mask, scores: Scores
    ) -> tuple[Tensor, Tensor | None]:
        assert scores.soft_cap is None, "the fused kernels have no soft cap"
        mixed = F.scaled_dot_product_attention(
            queries,
            keys,
            values,
            attn_mask=mask.allowed,
            is_causal=mask.causal,
            dropout_p=scores.dropout,
            scale=scores.scale,
            enable_gqa=queries.shape[1] != keys.shape[1],
        )
        return merge_heads(mixed), None
