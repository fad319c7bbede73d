"""A loss or gradient that is not finite: found before the update, dumped, and said with what helps."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from llmcore.errors import TrainingError
from llmcore.storage import commit_directory, remove_durably


class NotFiniteError(TrainingError):
    """A step that must not be taken; the weights are those of the step before."""

    def __init__(self, *, losses: Sequence[float], grad_norm: float) -> None:
        bad = next((index for index, value in enumerate(losses) if not math.isfinite(value)), None)
        where = "the gradient's norm" if bad is None else f"the loss of micro-batch {bad}"
        super().__init__(f"{where} is {grad_norm if bad is None else losses[bad]}")
        self.losses, self.grad_norm, self.micro_batch = list(losses), grad_norm, bad


def diverged(
    error: NotFiniteError, folder: Path, *, model: nn.Module, micro_batches: Sequence[object], facts: Mapping[str, Any]
) -> TrainingError:
    """Dump the step below `folder` and return the error that ends the run."""
    path = folder / f"step-{facts['step']}"
    dump(path, error, model=model, micro_batches=micro_batches, facts=facts)
    told = ", ".join(f"{name} {value}" for name, value in facts.items())
    return TrainingError(
        f"{error.message} ({told}): the step was not taken, its batches are in {path}",
        hint="lower train.lr, lengthen train.schedule.warmup, or look for a bad row in that batch",
    )


def dump(
    path: Path, error: NotFiniteError, *, model: nn.Module, micro_batches: Sequence[object], facts: Mapping[str, Any]
) -> None:
    """Write the batches, the terms of the loss and the norm of each gradient."""
    if path.exists():
        remove_durably(path)
    tensors = {
        f"{index}/{name}": tensor.detach().cpu().contiguous().clone()
        for index, batch in enumerate(micro_batches)
        for name, tensor in tensors_of(batch)
    }
    norms = {
        name: str(float(torch.linalg.vector_norm(weight.grad)))
        for name, weight in model.named_parameters()
        if weight.grad is not None
    }
    told = {**facts, "losses": [str(loss) for loss in error.losses], "grad_norm": str(error.grad_norm), "norms": norms}
    with commit_directory(path) as scratch:
        save_file(tensors, scratch / "batches.safetensors")
        (scratch / "step.json").write_text(json.dumps(told, indent=1), encoding="utf-8")


def tensors_of(batch: object, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor inside a batch, with a name."""
    if isinstance(batch, Tensor):
        yield prefix or "batch", batch
        return
    if hasattr(batch, "_asdict"):
        batch = batch._asdict()
    items = batch.items() if isinstance(batch, Mapping) else enumerate(batch) if isinstance(batch, tuple | list) else ()
    for name, value in items:
        yield from tensors_of(value, f"{prefix}.{name}" if prefix else str(name))
