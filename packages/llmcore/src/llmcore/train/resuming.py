"""What the folder of a run holds when a command is given: nothing yet, something foreign, or where to go on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from llmcore.errors import ArtifactError, ConfigError
from llmcore.storage import TEMPORARY, remove_durably
from llmcore.train import identity
from llmcore.train.retention import snapshot_paths
from llmcore.train.snapshot import Snapshot, latest_intact, load_snapshot


def check_resume(resume: str) -> str:
    """The option --resume, if it is one of its values."""
    if resume not in ("auto", "never") and not resume.isdecimal():
        raise ConfigError(
            f"--resume {resume!r} is none of auto, never, or the number of a saved step",
            hint="auto starts or goes on, never starts anew, a number goes back to that step",
        )
    return resume


def check_ours(out: Path, folder: Path) -> None:
    """Refuse, without touching it, a folder that holds anything but a run."""
    if not out.exists():
        return
    if not out.is_dir():
        raise ConfigError(f"{str(out)!r} is a file, not a folder", hint="choose another --out")
    if (folder / identity.NAME).exists():
        return
    foreign = [path.name for path in out.iterdir() if path.name != "run" and not path.name.startswith(".tmp-")]
    inside = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    foreign += [f"run/{name}" for name in inside if name != ".lock" and not name.startswith(".tmp-")]
    if foreign:
        raise ConfigError(
            f"{out} holds something that is no run of ours ({', '.join(sorted(foreign)[:3])})",
            hint="choose another --out; nothing was changed",
        )


def unfinished_name(leftover: str) -> str:
    """`.tmp-step-00000400-77` -> `step-00000400`; nothing for what was being deleted, and for single files."""
    name = leftover.removeprefix(TEMPORARY)
    return name.rpartition("-")[0] if name.startswith("step-") else ""


def load_verified(out: Path, snapshots: Path, *, resume: str, lazily: bool) -> Snapshot | None:
    """The snapshot to go on from, later ones removed; a damaged one is an error that names the last good one."""
    paths = snapshot_paths(snapshots)
    step = step_to_resume(out, paths, resume)
    if step is None:
        return None
    try:
        snapshot = load_snapshot(paths[step], lazily=lazily)
    except ArtifactError as error:
        del paths[step]
        good = latest_intact(paths)
        advice = f"go on from the last good one with --resume {good}" if good is not None else "choose another --out"
        raise ArtifactError(error.message, hint=advice) from None
    for later in (path for other, path in paths.items() if other > step):
        remove_durably(later)
    return snapshot


def step_to_resume(out: Path, paths: Mapping[int, Path], resume: str) -> int | None:
    """The newest step, or the one asked for."""
    if not resume.isdecimal():
        return max(paths, default=None)
    if int(resume) not in paths:
        there = ", ".join(map(str, paths)) or "none"
        raise ConfigError(
            f"--resume {resume}: {out} has no such step (there are: {there})",
            hint="give one of these, or --resume auto",
        )
    return int(resume)
