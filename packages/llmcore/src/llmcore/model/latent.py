"""Multi-head latent attention (DeepSeek-V2, 2024): keys and values of all heads are made from one small vector."""
# ruff: noqa: ARG002 - the contract gives the model's width, which nothing here depends on

import math
from typing import Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from llmcore.model.attention import Around, Attention, AttentionStep, Here, check_sinks
from llmcore.model.backends.auto import Auto
from llmcore.model.backends.contract import Needs, Scores
from llmcore.model.backends.kinds import AnyBackend
from llmcore.model.cache import CacheShape
from llmcore.model.linear import Linear
from llmcore.model.masks import Sight
from llmcore.model.norms import RMSNorm, prepare_norm


class MultiHeadLatent(Attention):
    """The cache keeps a latent vector, from which each head makes its key and value, and one rotary key for all."""

    kind: Literal["mla"] = "mla"
    heads: PositiveInt = 4
    """Heads."""
    latent_width: PositiveInt = 64
    """Width L of the vector that keys and values are made from."""
    query_latent_width: PositiveInt | None = None
    """Width of a vector that queries are made from in the same way; none: they are made from the token itself."""
    content_width: PositiveInt = 32
    """Width of the part of a head's key that comes from the latent vector, and does not turn."""
    rotary_width: PositiveInt = 16
    """Width R of the part that turns with the position, which all heads share."""
    value_width: PositiveInt = 32
    """Width of a head's value."""
    norm_eps: PositiveFloat = 1e-6
    """Added to the mean square in the RMSNorm of latent vectors."""
    causal: bool = True
    """Whether a token sees only itself and earlier ones; false: an encoder."""
    window: PositiveInt | None = None
    """How many tokens a query sees, itself included; none: all."""
    sinks: int = Field(default=0, ge=0)
    """First tokens that stay visible beyond the window."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of attention weights dropped in training."""
    backend: AnyBackend = Auto()
    """What computes it."""

    @model_validator(mode="after")
    def consistent(self) -> "MultiHeadLatent":
        check_sinks(self.sight())
        self.backend.check(Needs(dropout=self.dropout > 0, sinks=self.sinks > 0, narrow_values=True))
        return self

    def head_size(self, width: int) -> int:
        return self.rotary_width

    def cache_shape(self, width: int) -> CacheShape:
        """Keys alone: the latent vector beside the rotary key; the values are the latent vector again."""
        return CacheShape(1, self.latent_width + self.rotary_width, 0)

    def products(self, width: int) -> int:
        return self.heads * (self.content_width + self.rotary_width + self.value_width)

    def shares(self, device: torch.device) -> bool:
        return self.backend.shares(device)

    def sight(self) -> Sight:
        return Sight(causal=self.causal, window=self.window, sinks=self.sinks)

    def build(self, width: int, layer: int) -> nn.Module:
        self.backend.prepare()
        return LatentLayer(self, width, layer)


class LatentLayer(nn.Module):
    """(B, T, D) -> (B, T, D).

    With u the matrix that makes a head's key from the latent vector c, its score is q · (u c) = (uᵀ q) · c: a query
    may be brought to the latent vectors instead of every latent vector to a key, and the values of all heads are
    mixed before they are made. For many queries making keys and values is cheaper; for the one query of a step of
    generation it is not, and all heads then look at the same S vectors: multi-query attention of width L + R.
    """

    def __init__(self, config: MultiHeadLatent, width: int, layer: int) -> None:
        super().__init__()
        self.config = config
        self.layer = layer
        heads = config.heads
        source = config.query_latent_width or width
        if config.query_latent_width is not None:
            self.query_down = Linear(width, source)
            self.query_norm = RMSNorm(eps=config.norm_eps).build(source)
        self.query_up = Linear(source, heads * (config.content_width + config.rotary_width))
        self.down = Linear(width, config.latent_width + config.rotary_width)
        self.latent_norm = RMSNorm(eps=config.norm_eps).build(config.latent_width)
        self.up = Linear(config.latent_width, heads * (config.content_width + config.value_width))
        self.out = Linear(heads * config.value_width, width, residual=True)
        self.scale = 1 / math.sqrt(config.content_width + config.rotary_width)

    def forward(self, x: Tensor, around: Around) -> Tensor:
        content, rotary, keys = self.project(x, around)
        if around.cache is not None:
            keys, _ = around.cache.append(self.layer, keys, keys[..., :0])
        attend = self.attend_latent if x.shape[1] == 1 else self.attend_heads
        projected: Tensor = self.out(attend(content, rotary, keys, around))
        return projected

    def prepare(self, dtype: torch.dtype) -> AttentionStep:
        config, layer, scores = self.config, self.layer, Scores(self.scale)
        narrowed = config.query_latent_width is not None
        narrow = (self.query_down.prepare(dtype), prepare_norm(self.query_norm, dtype)) if narrowed else None
        query_up, down, out = self.query_up.prepare(dtype), self.down.prepare(dtype), self.out.prepare(dtype)
        latent_norm = prepare_norm(self.latent_norm, dtype)
        up = self.up.matrix(dtype).detach().view(config.heads, -1, config.latent_width)
        make_keys, make_values = (
            part.contiguous() for part in torch.split(up, [config.content_width, config.value_width], 1)
        )  # (H, ·, L)

        def step(x: Tensor, onto: Tensor | None, here: Here) -> Tensor:
            source = x if narrow is None else narrow[1](narrow[0](x))
            queries = query_up(source).view(len(x), config.heads, -1)
            content, rotary = torch.split(queries, [config.content_width, config.rotary_width], -1)
            latent, rotary_key = torch.split(down(x), [config.latent_width, config.rotary_width], -1)
            if here.rotation is not None:
                turned = here.rotation.apply(torch.cat([rotary, rotary_key.unsqueeze(1)], 1))  # (B, H + 1, R)
                rotary, rotary_key = turned[:, :-1], turned[:, -1]
            key = torch.cat([latent_norm(latent), rotary_key], -1).unsqueeze(1)  # (B, 1, L + R)
            brought = torch.bmm(content.transpose(0, 1), make_keys).transpose(0, 1)  # (B, H, L)
            asked, values = torch.cat([brought, rotary], -1), key[..., : config.latent_width]
            mixed = here.column.attend(layer, asked, key, values, backend=config.backend, scores=scores)
            mixed = mixed.to(dtype).view(len(x), config.heads, -1).transpose(0, 1)  # (H, B, L)
            return out(torch.bmm(mixed, make_values.transpose(1, 2)).transpose(0, 1).flatten(1), onto)

        return step

    def project(self, x: Tensor, around: Around) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, D) -> the queries' two parts (B, T, H, ·), and latent vector beside rotary key (B, 1, T, L + R)."""
        config = self.config
        source = x if config.query_latent_width is None else self.query_norm(self.query_down(x))
        queries = self.query_up(source).view(*x.shape[:2], config.heads, -1)
        content, rotary = torch.split(queries, [config.content_width, config.rotary_width], -1)
        latent, rotary_key = torch.split(self.down(x), [config.latent_width, config.rotary_width], -1)
        if around.rotation is not None:
            turned = around.rotation.apply(torch.cat([rotary, rotary_key.unsqueeze(2)], 2))  # (B, T, H + 1, R)
            rotary, rotary_key = turned[:, :, :-1], turned[:, :, -1]
        return content, rotary, torch.cat([self.latent_norm(latent), rotary_key], -1).unsqueeze(1)

    def attend_heads(self, content: Tensor, rotary: Tensor, keys: Tensor, around: Around) -> Tensor:
        """Make each head's keys and values of (B, 1, S, L + R) -> (B, T, H·Cv)."""
        config = self.config
        latent, rotary_key = torch.split(keys, [config.latent_width, config.rotary_width], -1)
        made = self.up(latent.squeeze(1)).view(len(keys), keys.shape[2], config.heads, -1).transpose(1, 2)
        made_keys, values = torch.split(made, [config.content_width, config.value_width], -1)  # (B, H, S, ·)
        full_keys = torch.cat([made_keys, rotary_key.expand(-1, config.heads, -1, -1)], -1)
        queries = torch.cat([content, rotary], -1).transpose(1, 2)
        return self.attend(queries, full_keys, values, around)

    def attend_latent(self, content: Tensor, rotary: Tensor, keys: Tensor, around: Around) -> Tensor:
        """Bring the queries to the latent vectors in (B, 1, S, L + R) -> (B, T, H·Cv)."""
        config = self.config
        up = self.up.matrix(content.dtype).view(config.heads, -1, config.latent_width)
        make_keys, make_values = torch.split(up, [config.content_width, config.value_width], 1)  # (H, ·, L)
        brought = torch.einsum("bthc,hcl->bhtl", content, make_keys)
        queries = torch.cat([brought, rotary.transpose(1, 2)], -1)  # (B, H, T, L + R)
        mixed = self.attend(queries, keys, keys[..., : config.latent_width], around)
        mixed = mixed.view(*mixed.shape[:2], config.heads, config.latent_width)
        return torch.einsum("bthl,hvl->bthv", mixed, make_values).flatten(2)

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, around: Around) -> Tensor:
        scores = Scores(self.scale, dropout=self.config.dropout if self.training else 0.0)
        mixed, weights = self.config.backend.attend(queries, keys, values, mask=around.mask, scores=scores)
        if around.weights is not None and weights is not None:
            around.weights.append(weights)
        return mixed
