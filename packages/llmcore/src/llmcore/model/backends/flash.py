"""FlashAttention 2 (Dao 2023), from the package flash-attn where a person has installed it."""

from typing import Literal

import torch
from torch import Tensor

from llmcore.errors import ConfigError
from llmcore.model.backends.auto import FUSED
from llmcore.model.backends.contract import Backend, Needs, Scores, lacks, outside_module
from llmcore.model.masks import Mask, Sight


class Flash(Backend):
    """Its kernels know distances and documents; rows with padding on the left go to PyTorch's."""

    kind: Literal["flash"] = "flash"

    def check(self, needs: Needs) -> None:
        if needs.sinks:
            raise lacks(self.kind, "sinks", instead="auto, sdpa, flex, matmul or manual")
        if needs.soft_cap:
            raise lacks(self.kind, "soft_cap", instead="auto, flex, matmul or manual")
        if needs.narrow_values:
            raise lacks(self.kind, "values narrower than keys", instead="auto, sdpa, flex, matmul or manual")

    def prepare(self) -> None:
        outside_module("flash_attn", package="flash-attn", kind=self.kind)

    def attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, *, mask: Mask, scores: Scores
    ) -> tuple[Tensor, Tensor | None]:
        if queries.dtype not in (torch.float16, torch.bfloat16) or queries.device.type == "cpu":
            raise ConfigError(
                f"FlashAttention computes bfloat16 and float16 on a GPU, not {queries.dtype} on {queries.device.type}",
                hint="set train.dtype=bf16 on a GPU, or model.attention.backend=auto",
            )
        if mask.distance is None:
            return FUSED.attend(queries, keys, values, mask=mask, scores=scores)
        turned = [x.transpose(1, 2) for x in (queries, keys, values)]  # (B, T, H, C)
        if mask.documents is None:
            return flash(turned, distance=mask.distance, scores=scores).flatten(2), None
        return flash_documents(turned, mask.documents, distance=mask.distance, scores=scores), None


def flash(turned: list[Tensor], *, distance: Sight, scores: Scores) -> Tensor:
    """Queries (B, T, H, C), keys and values (B, S, Hkv, C) -> (B, T, H, C); the last query stands at the last key."""
    kernels = outside_module("flash_attn", package="flash-attn", kind="flash")
    mixed: Tensor = kernels.flash_attn_func(
        *turned,
        dropout_p=scores.dropout,
        softmax_scale=scores.scale,
        causal=distance.causal,
        window_size=reach(distance),
    )
    return mixed


def flash_documents(turned: list[Tensor], documents: Tensor, *, distance: Sight, scores: Scores) -> Tensor:
    """The same of packed rows (B, T), as one row of all documents one after another -> (B, T, H·C)."""
    kernels = outside_module("flash_attn", package="flash-attn", kind="flash")
    bounds = document_bounds(documents)
    longest = int(bounds.diff().max())
    mixed: Tensor = kernels.flash_attn_varlen_func(
        *(x.flatten(0, 1) for x in turned),  # (B·T, H, C)
        cu_seqlens_q=bounds,
        cu_seqlens_k=bounds,
        max_seqlen_q=longest,
        max_seqlen_k=longest,
        dropout_p=scores.dropout,
        softmax_scale=scores.scale,
        causal=distance.causal,
        window_size=reach(distance),
    )
    return mixed.reshape(*documents.shape, -1)


def document_bounds(documents: Tensor) -> Tensor:
    """(B, T) document numbers -> (documents + 1,) int32: where each begins in the flattened rows, and the end."""
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    starts = begins.flatten().nonzero().squeeze(1)
    return torch.cat([starts, starts.new_tensor([documents.numel()])]).int()


def reach(distance: Sight) -> tuple[int, int]:
    """How many keys before and after itself a query sees; -1: all."""
    if distance.window is None:
        return -1, -1
    return distance.window - 1, 0 if distance.causal else distance.window - 1
