"""Attention: grouped-query heads (multi-head and multi-query are its ends) and the backends that compute it."""

import math
from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from llmcore.extensions import Part, part
from llmcore.model.cache import Cache
from llmcore.model.linear import Linear, widen
from llmcore.model.masks import Mask, Sight
from llmcore.model.norms import RMSNorm
from llmcore.model.positions import Rotation

# On a CPU, matrix products with a softmax between beat the fused kernel up to some number of keys: it is written
# for memory, which B·H·T·S scores do not strain while they are short. Milliseconds forward + backward of 2048
# tokens, 4 heads (2 for keys) of 64, 2 threads of a Zen 5, best of 7 in one process, fused / products:
#     T                               64          128          256          512         1024
#     bfloat16                 9.7 / 1.8   11.6 / 2.4   12.3 / 4.1  21.0 / 13.7  30.3 / 28.2
#     float32, "medium"       16.1 / 2.7   18.0 / 4.0   13.5 / 6.9  23.6 / 25.5  19.6 / 43.5
#     float32, "highest"       4.6 / 3.6    7.2 / 5.9  11.6 / 12.0  22.5 / 26.9  31.3 / 72.1
# At 1024 the memory of the scores is not worth 7 %. Committed, never tuned at run time, so that a resumed run
# computes what the first one did.
MATMUL_UP_TO_KEYS = {torch.bfloat16: 512, torch.float32: 256}


class Around(NamedTuple):
    """What all layers of one forward share."""

    mask: Mask
    rotation: Rotation | None = None
    cache: Cache | None = None
    weights: list[Tensor] | None = None
    """Where a list, each layer adds its attention weights (B, H, T, S); the manual backend alone has them."""


class Scores(NamedTuple):
    """How scores become weights."""

    scale: float
    soft_cap: float | None = None
    dropout: float = 0.0


class Backend(Part):
    """The contract: queries (B, H, T, C), keys and values (B, Hkv, S, C) -> (B, T, H·C), and the weights if kept."""

    def attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, *, mask: Mask, scores: Scores
    ) -> tuple[Tensor, Tensor | None]:
        raise NotImplementedError(f"{type(self).__name__} must define attend")


class Manual(Backend):
    """From first principles, and the only one that returns its weights: to print and check by hand."""

    kind: Literal["manual"] = "manual"

    def attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, *, mask: Mask, scores: Scores
    ) -> tuple[Tensor, Tensor | None]:
        group = queries.shape[1] // keys.shape[1]
        keys = keys.repeat_interleave(group, dim=1)  # (B, H, S, C)
        values = values.repeat_interleave(group, dim=1)
        similarity = widen(queries) @ widen(keys).transpose(-2, -1) * scores.scale  # (B, H, T, S)
        if scores.soft_cap is not None:
            similarity = scores.soft_cap * torch.tanh(similarity / scores.soft_cap)
        if mask.causal or mask.allowed is not None:
            allowed = mask.tensor(queries.shape[2], queries.device)
            similarity = similarity.masked_fill(~allowed, float("-inf"))
        weights = torch.softmax(similarity, dim=-1)
        mixed = F.dropout(weights, scores.dropout) @ widen(values)  # (B, H, T, C)
        return merge_heads(mixed.to(queries.dtype)), weights


class SDPA(Backend):
    """PyTorch's fused kernels."""

    kind: Literal["sdpa"] = "sdpa"

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


class Matmul(Backend):
    """Two batched products and a softmax; the queries that share a key head are one matrix."""

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
        mixed = weights @ values.reshape(groups, -1, head_width)
        return merge_heads(mixed.view(rows, heads, tokens, head_width)), None


class Auto(Backend):
    """Whichever is faster, by constants: `MATMUL_UP_TO_KEYS` on a CPU, the fused kernels elsewhere."""

    kind: Literal["auto"] = "auto"

    def attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, *, mask: Mask, scores: Scores
    ) -> tuple[Tensor, Tensor | None]:
        limit = MATMUL_UP_TO_KEYS.get(queries.dtype, 0) if queries.device.type == "cpu" else 0
        small = keys.shape[2] <= limit or (queries.shape[2] == 1 and queries.device.type == "cpu")
        backend = Matmul() if small or scores.soft_cap is not None else SDPA()
        return backend.attend(queries, keys, values, mask=mask, scores=scores)


AnyBackend = Annotated[Backend, part("llmcore.attention_backend", auto=Auto, sdpa=SDPA, matmul=Matmul, manual=Manual)]


class Attention(Part):
    """The contract: `build` gives a module that maps (B, T, D) and an `Around` -> (B, T, D)."""

    def build(self, width: int, layer: int) -> nn.Module:
        raise NotImplementedError(f"{type(self).__name__} must define build")

    def check(self, width: int) -> None:
        """Raise a ValueError where the model's width does not suit."""

    def head_size(self, width: int) -> int:
        """C, the width that positions turn."""
        raise NotImplementedError(f"{type(self).__name__} must define head_size")

    def cache_shape(self, width: int) -> tuple[int, int]:
        """(heads, width) of what the cache keeps of a token, twice: as key and as value."""
        raise NotImplementedError(f"{type(self).__name__} must define cache_shape")

    def sight(self) -> Sight:
        """What a query may see."""
        return Sight()


class GroupedQuery(Attention):
    """Several query heads share a key head (Ainslie et al. 2023); kv_heads = heads is multi-head, 1 multi-query."""

    kind: Literal["gqa"] = "gqa"
    heads: PositiveInt = 4
    """Query heads."""
    kv_heads: PositiveInt = 2
    """Key and value heads; each serves heads / kv_heads query heads."""
    head_width: PositiveInt | None = None
    """Width of a head; none: width / heads."""
    qk_norm: Literal["off", "head", "width"] = "off"
    """RMSNorm of queries and keys before they turn: of each head (Qwen3) or over all of them (OLMo 2)."""
    qk_norm_eps: PositiveFloat = 1e-5
    """Added to the mean square in that norm; exported models need the eps of their other norms here."""
    qkv_bias: bool = False
    """Whether queries, keys and values have biases (Qwen2)."""
    out_bias: bool = False
    """Whether the output projection has a bias."""
    causal: bool = True
    """Whether a token sees only itself and earlier ones; false: an encoder."""
    window: PositiveInt | None = None
    """How many tokens a query sees, itself included; none: all."""
    sinks: int = Field(default=0, ge=0)
    """First tokens that stay visible beyond the window (Xiao et al. 2023)."""
    soft_cap: PositiveFloat | None = None
    """Scores s become cap·tanh(s / cap) (Gemma 2); none: as they are."""
    scale: PositiveFloat | None = None
    """What scores are multiplied with; none: 1 / √(head width)."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of attention weights dropped in training."""
    backend: AnyBackend = Auto()
    """What computes it."""

    @model_validator(mode="after")
    def consistent(self) -> "GroupedQuery":
        if self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        if self.sinks and self.window is None:
            raise ValueError("sinks are the tokens visible beyond a window: set window too, or leave sinks at 0")
        if self.soft_cap is not None and isinstance(self.backend, SDPA):
            raise ValueError("the sdpa backend has no soft_cap: choose backend auto, matmul or manual")
        return self

    def check(self, width: int) -> None:
        if self.head_width is None and width % self.heads:
            raise ValueError(f"width ({width}) must be a multiple of attention.heads ({self.heads})")

    def head_size(self, width: int) -> int:
        return self.head_width or width // self.heads

    def cache_shape(self, width: int) -> tuple[int, int]:
        return self.kv_heads, self.head_size(width)

    def sight(self) -> Sight:
        return Sight(causal=self.causal, window=self.window, sinks=self.sinks)

    def build(self, width: int, layer: int) -> nn.Module:
        return GroupedQueryLayer(self, width, layer)


AnyAttention = Annotated[Attention, part("llmcore.attention", gqa=GroupedQuery)]


class GroupedQueryLayer(nn.Module):
    """(B, T, D) -> (B, T, D); queries, keys and values come from one matrix, in this order."""

    def __init__(self, config: GroupedQuery, width: int, layer: int) -> None:
        super().__init__()
        self.config = config
        self.layer = layer
        self.head_width = config.head_size(width)
        heads = config.heads + 2 * config.kv_heads
        self.qkv = Linear(width, heads * self.head_width, bias=config.qkv_bias)
        self.out = Linear(config.heads * self.head_width, width, bias=config.out_bias, residual=True)
        self.scale = config.scale or 1 / math.sqrt(self.head_width)
        if config.qk_norm != "off":
            share = (1, 1) if config.qk_norm == "head" else (config.heads, config.kv_heads)
            self.query_norm = RMSNorm(eps=config.qk_norm_eps).build(share[0] * self.head_width)
            self.key_norm = RMSNorm(eps=config.qk_norm_eps).build(share[1] * self.head_width)

    def forward(self, x: Tensor, around: Around) -> Tensor:
        heads, kv_heads = self.config.heads, self.config.kv_heads
        fused = self.qkv(x).view(*x.shape[:2], -1, self.head_width)  # (B, T, H + 2·Hkv, C)
        turning, values = torch.split(fused, [heads + kv_heads, kv_heads], dim=2)
        if self.config.qk_norm != "off":
            turning = self.normed(turning)
        if around.rotation is not None:
            turning = around.rotation.apply(turning)
        queries, keys = torch.split(turning.transpose(1, 2), [heads, kv_heads], dim=1)  # (B, H, T, C)
        values = values.transpose(1, 2)
        if around.cache is not None:
            keys, values = around.cache.append(self.layer, keys, values)
        dropout = self.config.dropout if self.training else 0.0
        scores = Scores(self.scale, self.config.soft_cap, dropout)
        mixed, weights = self.config.backend.attend(queries, keys, values, mask=around.mask, scores=scores)
        if around.weights is not None and weights is not None:
            around.weights.append(weights)
        projected: Tensor = self.out(mixed)
        return projected

    def normed(self, turning: Tensor) -> Tensor:
        """RMSNorm of the queries and of the keys in (B, T, H + Hkv, C)."""
        queries, keys = torch.split(turning, [self.config.heads, self.config.kv_heads], dim=2)
        if self.config.qk_norm == "width":
            queries = self.query_norm(queries.flatten(2)).view(queries.shape)
            keys = self.key_norm(keys.flatten(2)).view(keys.shape)
            return torch.cat([queries, keys], dim=2)
        return torch.cat([self.query_norm(queries), self.key_norm(keys)], dim=2)


def merge_heads(mixed: Tensor) -> Tensor:
    """(B, H, T, C) -> (B, T, H·C)."""
    return mixed.transpose(1, 2).flatten(2)
