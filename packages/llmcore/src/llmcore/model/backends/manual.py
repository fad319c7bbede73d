"""Attention from first principles, to be read and checked by hand.

Three tokens, one head of width 2, scale 1, causal. With ln 3 = 1.0986 the exponentials are whole numbers:

    token   query       key          value
      0     (1, 0)      (0, 0)       (4, 0)
      1     (0, 1)      (0, ln 3)    (0, 8)
      2     (1, 1)      (ln 2, 0)    (12, 4)

Token 2 looks at all three. Its scores are the products of its query with each key: 0, ln 3 and ln 2. Their
exponentials, 1, 3 and 2, add up to 6, so its weights are 1/6, 3/6 and 2/6, and it takes away
1/6·(4, 0) + 3/6·(0, 8) + 2/6·(12, 4) = (4 2/3, 5 1/3). Token 1 sees tokens 0 and 1: scores 0 and ln 3, weights 1/4 and
3/4, and (1, 6). Token 0 sees itself alone: weight 1, and (4, 0). `test_three_tokens_by_hand` is this calculation.

Several heads do the same beside one another, each on its own slice of the width; the results are put side by side.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from llmcore.model.backends.contract import Backend, Scores, merge_heads, spread_heads
from llmcore.model.linear import widen
from llmcore.model.masks import Mask


class Manual(Backend):
    """From first principles, and the only one that returns its weights."""

    kind: Literal["manual"] = "manual"

    def attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, *, mask: Mask, scores: Scores
    ) -> tuple[Tensor, Tensor | None]:
        keys = spread_heads(keys, queries.shape[1])  # (B, H, S, C)
        values = spread_heads(values, queries.shape[1])
        similarity = widen(queries) @ widen(keys).transpose(-2, -1) * scores.scale  # (B, H, T, S)
        if scores.soft_cap is not None:
            similarity = scores.soft_cap * torch.tanh(similarity / scores.soft_cap)
        if mask.causal or mask.allowed is not None:
            allowed = mask.tensor(queries.shape[2], queries.device)
            similarity = similarity.masked_fill(~allowed, float("-inf"))
        weights = torch.softmax(similarity, dim=-1)
        mixed = F.dropout(weights, scores.dropout) @ widen(values)  # (B, H, T, C)
        return merge_heads(mixed.to(queries.dtype)), weights
