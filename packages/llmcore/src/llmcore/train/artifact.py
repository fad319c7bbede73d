"""What a finished run leaves: the model, its tokenizer, what a stage adds, and the manifest last."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import nn

from llmcore.extensions import needs_of
from llmcore.manifest import Manifest, write_manifest
from llmcore.storage import write_durably
from llmcore.train.snapshot import Progress

if TYPE_CHECKING:
    from llmcore.train.run import Run

TIMED = frozenset({"step", "tokens", "seconds", "tokens_per_s", "mfu", "memory_gib"})
"""Figures of a line of metrics that are no result."""


class Ending(NamedTuple):
    """Where training ended."""

    progress: Progress = Progress()
    """How far it came."""
    row: Mapping[str, Any] = {}
    """The line of metrics of the step whose weights the artifact has."""
    peak: int = 0
    """The most bytes held."""
    best_step: int | None = None
    """That step, if it is the best one and not the last."""

    @property
    def figures(self) -> dict[str, float]:
        """What was measured at that step."""
        return {name: value for name, value in self.row.items() if isinstance(value, int | float)}

    @property
    def weights(self) -> str:
        """Whose weights the artifact has, in words."""
        if self.best_step is None:
            return "of the last step"
        return f"of step {self.best_step}, the best of {self.progress.step}"


def write_artifact(
    run: Run,
    model: nn.Module,
    *,
    kind: str,
    metrics: Mapping[str, float],
    counts: Mapping[str, int],
    extra_files: Mapping[str, bytes],
    base: tuple[str, Path] | None,
) -> Manifest:
    """Write the artifact of `run.finish`; of a model with adapters, they alone."""
    from llmcore.adapters import KIND, save_adapter
    from llmcore.checkpoint import model_tensors, save_model
    from llmcore.model.adapters import adapted
    from llmcore.model.transformer import Transformer
    from llmcore.tensors import save_tensors

    places = {}
    if adapted(model):
        assert base is not None, "adapters need to know the model below them"
        role, folder = base
        kind, places = KIND, {role: os.path.relpath(folder, run.out)}
        files = save_adapter(run.out, model, parent=role)
        needs = (needs_of(model.config) if isinstance(model, Transformer) else {}) | needs_of(run.config)
    elif isinstance(model, Transformer) and run.tokenizer is not None:
        files = save_model(run.out, model, run.tokenizer)
        needs = needs_of(model.config)  # what loading needs: not the parts that only training used
    else:
        needs = needs_of(run.config)
        save_tensors(run.out / "model.safetensors", model_tensors(model))
        files = ["model.safetensors"]
    for name, data in extra_files.items():
        write_durably(run.out / name, data)
    ending = run.ending
    timeless = {name: value for name, value in ending.figures.items() if name not in TIMED}
    best = {} if ending.best_step is None else {"best_step": ending.best_step}
    return write_manifest(
        run.out,
        kind=kind,
        made_by=run.made_by,
        config=run.config,
        parents=run.parents,
        places=places,
        needs=needs,
        metrics=timeless | dict(metrics),
        counts={"steps": ending.progress.step, "tokens": ending.progress.tokens, **best, **counts},
        environment=run.environment,
        files=[*files, *extra_files],
    )
