"""An output folder: made once and whole, and recognised when the same command is given again."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from llmcore.config import Config
from llmcore.errors import ArtifactError, DataError
from llmcore.manifest import Manifest, plain_config, verify_artifact, write_manifest
from llmcore.storage import TEMPORARY, commit_directory, remove


class Made(NamedTuple):
    """An artifact, and whether it was there before."""

    manifest: Manifest
    existed: bool


class Content(NamedTuple):
    """What a maker wrote: file names and counts."""

    files: Sequence[str]
    counts: Mapping[str, int]


def make_artifact(
    out: Path,
    write: Callable[[Path], Content],
    *,
    kind: str,
    made_by: str,
    config: Config,
    parents: Mapping[str, Manifest],
) -> Made:
    """Let `write` fill a folder that becomes `out`; an `out` of the same settings and inputs is left as it is."""
    if (out / "manifest.json").exists():
        return Made(recognise(out, kind=kind, config=config, parents=parents), existed=True)
    remove_dead(out)
    with commit_directory(out) as folder:
        content = write(folder)
        manifest = write_manifest(
            folder,
            kind=kind,
            made_by=made_by,
            config=config,
            parents=parents,
            counts=content.counts,
            files=content.files,
        )
    return Made(manifest, existed=False)


def recognise(out: Path, *, kind: str, config: Config, parents: Mapping[str, Manifest]) -> Manifest:
    """The manifest of what `out` holds, if that is what would be made."""
    manifest = verify_artifact(out)
    differences = []
    if manifest.kind != kind:
        differences.append(f"a {manifest.kind}")
    wanted = plain_config(config)
    for name in sorted(wanted.keys() | manifest.config.keys()):
        if wanted.get(name) != manifest.config.get(name):
            differences.append(f"{name}={manifest.config.get(name)!r} (now {wanted.get(name)!r})")
    if {role: parent.id for role, parent in parents.items()} != {r: p.id for r, p in manifest.parents.items()}:
        differences.append("other inputs")
    if differences:
        raise ArtifactError(f"{out} holds another run: {', '.join(differences)}", hint="choose another --out")
    return manifest


def remove_dead(out: Path) -> None:
    """Remove what a killed process left of this output."""
    for path in out.parent.glob(f"{TEMPORARY}{out.name}-*"):
        number = path.name.rpartition("-")[2]
        if number.isdigit() and not is_running(int(number)):
            remove(path)


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def refuse_losses(dropped: Mapping[str, int], total: int, allowed: float, unit: str) -> None:
    """Dropping more than is allowed is an error that names the reasons."""
    lost = sum(dropped.values())
    if lost > allowed * total:
        reasons = ", ".join(f"{name} {count:,}" for name, count in dropped.items() if count)
        raise DataError(
            f"{lost:,} of {total:,} {unit} would be dropped ({reasons}), more than {allowed:.1%}",
            hint=f"mend the input, or allow it with max_dropped={min(1.0, lost / total + 0.005):.2f}",
        )
