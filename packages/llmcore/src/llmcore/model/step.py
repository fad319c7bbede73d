"""One more token of each row, as decoding reads it: the forward of few rows, prepared once and taken many times.

At one row a step is bound by how many operations there are as much as by reading the weights. So each part of the
model may offer a form of itself for one token (`prepare`), which works on (B, D) without calls of modules, adds to the
residual stream in its last product, and has copies of the weights laid out for it (`model/products.py`). What all
layers share is made once: the rotation, the mask, and the views of the cache. A norm or a feed-forward that offers
none is called as it is; where the attention offers none, or a token needs more than its column of the cache, the
model's own forward reads it.
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from llmcore.model.attention import AttentionStep, Here
from llmcore.model.cache import Cache
from llmcore.model.feedforward import prepare_feedforward
from llmcore.model.linear import widen
from llmcore.model.norms import prepare_norm
from llmcore.model.positions import Rotation
from llmcore.model.products import ONEDNN_FROM_ROWS, FloatProducts
from llmcore.model.transformer import PreNorm, Transformer

BlockStep = Callable[[Tensor, Here], Tensor]
"""(B, D), here -> (B, D); the first is overwritten."""


@runtime_checkable
class OffersAttention(Protocol):
    def prepare(self, dtype: torch.dtype) -> AttentionStep: ...


class Step:
    """(B,) tokens -> (B, V) float32 scores of what follows them; the tokens are added to the cache.

    The weights are copies: the step goes on with those the model had when it was made.
    """

    def __init__(self, model: Transformer) -> None:
        dtype = model.activation_dtype
        self.model = model
        self.sight = model.config.attention.sight()
        self.blocks: list[BlockStep] | None = None
        if all(isinstance(block.attention, OffersAttention) for block in model.blocks):
            blocks = (block for block in model.blocks if isinstance(block, PreNorm))
            self.blocks = [prepare_block(block, model.config.layout, dtype) for block in blocks]
        self.norm = prepare_norm(model.final_norm, dtype)
        self.project = (model.embedding if model.head is None else model.head).prepare(dtype)

    def __call__(self, tokens: Tensor, cache: Cache) -> Tensor:
        if tokens.device.type == "cpu" and len(tokens) < ONEDNN_FROM_ROWS:
            with FloatProducts():
                return self.read(tokens, cache)
        return self.read(tokens, cache)

    def read(self, tokens: Tensor, cache: Cache) -> Tensor:
        ids = tokens.unsqueeze(1)
        positions = None if cache.padding is None else cache.next_position.unsqueeze(1)
        column = None if self.blocks is None else cache.column(self.sight)
        if self.blocks is None or column is None:
            return self.model.scores(self.model.hidden(ids, positions=positions, cache=cache)[:, -1])
        x = self.model.embed(ids, cache.length, positions)  # (B, 1, D)
        rotation = self.model.positions.rotation(x, cache.length, positions)
        if rotation is not None:
            rotation = Rotation(rotation.cosine.squeeze(-3), rotation.sine.squeeze(-3))  # (1, C) or (B, 1, C)
        x, here = x.squeeze(1), Here(column, rotation)
        for block in self.blocks:
            x = block(x, here)
        cache.advance(1, None)
        return widen(self.project(self.norm(x)))


def prepare_block(block: PreNorm, layout: str, dtype: torch.dtype) -> BlockStep:
    """The block of one layout; see `transformer.BLOCKS`."""
    assert isinstance(block.attention, OffersAttention)
    attend = block.attention.prepare(dtype)
    feed = prepare_feedforward(block.feedforward, dtype)
    first, second = (prepare_norm(norm, dtype) for norm in (block.attention_norm, block.feedforward_norm))

    def pre(x: Tensor, here: Here) -> Tensor:
        x = attend(first(x), x, here)
        return feed(second(x), x)

    def post(x: Tensor, here: Here) -> Tensor:
        x = first(attend(x, x, here))
        return second(feed(x, x))

    def reordered(x: Tensor, here: Here) -> Tensor:
        x = x + first(attend(x, None, here))
        return x + second(feed(x, None))

    return {"pre": pre, "post": post, "reordered": reordered}[layout]
