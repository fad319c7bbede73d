"""The transformer: embedding, blocks, final norm and head."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmcore.errors import ConfigError
from llmcore.model.attention import Around
from llmcore.model.cache import Cache
from llmcore.model.config import ModelConfig
from llmcore.model.linear import Embedding, Linear, initialise, widen
from llmcore.model.masks import Mask, build_mask, restart_positions

ApplyBlock = Callable[[nn.Module, Tensor, Around], Tensor]
"""How a block is applied in training; see `llmcore.train.blocks`."""


def apply_block(block: nn.Module, x: Tensor, around: Around) -> Tensor:
    """(B, T, D) -> (B, T, D)."""
    output: Tensor = block(x, around)
    return output


class Transformer(nn.Module):
    """(B, T) token ids -> (B, T, V) logits, or (B, T, 1) with a scalar head.

    Weights are float32; activations are held in `activation_dtype`, to which each weight is cast at its use.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.vocab_size is None:
            raise ConfigError(
                "the model's vocab_size is not known", hint="set model.vocab_size, or use with_vocabulary"
            )
        self.config = config
        self.activation_dtype = torch.float32
        self.apply_block: ApplyBlock = apply_block
        self.embedding = Embedding(config.vocab_size, config.width)
        self.positions = config.positions.build(
            width=config.width, head_width=config.attention.head_size(config.width), context=config.context
        )
        self.blocks = nn.ModuleList(BLOCKS[config.layout](config, layer) for layer in range(config.depth))
        self.final_norm = nn.Identity() if config.layout == "post" else config.norm.build(config.width)
        self.head = build_head(config)
        initialise(self, std=config.initial_std, depth=config.depth)

    def forward(
        self,
        ids: Tensor,
        *,
        positions: Tensor | None = None,
        attended: Tensor | None = None,
        documents: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """(B, T) -> (B, T, V) or (B, T, 1), in float32; see `hidden`."""
        return self.logits(self.hidden(ids, positions=positions, attended=attended, documents=documents, cache=cache))

    def hidden(
        self,
        ids: Tensor,
        *,
        positions: Tensor | None = None,
        attended: Tensor | None = None,
        documents: Tensor | None = None,
        cache: Cache | None = None,
        mask: Mask | None = None,
        weights: list[Tensor] | None = None,
    ) -> Tensor:
        """(B, T) -> (B, T, D), after the final norm.

        `attended` (B, T) is False for padding: no other token sees it, and positions count without it. Rows padded
        on the right do not need it if attention is causal. `documents` (B, T) numbers the documents of packed rows:
        tokens see their own document alone, and positions restart in each. With a `cache` the tokens follow those
        in it and are added to it. A `mask` alone decides what each token sees. A list for `weights` is given each
        layer's attention (B, H, T, S) by the manual backend.
        """
        start = 0 if cache is None else cache.length
        if positions is None:
            self.check_length(start + ids.shape[1])
            positions = count_positions(ids, attended=attended, documents=documents, cache=cache)
        x = self.embed(ids, start, positions)
        x = F.dropout(x, self.config.dropout, self.training) if self.config.dropout else x
        around = Around(
            mask=mask or self.mask(ids, attended=attended, documents=documents, cache=cache),
            rotation=self.positions.rotation(x, start, positions),
            cache=cache,
            weights=weights,
        )
        x = self.through_blocks(x, around)
        if cache is not None:
            cache.advance(ids.shape[1], attended)
        normed: Tensor = self.final_norm(x)
        return normed

    def embed(self, ids: Tensor, start: int, positions: Tensor | None) -> Tensor:
        """(B, T) -> (B, T, D): what the first block reads, of tokens at `positions` or at start, start + 1, …."""
        x: Tensor = self.embedding(ids, self.activation_dtype)
        if self.config.embedding_scale != 1.0:
            x = x * self.config.embedding_scale
        return self.positions.embed(x, start, positions)

    def through_blocks(self, x: Tensor, around: Around) -> Tensor:
        """(B, T, D) -> (B, T, D) before the final norm; in training by `apply_block`."""
        trains = self.training and around.cache is None and torch.is_grad_enabled()
        apply = self.apply_block if trains else apply_block
        for block in self.blocks:
            x = apply(block, x, around)
        return x

    def mask(self, ids: Tensor, *, attended: Tensor | None, documents: Tensor | None, cache: Cache | None) -> Mask:
        """What the attention of all layers may see."""
        sight, tokens = self.config.attention.sight(), ids.shape[1]
        if cache is not None:
            return cache.mask(sight, tokens, attended=attended, documents=documents)
        return build_mask(sight, queries=tokens, keys=tokens, device=ids.device, attended=attended, documents=documents)

    def check_length(self, tokens: int) -> None:
        """Refuse a sequence that goes where positions are not defined or were never seen in training."""
        if tokens > self.config.context and not self.config.endless:
            raise ConfigError(
                f"{tokens} tokens in a context of {self.config.context}",
                hint="only causal attention with a window no longer than the context, and positions 'rope' or 'none', "
                "goes beyond it",
            )

    def logits(self, hidden: Tensor) -> Tensor:
        """(…, D) -> (…, V) or (…, 1), in float32."""
        return widen(self.embedding.project(hidden) if self.head is None else self.head(hidden))

    def head_weight(self) -> Tensor:
        """(V, D), or (1, D) of a scalar head."""
        return self.embedding.weight if self.head is None else self.head.weight

    def attention_weights(self, ids: Tensor, *, attended: Tensor | None = None) -> list[Tensor]:
        """(B, T) -> for each layer (B, H, T, T); needs the manual backend."""
        weights: list[Tensor] = []
        self.hidden(ids, attended=attended, weights=weights)
        if len(weights) < self.config.depth:
            raise ConfigError(
                "this model's attention backend does not return its weights",
                hint="set model.attention.backend=manual",
            )
        return weights


class PreNorm(nn.Module):
    """x + f(norm(x)), twice."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = config.norm.build(config.width)
        self.attention = config.attention.build(config.width, layer)
        self.feedforward_norm = config.norm.build(config.width)
        self.feedforward = config.feedforward.build(config.width)
        self.dropout = config.dropout

    def forward(self, x: Tensor, around: Around) -> Tensor:
        x = x + self.drop(self.attention(self.attention_norm(x), around))
        return x + self.drop(self.feedforward(self.feedforward_norm(x)))

    def drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


class PostNorm(PreNorm):
    """norm(x + f(x)), twice."""

    def forward(self, x: Tensor, around: Around) -> Tensor:
        x = self.attention_norm(x + self.drop(self.attention(x, around)))
        normed: Tensor = self.feedforward_norm(x + self.drop(self.feedforward(x)))
        return normed


class Reordered(PreNorm):
    """x + norm(f(x)), twice."""

    def forward(self, x: Tensor, around: Around) -> Tensor:
        x = x + self.drop(self.attention_norm(self.attention(x, around)))
        return x + self.drop(self.feedforward_norm(self.feedforward(x)))


BLOCKS: dict[str, type[PreNorm]] = {"pre": PreNorm, "post": PostNorm, "reordered": Reordered}


def build_head(config: ModelConfig) -> Linear | None:
    """The head's own projection; None where the embedding table serves."""
    if config.head == "scalar":
        # Scores near 0 (about 1/√width), so that preference losses start at ln 2 and values at 0; smaller than the
        # 1/√(width + 1) of Stiennon et al. (2020), with which first rewards already differ by about 1.
        return Linear(config.width, 1, std=1 / (config.width + 1))
    assert config.vocab_size is not None
    return None if config.tie_embeddings else Linear(config.width, config.vocab_size)


def last_attended(hidden: Tensor, attended: Tensor) -> Tensor:
    """(B, T, D), (B, T) bool -> (B, D): what stands at each row's last attended token."""
    last = attended.shape[1] - 1 - attended.flip(1).long().argmax(1)
    return hidden[torch.arange(len(hidden), device=hidden.device), last]


def mean_attended(hidden: Tensor, attended: Tensor) -> Tensor:
    """(B, T, D), (B, T) bool -> (B, D): the mean over each row's attended tokens."""
    weights = attended.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)


def take_aux_losses(model: nn.Module) -> Tensor | None:
    """The sum of the losses that layers report beside the main one, taken away from them; None if none does.

    A tensor with a graph that stayed on a layer would break `copy.deepcopy(model)` and keep memory alive.
    """
    total: Tensor | None = None
    for module in model.modules():
        loss = getattr(module, "aux_loss", None)
        if loss is not None:
            total = loss if total is None else total + loss
            module.aux_loss = None  # type: ignore[assignment]
    return total


def count_positions(
    ids: Tensor, *, attended: Tensor | None, documents: Tensor | None, cache: Cache | None
) -> Tensor | None:
    """(B, T) the position of each token, or None where every row just counts on from the cache's length."""
    if documents is not None:
        return restart_positions(documents)
    if attended is None and (cache is None or cache.padding is None):
        return None
    first = torch.zeros(len(ids), 1, dtype=torch.long, device=ids.device)
    if cache is not None:
        first = cache.next_position.unsqueeze(1)
    steps = torch.ones_like(ids) if attended is None else attended.long()
    return (first + steps.cumsum(1) - 1).clamp(min=0)
