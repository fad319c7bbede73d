"""Two batched products with a softmax between."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from llmcore.model.backends.contract import Backend, Scores, merge_heads
from llmcore.model.masks import Mask


class Matmul(Backend):
    """The queries that share a key head are one matrix."""

    kind: Literal["matmul"] = "matmul"

    def attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, *, mask: Mask, scores: Scores
    ) -> tuple[Tensor, Tensor | None]:
        rows, heads, tokens, head_width = queries.shape
        groups = rows * keys.shape[1]
        grouped = queries.reshape(groups, -1, head_width)  # (B·Hkv, G·T, C)
        across = keys.reshape(groups, -1, head_width).transpose(1, 2)  # (B·Hkv, C, S)
        bias = mask.bias(queries, keys)
        if scores.soft_cap is not None:
            similarity = scores.soft_cap * torch.tanh(grouped @ across * (scores.scale / scores.soft_cap))
            similarity = similarity if bias is None else similarity + bias
        elif bias is not None:
            similarity = torch.baddbmm(bias, grouped, across, alpha=scores.scale)  # (B·Hkv, G·T, S)
        else:
            similarity = (grouped * scores.scale) @ across
        weights = torch.softmax(similarity, dim=-1)
        weights = F.dropout(weights, scores.dropout) if scores.dropout else weights
        mixed = weights @ values.reshape(groups, -1, values.shape[-1])  # (B·Hkv, G·T, Cv)
        return merge_heads(mixed.view(rows, heads, tokens, values.shape[-1])), None
