"""Attention: its contract, and grouped-query heads (multi-head and multi-query are its ends)."""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from llmcore.extensions import Part
from llmcore.model.backends.auto import Auto
from llmcore.model.backends.contract import Needs, Scores
from llmcore.model.backends.kinds import AnyBackend
from llmcore.model.cache import Cache, CacheShape, Column, WholeColumn
from llmcore.model.linear import Linear
from llmcore.model.masks import Mask, Sight
from llmcore.model.norms import RMSNorm
from llmcore.model.positions import Rotation
from llmcore.model.sharing import SharedColumn


class Around(NamedTuple):
    """What all layers of one forward share."""

    mask: Mask
    rotation: Rotation | None = None
    cache: Cache | None = None
    weights: list[Tensor] | None = None
    """Where a list, each layer adds its attention weights (B, H, T, S); the manual backend alone has them."""


class Here(NamedTuple):
    """What all layers share where one more token of each row is read."""

    column: Column | WholeColumn | SharedColumn
    rotation: Rotation | None
    """Of (B, H, C)."""


AttentionStep = Callable[[Tensor, Tensor | None, Here], Tensor]
"""What `prepare` gives: x (B, D), onto (B, D), here -> (B, D), added to `onto` where given, which is overwritten."""


class Attention(Part):
    """The contract: `build` gives a module that maps (B, T, D) and an `Around` -> (B, T, D).

    It may have a `prepare(dtype)`, which gives an `AttentionStep`: the same, quicker, for one token of each row, on
    weights of its own (`model/step.py`).
    """

    def shares(self, device: torch.device) -> bool:  # noqa: ARG002 - the default is for all devices
        """Whether its `AttentionStep` can read prompts that rows share, and is faster so on this device."""
        return False

    def build(self, width: int, layer: int) -> nn.Module:
        raise NotImplementedError(f"{type(self).__name__} must define build")

    def check(self, width: int) -> None:
        """Raise a ValueError where the model's width does not suit."""

    def head_size(self, width: int) -> int:
        """C, the width that positions turn."""
        raise NotImplementedError(f"{type(self).__name__} must define head_size")

    def cache_shape(self, width: int) -> CacheShape:
        """What the cache keeps of a token, in each layer."""
        raise NotImplementedError(f"{type(self).__name__} must define cache_shape")

    def products(self, width: int) -> int:
        """Multiplications of a query token with one token that it sees: scores and mixing, of all heads."""
        raise NotImplementedError(f"{type(self).__name__} must define products")

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
        check_sinks(self.sight())
        self.backend.check(Needs(self.soft_cap is not None, dropout=self.dropout > 0, sinks=self.sinks > 0))
        return self

    def check(self, width: int) -> None:
        if self.head_width is None and width % self.heads:
            raise ValueError(f"width ({width}) must be a multiple of attention.heads ({self.heads})")

    def head_size(self, width: int) -> int:
        return self.head_width or width // self.heads

    def cache_shape(self, width: int) -> CacheShape:
        return CacheShape(self.kv_heads, self.head_size(width), self.head_size(width))

    def products(self, width: int) -> int:
        return 2 * self.heads * self.head_size(width)

    def shares(self, device: torch.device) -> bool:
        return self.backend.shares(device)

    def sight(self) -> Sight:
        return Sight(causal=self.causal, window=self.window, sinks=self.sinks)

    def build(self, width: int, layer: int) -> nn.Module:
        self.backend.prepare()
        return GroupedQueryLayer(self, width, layer)


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

    def prepare(self, dtype: torch.dtype) -> AttentionStep:
        heads, kv_heads, head_width, layer = self.config.heads, self.config.kv_heads, self.head_width, self.layer
        backend, scores = self.config.backend, Scores(self.scale, self.config.soft_cap)
        qkv, out = self.qkv.prepare(dtype), self.out.prepare(dtype)
        norm = self.normed if self.config.qk_norm != "off" else None

        def step(x: Tensor, onto: Tensor | None, here: Here) -> Tensor:
            fused = qkv(x).view(len(x), -1, head_width)  # (B, H + 2·Hkv, C)
            turning = fused.narrow(1, 0, heads + kv_heads)
            turning = turning if norm is None else norm(turning)
            turning = turning if here.rotation is None else here.rotation.apply(turning)
            values = fused.narrow(1, heads + kv_heads, kv_heads)
            queries, keys = turning.narrow(1, 0, heads), turning.narrow(1, heads, kv_heads)
            mixed = here.column.attend(layer, queries, keys, values, backend=backend, scores=scores)
            return out(mixed.to(dtype), onto)

        return step

    def normed(self, turning: Tensor) -> Tensor:
        """RMSNorm of the queries and of the keys in (…, H + Hkv, C)."""
        queries, keys = torch.split(turning, [self.config.heads, self.config.kv_heads], dim=-2)
        if self.config.qk_norm == "width":
            queries = self.query_norm(queries.flatten(-2)).view(queries.shape)
            keys = self.key_norm(keys.flatten(-2)).view(keys.shape)
            return torch.cat([queries, keys], dim=-2)
        return torch.cat([self.query_norm(queries), self.key_norm(keys)], dim=-2)


def check_sinks(sight: Sight) -> None:
    """Raise a ValueError where sinks have nothing to stay visible beyond."""
    if sight.sinks and sight.window is None:
        raise ValueError("sinks are the tokens visible beyond a window: set window too, or leave sinks at 0")
