"""Making room: which checkpoints of runs may go, and taking them away."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from llmcore.errors import ConfigError
from llmcore.manifest import NAME as MANIFEST
from llmcore.runs.folder import RunFolder, size_of
from llmcore.storage import lock_directory, remove_durably
from llmcore.train.retention import Retention, read_pins


class Doomed(NamedTuple):
    """A folder that may go."""

    run: RunFolder
    path: Path
    bytes: int


def removable(run: RunFolder, *, keep: int, keep_best: int, dumps: bool) -> list[Doomed]:
    """Checkpoints that are neither among the newest nor the best nor pinned; with `dumps` also what NaNs left."""
    if run.state == "running":
        return []
    finished = (run.path / MANIFEST).exists()
    if keep < 1 and not finished:
        raise ConfigError(
            f"{run.path} is not finished: without a checkpoint it would begin again", hint="--keep 1, or finish it"
        )
    best = run.best()
    metric = {} if best is None else {"best_metric": best[0]}
    train = run.train.model_copy(update={**metric, "keep": max(keep, 1), "keep_best": keep_best if best else 0})
    stay = Retention(train, run.rows).kept(run.checkpoints, pinned=run.pins)
    if keep < 1:
        newest = max(run.checkpoints, default=0)
        pinned = newest in run.pins or (train.pin_every and newest % train.pin_every == 0)
        among_best = newest in Retention(train, run.rows).best(run.checkpoints)[: train.keep_best]
        stay -= set() if pinned or among_best else {newest}
    paths = [path for step, path in run.checkpoints.items() if step not in stay]
    paths += sorted((run.folder / "nan-dump").glob("step-*")) if dumps else []
    return [Doomed(run, path, size_of(path)) for path in paths]


def remove_all(doomed: Sequence[Doomed]) -> None:
    """Take them away, each run held meanwhile; what was pinned since stays."""
    for folder in dict.fromkeys(item.run.folder for item in doomed):
        with lock_directory(folder):
            pins = {f"step-{step:08d}" for step in read_pins(folder)}
            for item in doomed:
                if item.run.folder == folder and (item.path.parent.name != "checkpoints" or item.path.name not in pins):
                    remove_durably(item.path)
