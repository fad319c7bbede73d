"""Two batched products with a softmax between."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from llmcore.model.backends.contract import Backend, Scores, merge_heads
from llmcore.model.masks import Mask
from llmcore.model.products import FloatProducts


class Matmul(Backend):
    """The queries that share a key head are one matrix."""

    kind: Literal["matmul"] = "matmul"

    def attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, *, mask: Mask, scores: Scores
    ) -> tuple[Tensor, Tensor | None]:
        rows, heads, tokens, head_width = queries.shape
        groups = rows * keys.shape[1]
        mixed = mix(
            queries.reshape(groups, -1, head_width),  # (B·Hkv, G·T, C)
            keys.reshape(groups, -1, head_width),
            values.reshape(groups, -1, values.shape[-1]),
            bias=mask.bias(queries, keys),
            scores=scores,
        )
        return merge_heads(mixed.view(rows, heads, tokens, values.shape[-1])), None

    def attend_one(self, queries: Tensor, keys: Tensor, values: Tensor, *, mask: Mask, scores: Scores) -> Tensor:
        bias = None
        if mask.allowed is not None:
            bias = mask.bias(queries.unsqueeze(2), keys.view(len(queries), -1, *keys.shape[1:]))
        grouped = queries.reshape(len(keys), -1, queries.shape[-1])  # (B·Hkv, G, C)
        if torch.compiler.is_compiling():
            return mix(grouped, keys, values, bias=bias, scores=scores).view(len(queries), -1)
        with FloatProducts():
            return mix(grouped, keys, values, bias=bias, scores=scores).view(len(queries), -1)


def mix(queries: Tensor, keys: Tensor, values: Tensor, *, bias: Tensor | None, scores: Scores) -> Tensor:
    """(B·Hkv, G·T, C), (B·Hkv, S, C), (B·Hkv, S, Cv), what is added to the scores -> (B·Hkv, G·T, Cv)."""
    across = keys.transpose(1, 2)  # (B·Hkv, C, S)
    if scores.soft_cap is not None:
        similarity = scores.soft_cap * torch.tanh(queries @ across * (scores.scale / scores.soft_cap))
        similarity = similarity if bias is None else similarity + bias
    elif bias is not None:
        similarity = torch.baddbmm(bias, queries, across, alpha=scores.scale)  # (B·Hkv, G·T, S)
    else:
        similarity = torch.bmm(queries * scores.scale, across)
    weights = torch.softmax(similarity, dim=-1)
    weights = F.dropout(weights, scores.dropout) if scores.dropout else weights
    return torch.bmm(weights, values)
