"""Two batched products with a softmax between."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from llmcore.model.backends.contract import Backend, Prefix, Scores, merge_heads
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

    def shares(self, device: torch.device) -> bool:
        return device.type == "cpu"

    def attend_shared(self, queries: Tensor, keys: Tensor, values: Tensor, *, prefix: Prefix, scores: Scores) -> Tensor:
        rows, kv_heads = len(queries), len(keys) // len(queries)
        grouped = queries.view(rows, kv_heads, -1, queries.shape[-1]).transpose(0, 1).contiguous()  # (Hkv, B, R, C)
        with FloatProducts():
            mixed = mix_shared(grouped, keys, values, prefix=prefix, scores=scores)
        return mixed.transpose(0, 1).reshape(rows, -1)


def mix(queries: Tensor, keys: Tensor, values: Tensor, *, bias: Tensor | None, scores: Scores) -> Tensor:
    """(B·Hkv, G·T, C), (B·Hkv, S, C), (B·Hkv, S, Cv), what is added to the scores -> (B·Hkv, G·T, Cv)."""
    weights = torch.softmax(compare(queries, keys, bias=bias, scores=scores), dim=-1)
    weights = F.dropout(weights, scores.dropout) if scores.dropout else weights
    return torch.bmm(weights, values)


def compare(queries: Tensor, keys: Tensor, *, bias: Tensor | None, scores: Scores) -> Tensor:
    """(N, M, C), (N, S, C), what is added -> (N, M, S): the scores before the softmax."""
    if queries.shape[1] > 1 and bias is not None and scores.soft_cap is None:
        return torch.baddbmm(bias, queries, keys.transpose(1, 2), alpha=scores.scale)
    scaled = queries * scores.scale
    if queries.shape[1] > 1:
        similarity = torch.bmm(scaled, keys.transpose(1, 2))
    else:  # one query multiplies from the right: the keys are then read along their rows, in two thirds of the time
        similarity = torch.bmm(keys, scaled.transpose(1, 2)).transpose(1, 2)
    if scores.soft_cap is not None:
        similarity = scores.soft_cap * torch.tanh(similarity / scores.soft_cap)
    return similarity if bias is None else similarity + bias


def mix_shared(queries: Tensor, keys: Tensor, values: Tensor, *, prefix: Prefix, scores: Scores) -> Tensor:
    """(Hkv, B, R, C), own keys (Hkv·B, T, C), own values (Hkv·B, T, Cv), prompts -> (Hkv, B, R, Cv).

    One product for all the rows of a prompt, one for each row's own keys, and a softmax over both.
    """
    heads, rows, shared, width = queries.shape
    prompts, length, value_width = prefix.values.shape
    seated = queries if prefix.sitting is None else queries[:, prefix.sitting]  # (Hkv, P·G, R, C)
    before = compare(seated.view(prompts, -1, width), prefix.keys, bias=prefix.hidden, scores=scores)
    before = before.view(heads, -1, shared, length)  # (Hkv, P·G, R, S)
    before = before if prefix.seats is None else before[:, prefix.seats]
    own = compare(queries.view(heads * rows, shared, width), keys, bias=None, scores=scores)
    weights = torch.softmax(torch.cat([before, own.view(heads, rows, shared, -1)], -1), dim=-1)  # (Hkv, B, R, S + T)
    seated = weights if prefix.sitting is None else weights[:, prefix.sitting]
    mixed = torch.bmm(seated.view(prompts, -1, weights.shape[-1]).narrow(2, 0, length), prefix.values)
    mixed = mixed.view(heads, -1, shared, value_width)
    mixed = mixed if prefix.seats is None else mixed[:, prefix.seats]
    weights = weights.view(heads * rows, shared, -1).narrow(2, length, keys.shape[1])
    return mixed.view(heads * rows, shared, -1).baddbmm_(weights, values).view(heads, rows, shared, -1)
