"""A loss or gradient that is not finite: found before the update, dumped, and said with where it began and what helps.

`run/nan-dump/step-5/` holds all that the step was computed from, so that `llmcore replay` does it again:

    model.safetensors     the weights and buffers before the step
    batches.safetensors   every tensor of its micro-batches, as `<micro-batch>/<field>`
    step.json             step, seed, rows, the terms of the loss, the norm of each gradient, where it began, and
                          what the micro-batches are beside their tensors (`llmcore.train.trees`)
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llmcore.errors import TrainingError
from llmcore.storage import commit_directory, remove_durably
from llmcore.tensors import write_safetensors
from llmcore.train.snapshot import model_state
from llmcore.train.trees import taken_apart

ROWS_TOLD = 8


class NotFiniteError(TrainingError):
    """A step that must not be taken; the weights are those of the step before."""

    def __init__(self, *, losses: Sequence[float], grad_norm: float) -> None:
        bad = next((index for index, value in enumerate(losses) if not math.isfinite(value)), None)
        where = "the gradient's norm" if bad is None else f"the loss of micro-batch {bad}"
        super().__init__(f"{where} is {grad_norm if bad is None else losses[bad]}")
        self.losses, self.grad_norm, self.micro_batch = list(losses), grad_norm, bad


def diverged(
    error: NotFiniteError,
    folder: Path,
    *,
    model: nn.Module,
    micro_batches: Sequence[object],
    facts: Mapping[str, Any],
    rows: Sequence[int] = (),
    first: str | None = None,
) -> TrainingError:
    """Dump the step below `folder` and return the error that ends the run.

    `rows` are the data rows that the step saw, `first` says where a number was not finite first.
    """
    path = folder / f"step-{facts['step']}"
    dump(path, error, model=model, micro_batches=micro_batches, facts={**facts, "rows": list(rows), "first": first})
    told = ", ".join(f"{name} {value}" for name, value in facts.items()) + rows_told(rows)
    began = f"it began in {first}" if first else "the same step done again was finite"
    return TrainingError(
        f"{error.message} ({told}): {began}; the step was not taken, all it was computed from is in {path}",
        hint=f"look at it with llmcore replay {path}; lower train.lr, lengthen train.schedule.warmup, "
        "or look for a bad row",
    )


def rows_told(rows: Sequence[int]) -> str:
    """`, rows 4 7 1`: the first few."""
    more = " …" if len(rows) > ROWS_TOLD else ""
    return f", rows {' '.join(map(str, rows[:ROWS_TOLD]))}{more}" if rows else ""


def dump(
    path: Path, error: NotFiniteError, *, model: nn.Module, micro_batches: Sequence[object], facts: Mapping[str, Any]
) -> None:
    """Write the weights, the batches, the terms of the loss and the norm of each gradient."""
    if path.exists():
        remove_durably(path)
    trees, tensors = taken_apart(micro_batches)
    norms = {
        name: str(float(torch.linalg.vector_norm(weight.grad)))
        for name, weight in model.named_parameters()
        if weight.grad is not None
    }
    terms = {"losses": [str(loss) for loss in error.losses], "grad_norm": str(error.grad_norm)}
    told = {**facts, **terms, "norms": norms, "batches": trees}
    with commit_directory(path) as scratch:
        write_safetensors(scratch / "batches.safetensors", tensors)
        write_safetensors(scratch / "model.safetensors", model_state(model))
        (scratch / "step.json").write_text(json.dumps(told, indent=1), encoding="utf-8")
