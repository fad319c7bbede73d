"""Which resumable checkpoints stay: the newest, the best by a validation metric, and the pinned ones.

The metric's values are read from the run's own lines of metrics, so that there is nothing more to save. Pins stand in
`run/pins.json`: `llmcore runs pin` may add one while the run goes on.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from llmcore.errors import ArtifactError, TrainingError
from llmcore.manifest import NAME as MANIFEST
from llmcore.storage import read_regular, remove_durably, write_durably
from llmcore.train.config import TrainConfig

STEP_NAME = re.compile(r"step-(\d{8,})")
PINS = "pins.json"
LARGEST_PINS = 1 << 20
HIGHER_IS_BETTER = ("accuracy", "reward", "margin", "win", "right", "score", "f1", "exact")
"""Words in the name of a metric that is better when it is higher; of any other, lower is."""


class Retention:
    """Ranks the checkpoints of one run."""

    def __init__(self, config: TrainConfig, rows: Iterable[Mapping[str, Any]]) -> None:
        """From the lines of metrics up to the step that the run goes on from."""
        self.config = config
        self.mode = better(config.best_metric, config.best_mode)
        self.values: dict[int, float] = {}
        for row in rows:
            self.note(row)

    def note(self, row: Mapping[str, Any]) -> None:
        """Take the metric from one line, if it has it."""
        value = row.get(self.config.best_metric)
        if isinstance(value, int | float):
            self.values[int(row["step"])] = float(value)
        elif self.config.keep_best and any(name.startswith("val_") for name in row) and not self.values:
            there = ", ".join(sorted(name for name in row if name.startswith("val_")))
            raise TrainingError(
                f"train.best_metric is {self.config.best_metric!r}, which no evaluation of this run gives",
                hint=f"choose one of {there}, or train.keep_best=0",
            )

    def among_best(self, step: int) -> bool:
        """Whether a step is one of the `keep_best` best so far."""
        return step in self.best(self.values)[: self.config.keep_best]

    def best(self, steps: Iterable[int]) -> list[int]:
        """Those of some steps that have a value, the best first; of equal ones the earlier."""
        sign = 1 if self.mode == "min" else -1
        return sorted(
            (step for step in steps if step in self.values), key=lambda step: (sign * self.values[step], step)
        )

    def kept(self, steps: Iterable[int], *, pinned: Iterable[int] = ()) -> set[int]:
        """The steps whose checkpoints stay."""
        there = sorted(steps)
        every = self.config.pin_every
        stay = set(there[-self.config.keep :]) | set(pinned)
        stay |= set(self.best(there)[: self.config.keep_best])
        return stay | {step for step in there if every and step % every == 0}

    def prune(self, snapshots: Path) -> None:
        """Remove what need not stay; what is not a committed checkpoint is none of ours."""
        paths = snapshot_paths(snapshots)
        stay = self.kept(paths, pinned=read_pins(snapshots.parent))
        for step, path in paths.items():
            if step not in stay:
                remove_durably(path)


def better(metric: str, mode: Literal["auto", "min", "max"]) -> Literal["min", "max"]:
    """Which way a metric gets better: as set, or by the words of its name."""
    if mode != "auto":
        return mode
    return "max" if any(word in metric for word in HIGHER_IS_BETTER) else "min"


def snapshot_paths(folder: Path) -> dict[int, Path]:
    """Committed snapshots by step, oldest first; anything else in the folder is none of ours."""
    found: dict[int, Path] = {}
    for path in folder.iterdir() if folder.is_dir() else ():
        match = STEP_NAME.fullmatch(path.name)
        if match and (path / MANIFEST).is_file():
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def step_name(step: int) -> str:
    return f"step-{step:08d}"


def read_pins(folder: Path) -> set[int]:
    """The pinned steps of the run in `folder` (its `run/`)."""
    path = folder / PINS
    if not path.exists():
        return set()
    try:
        steps = json.loads(read_regular(path, limit=LARGEST_PINS))
    except (ValueError, RecursionError):
        steps = None
    if not isinstance(steps, list) or not all(type(step) is int for step in steps):
        raise ArtifactError(f"{path} is not a list of steps", hint="remove it, and pin again with llmcore runs pin")
    return set(steps)


def write_pins(folder: Path, steps: Iterable[int]) -> None:
    write_durably(folder / PINS, json.dumps(sorted(steps)).encode())
