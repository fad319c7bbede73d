"""One more token of each row, as decoding reads it: the forward of few rows, prepared once and taken many times.

At one row a step is bound by how many operations there are as much as by reading the weights. So each part of the
model may offer a form of itself for one token (`prepare`), which works on (B, D) without calls of modules, adds to the
residual stream in its last product, and has copies of the weights laid out for it (`model/products.py`). What all
layers share is made once: the rotation, the mask, and the views of the cache. A norm or a feed-forward that offers
none is called as it is; where the attention offers none, or a token needs more than its column of the cache, the
model's own forward reads it.
"""

import functools
import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from llmcore.model.attention import AttentionStep, Here
from llmcore.model.cache import Cache, WholeColumn
from llmcore.model.feedforward import prepare_feedforward
from llmcore.model.linear import widen
from llmcore.model.masks import Mask
from llmcore.model.norms import NormStep, prepare_norm
from llmcore.model.positions import Rotation
from llmcore.model.products import ONEDNN_FROM_ROWS, FloatProducts, Product
from llmcore.model.sharing import SharedCache
from llmcore.model.transformer import PreNorm, Transformer

COMPILED_COLUMNS = 64
"""A compiled step's cache has a multiple of these columns, so that prompts of like lengths share a compilation."""
BlockStep = Callable[[Tensor, Here], Tensor]
"""(B, D), here -> (B, D); the first is overwritten."""


@runtime_checkable
class OffersAttention(Protocol):
    def prepare(self, dtype: torch.dtype) -> AttentionStep: ...


class Step:
    """(B,) tokens -> (B, V) float32 scores of what follows them; the tokens are added to the cache.

    The matrices of the parts that offer a step are copies, and stay as the model had them when it was made. `compiled`
    runs the blocks through torch.compile, which takes its time at the first token and again where shapes change.
    """

    def __init__(self, model: Transformer, *, compiled: bool = False) -> None:
        dtype = model.activation_dtype
        self.model = model
        self.sight = model.config.attention.sight()
        self.blocks: list[BlockStep] | None = None
        if all(isinstance(block.attention, OffersAttention) for block in model.blocks):
            blocks = (block for block in model.blocks if isinstance(block, PreNorm))
            self.blocks = [prepare_block(block, model.config.layout, dtype) for block in blocks]
        self.norm = prepare_norm(model.final_norm, dtype)
        self.project = (model.embedding if model.head is None else model.head).prepare(dtype)
        self.compiled = compile_blocks() if compiled and self.blocks is not None else None

    def shares(self, columns: int) -> bool:
        """Whether samples of so many columns are better read with a `SharedCache`."""
        attention, device = self.model.config.attention, self.model.head_weight().device
        window = self.sight.window
        whole = window is None or columns <= window
        return whole and self.blocks is not None and self.compiled is None and attention.shares(device)

    def __call__(self, tokens: Tensor, cache: Cache | SharedCache) -> Tensor:
        if tokens.device.type == "cpu" and len(tokens) < ONEDNN_FROM_ROWS:
            with FloatProducts():
                return self.read(tokens, cache)
        return self.read(tokens, cache)

    def read(self, tokens: Tensor, cache: Cache | SharedCache) -> Tensor:
        ids = tokens.unsqueeze(1)
        positions = None if cache.padding is None else cache.next_position.unsqueeze(1)
        column = None if self.blocks is None else cache.column(self.sight)
        if self.blocks is None or column is None:
            assert isinstance(cache, Cache), "only prepared steps share prompts"
            return self.model.scores(self.model.hidden(ids, positions=positions, cache=cache)[:, -1])
        x = self.model.embed(ids, cache.length, positions)  # (B, 1, D)
        rotation = self.model.positions.rotation(x, cache.length, positions)
        if rotation is not None:
            rotation = Rotation(rotation.cosine.squeeze(-3), rotation.sine.squeeze(-3))  # (1, C) or (B, 1, C)
        x = x.squeeze(1)
        if self.compiled is not None and type(cache) is Cache:
            stores, place, allowed = cache.whole_column()
            scores = self.compiled(self.blocks, self.norm, self.project, x, rotation, *stores, place, allowed)
        else:
            scores = run_blocks(self.blocks, self.norm, self.project, x, Here(column, rotation))
        cache.advance(1, None)
        return widen(scores)

    def capacity(self, columns: int) -> int:
        """How many columns a cache should have for so many: a compiled step has a round number, to serve others too."""
        return columns if self.compiled is None else -(-columns // COMPILED_COLUMNS) * COMPILED_COLUMNS


def run_blocks(blocks: list[BlockStep], norm: NormStep, project: Product, x: Tensor, here: Here) -> Tensor:
    """(B, D) -> (B, V): all between the embedding and the scores."""
    for block in blocks:
        x = block(x, here)
    return project(norm(x))


def run_whole(
    blocks: list[BlockStep],
    norm: NormStep,
    project: Product,
    x: Tensor,
    rotation: Rotation | None,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    place: Tensor,
    allowed: Tensor,
) -> Tensor:
    """The same on tensors whose shapes stay from token to token; see `Cache.whole_column`."""
    column = WholeColumn(keys, values, place, Mask(causal=False, allowed=allowed))
    return run_blocks(blocks, norm, project, x, Here(column, rotation))


@functools.cache
def compile_blocks() -> Callable[..., Tensor] | None:
    """`run_whole`, compiled once in a process for each model's shapes: weights are arguments, not constants.

    Where there is no C++ compiler, a warning says so and the step stays as it is.
    """
    name = os.environ.get("CXX") or "g++"
    if not any(shutil.which(compiler) for compiler in (name, "g++", "clang++")):
        warnings.warn(f"no C++ compiler ({name}) for a compiled step: decoding goes on without it", stacklevel=2)
        return None
    return torch.compile(run_whole, options={"cpp_wrapper": True})


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
