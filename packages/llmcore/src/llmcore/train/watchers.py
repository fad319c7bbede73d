"""Watchers: where a run is shown beside its own metrics.jsonl. Another package adds its own in `llmcore.watcher`.

[project.entry-points."llmcore.watcher"]
mlflow = "mypackage:MLflow"
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple, Protocol

from pydantic import JsonValue

from llmcore.errors import ExtensionError
from llmcore.extensions import Part, part

if TYPE_CHECKING:  # settings are read without torch
    from torch import Tensor

Row = Mapping[str, float | int | None]


class About(NamedTuple):
    """What a watcher is told of the run."""

    name: str
    """The output folder's name."""
    made_by: str
    """The stage."""
    start: int
    """The step it goes on from; what was shown of later steps will come again."""
    config: dict[str, JsonValue]
    """The resolved settings."""


class Watching(Protocol):
    """An open view of one run."""

    def add(self, row: Row) -> None:
        """Show one line of metrics."""
        ...

    def histograms(self, step: int, values: Mapping[str, Tensor]) -> None:
        """Show how the numbers of some tensors are spread."""
        ...

    def texts(self, step: int, texts: Sequence[tuple[str, str]]) -> None:
        """Show what the model says: prompts and what follows them."""
        ...

    def close(self) -> None:
        """Write out what is left."""
        ...


class Watcher(Part):
    """A place where a run is shown."""

    def build(self, folder: Path, about: About) -> Watching:
        """Open the view of a run whose private folder is `folder`; raises ExtensionError if a package is missing."""
        raise NotImplementedError(f"{type(self).__name__} must define build(folder, about)")


class TensorBoard(Watcher):
    """Event files in run/tensorboard; the steps that a resumed run repeats are purged."""

    kind: Literal["tensorboard"] = "tensorboard"

    def build(self, folder: Path, about: About) -> Watching:
        try:
            from llmcore.train.tensorboard import EventFiles

            return EventFiles(folder / "tensorboard", start=about.start)
        except ModuleNotFoundError as error:
            raise missing("tensorboard", "llmcore[tb]", error) from error


class WeightsAndBiases(Watcher):
    """Weights & Biases: each start of a run is a run there, in a group named after the folder."""

    kind: Literal["wandb"] = "wandb"
    project: str = "llm"
    """The project there."""
    mode: Literal["offline", "online"] = "offline"
    """offline writes to run/wandb, to be sent later with `wandb sync`; the variable WANDB_MODE goes before this."""

    def build(self, folder: Path, about: About) -> Watching:
        try:
            from llmcore.train.wandb import Online

            return Online(folder, about, project=self.project, mode=self.mode)
        except ModuleNotFoundError as error:
            raise missing("wandb", "llmcore[wandb]", error) from error


AnyWatcher = Annotated[Watcher, part("llmcore.watcher", tensorboard=TensorBoard, wandb=WeightsAndBiases)]


def missing(name: str, extra: str, error: ModuleNotFoundError) -> ExtensionError:
    """One sentence for a package that a watcher needs."""
    return ExtensionError(
        f"train.watch names {name}, which is not installed ({error.name} is missing)",
        hint=f"install it with uv pip install {extra!r}, or leave {name} out of train.watch",
    )
