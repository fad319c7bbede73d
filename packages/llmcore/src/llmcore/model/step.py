"""One more token of each row, as decoding reads it: the forward of few rows, prepared once and taken many times.

At one row a step is bound by how many operations there are as much as by reading the weights. So each part of the
model may offer a form of itself for one token (`prepare`), which works on (B, D) without calls of modules, adds to the
residual stream in its last product, and has copies of the weights laid out for it (`model/products.py`). What all
layers share is made once: the rotation, the mask, and the views of the cache. A norm or a feed-forward that offers
none is called as it is; where the attention offers none, or a token needs more than its column of the cache, the
model's own forward reads it.
"""

import functools
import hashlib
import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

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

BlockStep = Callable[[Tensor, Here], Tensor]
"""(B, D), here -> (B, D); the first is overwritten."""


@runtime_checkable
class OffersAttention(Protocol):
    def prepare(self, dtype: torch.dtype) -> AttentionStep: ...


class Step:
    """(B,) tokens -> (B, V) float32 logits of what follows them; the tokens are added to the cache.

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
        if self.compiled is not None:
            described = f"{model.config.model_dump_json()} {model} {dtype}"
            self.structure = hashlib.sha256(described.encode()).hexdigest()

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
            return self.model.logits(self.model.hidden(ids, positions=positions, cache=cache)[:, -1])
        x = self.model.embed(ids, cache.length, positions)  # (B, 1, D)
        rotation = self.model.positions.rotation(x, cache.length, positions)
        if rotation is not None:
            rotation = Rotation(rotation.cosine.squeeze(-3), rotation.sine.squeeze(-3))  # (1, C) or (B, 1, C)
        x = x.squeeze(1)
        if self.compiled is not None and type(cache) is Cache:
            logits = self.compiled(self, x, rotation, cache)
        else:
            logits = run_blocks(self.blocks, self.norm, self.project, x, Here(column, rotation))
        cache.advance(1, None)
        return widen(logits)


def run_blocks(blocks: list[BlockStep], norm: NormStep, project: Product, x: Tensor, here: Here) -> Tensor:
    """(B, D) -> (B, V): all between the embedding and the logits."""
    for block in blocks:
        x = block(x, here)
    return project(norm(x))


class CompiledBlocks:
    """`run_whole` through torch.compile, once in a process for each structure of model and number of rows.

    Before each call torch.compile checks hundreds of conditions on what it is given, which takes as long as compiling
    gains. Here one string says all that the compiled code depends on, and is the only condition. Weights are
    arguments, and how many columns there are is unknown to the code: it serves all tokens, all prompts, and weights
    that changed.
    """

    def __init__(self) -> None:
        self.known: set[str] = set()
        self.run = torch.compile(run_whole, options={"cpp_wrapper": True, "guard_filter_fn": only_structure})

    def __call__(self, step: Step, x: Tensor, rotation: Rotation | None, cache: Cache) -> Tensor:
        keys, values, ruler = cache.keys.unbind(), cache.values.unbind(), x.new_empty(cache.length + 1)
        assert step.blocks is not None, "only prepared blocks are compiled"
        structure = f"{step.structure} {len(x)} {x.device} {cache.keys.dtype} {cache.attended is None}"
        if structure not in self.known:
            self.known.add(structure)
            open_dimensions(keys, values, ruler, cache.attended)
        logits: Tensor = self.run(
            structure, step.blocks, step.norm, step.project, x, rotation, keys, values, ruler, cache.attended
        )
        return logits


def run_whole(
    structure: str,
    blocks: list[BlockStep],
    norm: NormStep,
    project: Product,
    x: Tensor,
    rotation: Rotation | None,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    ruler: Tensor,
    attended: Tensor | None,
) -> Tensor:
    """`run_blocks` on whole layers of a cache; the ruler is as long as what the token sees."""
    assert structure, "the compiled code depends on it"
    seen = ruler.shape[0]
    allowed = None if attended is None else attended[:, None, None].narrow(3, 0, seen)
    column = WholeColumn(keys, values, seen, Mask(causal=False, allowed=allowed))
    return run_blocks(blocks, norm, project, x, Here(column, rotation))


def only_structure(guards: Sequence[Any]) -> list[bool]:
    """Which of torch.compile's conditions are checked."""
    return [guard.name in ("structure", "L['structure']") for guard in guards]


def open_dimensions(keys: Sequence[Tensor], values: Sequence[Tensor], ruler: Tensor, attended: Tensor | None) -> None:
    """Have the compiler leave the numbers of columns open."""
    from torch._dynamo import mark_dynamic  # its import takes seconds

    for store in (*keys, *values):
        mark_dynamic(store, 2)
    mark_dynamic(ruler, 0)
    if attended is not None:
        mark_dynamic(attended, 1)


@functools.cache
def compile_blocks() -> CompiledBlocks | None:
    """One for the process. Where there is no C++ compiler, a warning says so and the step stays as it is."""
    name = os.environ.get("CXX") or "g++"
    if not any(shutil.which(compiler) for compiler in (name, "g++", "clang++")):
        warnings.warn(f"no C++ compiler ({name}) for a compiled step: decoding goes on without it", stacklevel=2)
        return None
    return CompiledBlocks()


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
