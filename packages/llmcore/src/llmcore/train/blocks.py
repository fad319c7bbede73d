"""How a model's blocks run in training: as they are, compiled, or computed again in the backward.

Evaluation, rollouts and generation run them as they are. Nothing is wrapped around a module, so that the names of
weights, in checkpoints and everywhere, stay what they are.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from llmcore.errors import TrainingError
from llmcore.model.attention import Around
from llmcore.model.transformer import ApplyBlock, Transformer, apply_block, take_aux_losses
from llmcore.train.config import TrainConfig

Say = Callable[[str], None]

EAGER_BACKWARD = "force_non_lazy_backward_lowering"
"""Compiles the backward with the forward, so that what fails does so where it can be mended."""


@contextlib.contextmanager
def training_blocks(model: nn.Module, config: TrainConfig, *, say: Say) -> Iterator[Callable[[], None]]:
    """While inside, every block of ours in `model` runs in training as the settings say.

    Gives a function that tells, after a step, what was compiled in it and how long that took.
    """
    transformers = [module for module in model.modules() if isinstance(module, Transformer)]
    wanted = [name for name in ("compile", "checkpoint_activations") if getattr(config, name)]
    if wanted and not transformers:
        raise TrainingError(
            f"train.{wanted[0]} is set, but {type(model).__name__} has no blocks of ours to apply it to",
            hint=f"set train.{wanted[0]}=false, or train a Transformer of llmcore",
        )
    with contextlib.ExitStack() as parts:
        compiled = parts.enter_context(Compiled(say)) if config.compile else None
        apply: ApplyBlock = compiled or apply_block
        for transformer in transformers:
            transformer.apply_block = Recomputed(apply) if config.checkpoint_activations else apply
        try:
            yield compiled.tell if compiled is not None else lambda: None
        finally:
            for transformer in transformers:
                transformer.apply_block = apply_block


class Recomputed:
    """Keeps only what enters a block, and computes what is inside again in the backward (arXiv:1604.06174).

    The same operations on the same numbers, with the same dropout: the gradient is the same to the bit.
    """

    def __init__(self, apply: ApplyBlock) -> None:
        self.apply = apply

    def __call__(self, block: nn.Module, x: Tensor, around: Around) -> Tensor:
        from torch.utils.checkpoint import checkpoint

        def contexts() -> tuple[contextlib.AbstractContextManager[Any], contextlib.AbstractContextManager[Any]]:
            return contextlib.nullcontext(), silent(block)

        output: Tensor = checkpoint(self.apply, block, x, around, use_reentrant=False, context_fn=contexts)
        return output


@contextlib.contextmanager
def silent(block: nn.Module) -> Iterator[None]:
    """While a block is computed again, the losses that its layers report are those that were taken already."""
    try:
        yield
    finally:
        take_aux_losses(block)


class Compiled:
    """`torch.compile` of one block, which serves all blocks of its kind; where it fails, they run as they are."""

    def __init__(self, say: Say) -> None:
        self.say = say
        self.compiled: ApplyBlock | None = None
        self.seconds = 0.0
        self.count = 0
        self.opened = contextlib.ExitStack()

    def __enter__(self) -> Compiled:
        import torch._functorch.config as settings
        from torch._dynamo.callback import callback_handler

        opened = self.opened
        opened.enter_context(warnings.catch_warnings())
        # Of tracing, which looks at the gradient of what enters a block.
        warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
        if hasattr(settings, EAGER_BACKWARD):
            opened.enter_context(settings.patch({EAGER_BACKWARD: True}))
        callback_handler.register_start_callback(self.started)
        opened.callback(callback_handler.remove_start_callback, self.started)
        callback_handler.register_end_callback(self.ended)
        opened.callback(callback_handler.remove_end_callback, self.ended)
        self.compiled = torch.compile(apply_block)
        return self

    def __exit__(self, *_: object) -> None:
        self.opened.close()

    def __call__(self, block: nn.Module, x: Tensor, around: Around) -> Tensor:
        from torch._dynamo.exc import TorchDynamoException

        if self.compiled is not None:
            # Each block makes what it needs of the mask: one that finds it made would be another program.
            own = around._replace(mask=dataclasses.replace(around.mask))
            try:
                return self.compiled(block, x, own)
            except TorchDynamoException as error:
                self.compiled = None
                self.say(f"torch.compile failed, training goes on without it: {first_line(error)}")
        return apply_block(block, x, around)

    def started(self, _: object) -> None:
        self.started_at = time.perf_counter()

    def ended(self, _: object) -> None:
        self.seconds += time.perf_counter() - self.started_at
        self.count += 1

    def tell(self) -> None:
        """Say what was compiled since this was last called, if anything was."""
        if self.count and self.compiled is not None:
            self.say(f"torch.compile: {self.count} programs in {self.seconds:.1f} s")
        self.seconds, self.count = 0.0, 0


def first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
