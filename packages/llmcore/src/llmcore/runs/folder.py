"""What the folder of a run holds, read without touching it and without torch."""

import fcntl
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from llmcore.errors import ArtifactError, LLMError
from llmcore.manifest import NAME as MANIFEST
from llmcore.train.config import TrainConfig
from llmcore.train.identity import NAME as IDENTITY
from llmcore.train.identity import Identity, read_identity
from llmcore.train.metrics import read_metrics
from llmcore.train.retention import Retention, read_pins, snapshot_paths

DEPTH = 3
"""How deep below a folder runs are looked for."""


class RunFolder(NamedTuple):
    """A run as it lies on the disk."""

    path: Path
    identity: Identity
    train: TrainConfig
    """Its `[train]` settings."""
    state: str
    """finished, running, stopped, died (without a word), diverged, or new (no checkpoint yet)."""
    rows: Sequence[dict[str, Any]]
    """The lines of metrics."""
    checkpoints: dict[int, Path]
    pins: set[int]

    @property
    def folder(self) -> Path:
        """Its private part."""
        return self.path / "run"

    @property
    def step(self) -> int:
        """The last step that was logged or saved."""
        return max([0, *(int(row["step"]) for row in self.rows[-1:]), *self.checkpoints])

    def last(self, metric: str) -> float | None:
        """The last value of a metric."""
        values = (row[metric] for row in reversed(self.rows) if isinstance(row.get(metric), int | float))
        return next(values, None)

    def best(self) -> tuple[str, float, int] | None:
        """(metric, value, step) of the best evaluation, by the run's own setting; by any it has, if it lacks that."""
        train = self.train
        there = {name for row in self.rows for name in row if name.startswith("val_")}
        if not there:
            return None
        metric = train.best_metric if train.best_metric in there else min(there)
        train = train.model_copy(update={"best_metric": metric, "keep_best": 0})
        ranked = Retention(train, self.rows)
        best = ranked.best(ranked.values)
        return (metric, ranked.values[best[0]], best[0]) if best else None

    @property
    def bytes(self) -> int:
        """What it takes on the disk, all files."""
        return size_of(self.path)


def read_run(path: Path) -> RunFolder:
    """The run in a folder."""
    if not (path / "run" / IDENTITY).is_file():
        raise ArtifactError(f"{path} is no folder of a run: it has no run/{IDENTITY}", hint="see llmcore runs ls DIR")
    folder = path / "run"
    checkpoints = snapshot_paths(folder / "checkpoints")
    rows = read_metrics(folder / "metrics.jsonl")
    identity = read_identity(folder / IDENTITY)
    train = TrainConfig.model_validate(identity.config.get("train", {}))
    return RunFolder(path, identity, train, state_of(path, checkpoints), rows, checkpoints, read_pins(folder))


def find_runs(root: Path) -> Iterator[Path]:
    """Folders of runs at and below a folder, by name."""
    if not root.is_dir():
        raise ArtifactError(f"{str(root)!r}: no such folder", hint="name the folder that your runs are in")
    patterns = ("*/" * depth + f"run/{IDENTITY}" for depth in range(DEPTH + 1))
    yield from sorted(path.parents[1] for pattern in patterns for path in root.glob(pattern))


def readable_runs(root: Path) -> Iterator[tuple[Path, RunFolder | LLMError]]:
    """Every run below a folder, or what is wrong with it."""
    for path in find_runs(root):
        try:
            yield path, read_run(path)
        except LLMError as error:
            yield path, error


def state_of(path: Path, checkpoints: dict[int, Path]) -> str:
    held, holder = lock_of(path / "run" / ".lock")
    if held:
        return "running"
    if (path / MANIFEST).exists():
        return "finished"
    dumps = [int(p.name.removeprefix("step-")) for p in (path / "run" / "nan-dump").glob("step-*")]
    if dumps and max(dumps) > max(checkpoints, default=0):
        return "diverged"
    if holder:
        return "died"
    return "stopped" if checkpoints else "new"


def lock_of(path: Path) -> tuple[bool, str]:
    """(whether a process holds it, who it says holds or held it)."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False, ""
    try:
        holder = os.read(descriptor, 200).decode("utf-8", "replace").strip()
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True, holder
    finally:
        os.close(descriptor)
    return False, holder


def size_of(path: Path) -> int:
    """Bytes of all files at and below a path."""
    if path.is_file():
        return path.stat().st_size
    files = (Path(root, name) for root, _, names in os.walk(path) for name in names)
    return sum(file.stat().st_size for file in files if file.is_file())
