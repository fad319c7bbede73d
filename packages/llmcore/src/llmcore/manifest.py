"""The manifest: what an artifact is, where it came from, and the hashes of its files.

Written last: without `manifest.json` a folder is no artifact. It carries its parents' whole manifests, so every
artifact knows its family tree and no registry is needed. `id` names the entire history: a hash of kind, config,
parents' ids and file hashes, so that identical runs have identical ids.
"""

import functools
import hashlib
import json
import math
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import Field, JsonValue, ValidationError

from llmcore.config import Config
from llmcore.errors import ArtifactError, ExtensionError
from llmcore.storage import read_regular, sha256_file, write_durably

NAME = "manifest.json"
CHECKSUM = "checksum"
SCHEMA_VERSION = 1
LARGEST = 16 << 20


class FileEntry(Config):
    """One file of an artifact."""

    bytes: int = Field(ge=0)
    """Its size."""
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    """Its SHA-256."""


class Manifest(Config):
    """What an artifact is and where it came from."""

    schema_version: int = SCHEMA_VERSION
    """The version of this format; readers refuse one they do not know."""
    kind: str
    """tokenizer, tokens, chats, preferences, prompts, policy, adapter, reward, snapshot, or file (a raw input)."""
    made_by: str
    """The command that made it, as `llmsft run`."""
    made_at: str = ""
    """When, in UTC; not part of the identity."""
    command: str = ""
    """The command line, with relative paths; not part of the identity."""
    commit: str = ""
    """The git commit of the working folder, if it was one; not part of the identity."""
    config: dict[str, JsonValue] = {}
    """The complete resolved settings, without the paths of the inputs (those are the parents)."""
    parents: dict[str, "Manifest"] = {}
    """The whole manifests of what this was made from, by role."""
    places: dict[str, str] = {}
    """Where a parent that is needed again was, as seen from this folder; not part of the identity."""
    needs: dict[str, str] = {}
    """Extension packages, with versions, that are needed to load it."""
    metrics: dict[str, float] = {}
    """Final figures; not part of the identity."""
    counts: dict[str, int] = {}
    """Rows or tokens kept, and dropped by reason; not part of the identity."""
    environment: dict[str, str] = {}
    """What bit-exactness depends on: versions, threads, dtype; not part of the identity."""
    files: dict[str, FileEntry] = {}
    """Size and SHA-256 of each file, by name."""

    @property
    def id(self) -> str:
        """A name for the whole history: the same for identical runs."""
        identity = {
            "kind": self.kind,
            "config": self.config,
            "parents": {role: parent.id for role, parent in sorted(self.parents.items())},
            "files": {name: entry.sha256 for name, entry in sorted(self.files.items())},
        }
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def write_manifest(
    folder: Path,
    *,
    kind: str,
    made_by: str,
    config: Config | Mapping[str, Any],
    files: Sequence[str],
    parents: Mapping[str, Manifest] | None = None,
    places: Mapping[str, str] | None = None,
    needs: Mapping[str, str] | None = None,
    metrics: Mapping[str, float] | None = None,
    counts: Mapping[str, int] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Manifest:
    """Hash `files` in `folder` and write its manifest: from that moment it is an artifact."""
    manifest = Manifest(
        kind=kind,
        made_by=made_by,
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command_line(),
        commit=git_commit(),
        config=plain_config(config),
        parents=dict(parents or {}),
        places=dict(places or {}),
        needs=dict(needs or {}),
        metrics={name: float(value) for name, value in (metrics or {}).items() if math.isfinite(value)},
        counts=dict(counts or {}),
        environment={"python": platform.python_version(), **(environment or {})},
        files={name: file_entry(folder / name) for name in files},
    )
    write_durably(folder / NAME, with_checksum(manifest))
    return manifest


def read_manifest(folder: Path, *, expect: str | None = None) -> Manifest:
    """The manifest of an artifact, checked for version, kind and the presence and size of its files."""
    manifest = parse_manifest(folder)
    if expect is not None and manifest.kind != expect:
        raise ArtifactError(
            f"{folder} holds {article(manifest.kind)} (made by {manifest.made_by}), {article(expect)} "
            f"{'are' if expect.endswith('s') else 'is'} needed here",
            hint=f"give a folder that holds {article(expect)}",
        )
    for name, entry in manifest.files.items():
        check_size(folder, name, entry)
    return manifest


def article(kind: str) -> str:
    """`policy` -> `a policy`; `chats` and other plurals stay as they are."""
    return kind if kind.endswith("s") else f"{'an' if kind[:1] in 'aeiou' else 'a'} {kind}"


def verify_artifact(folder: Path, *, expect: str | None = None, leaving: Collection[str] = ()) -> Manifest:
    """Like `read_manifest`, and every file has the recorded SHA-256, but those that the caller verifies itself."""
    manifest = read_manifest(folder, expect=expect)
    for name, entry in manifest.files.items():
        if name not in leaving and sha256_file(folder / name) != entry.sha256:
            raise damaged(folder / name)
    return manifest


def damaged(path: Path) -> ArtifactError:
    """The error of a file that has not the hash in its manifest."""
    return ArtifactError(
        f"{path} is damaged: its SHA-256 is not the one in {NAME}",
        hint="restore it from a copy, or make the artifact again",
    )


def check_needs(manifest: Manifest, folder: Path) -> None:
    """Raise one sentence if an extension package that the artifact needs is not installed."""
    for package, wanted in manifest.needs.items():
        try:
            version(package)
        except PackageNotFoundError:
            raise ExtensionError(
                f"{folder} needs {package} {wanted}, which is not installed",
                hint=f"install it; if it is one of this repository, it is packages/{package}",
            ) from None


def describe_file(path: Path) -> Manifest:
    """An outside file as a parent: its name, size and hash."""
    return Manifest(kind="file", made_by="", files={path.name: file_entry(path)})


def family(manifest: Manifest, role: str = "") -> Iterator[tuple[int, str, Manifest]]:
    """(depth, role, manifest) of an artifact and all its ancestors, parents after children."""
    yield 0, role, manifest
    for parent_role, parent in manifest.parents.items():
        for depth, inner_role, ancestor in family(parent, parent_role):
            yield depth + 1, inner_role, ancestor


def parse_manifest(folder: Path) -> Manifest:
    path = folder / NAME
    if not folder.exists():
        raise ArtifactError(f"{str(folder)!r}: no such folder", hint="check the path")
    if not folder.is_dir():
        raise ArtifactError(f"{str(folder)!r} is a file; an artifact is a folder with a {NAME}", hint="give the folder")
    if not path.exists():
        raise ArtifactError(
            f"{folder} is no finished artifact: it has no {NAME}",
            hint="finish the command that makes it (give it again: it goes on), or check the path",
        )
    try:
        raw = json.loads(read_regular(path, limit=LARGEST).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is not valid JSON: {error}", hint="restore it from a copy") from None
    found = raw.get("schema_version") if isinstance(raw, dict) else None
    if found != SCHEMA_VERSION:
        raise ArtifactError(
            f"{path} has schema version {found!r}, this llmcore reads {SCHEMA_VERSION}",
            hint="use the llmcore that wrote it, or make the artifact again",
        )
    if CHECKSUM in raw and raw.pop(CHECKSUM) != checksum(raw):
        raise ArtifactError(f"{path} is damaged: it does not have its own checksum", hint="restore it from a copy")
    try:
        manifest = Manifest.model_validate(raw)
    except (ValidationError, RecursionError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": "too deep"}
        where = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(f"{path}: {where}: {first['msg']}", hint="restore it from a copy") from None
    for name in manifest.files:
        check_name(path, name)
    return manifest


def with_checksum(manifest: Manifest) -> bytes:
    """The file's content: the manifest, and last a checksum of all before it, since no other file vouches for it."""
    tree = manifest.model_dump(mode="json")
    return json.dumps({**tree, CHECKSUM: checksum(tree)}, indent=1, ensure_ascii=False).encode()


def checksum(tree: Mapping[str, Any]) -> str:
    """SHA-256 of the values, however they are spaced and ordered."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def check_name(path: Path, name: str) -> None:
    """A file named by a manifest lies inside the artifact."""
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in name or "\0" in name or not name:
        raise ArtifactError(
            f"{path} names {name!r}, which lies outside the artifact",
            hint="restore it from a copy, or make the artifact again",
        )


def check_size(folder: Path, name: str, entry: FileEntry) -> None:
    path = folder / name
    if not path.is_file():
        raise ArtifactError(
            f"{folder} lacks {name}, which its {NAME} names", hint="restore it, or make the artifact again"
        )
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ArtifactError(f"{path} is a link out of the artifact", hint="put the file itself there")
    if path.stat().st_size != entry.bytes:
        raise ArtifactError(
            f"{path} has {path.stat().st_size:,} bytes, {NAME} says {entry.bytes:,}: it is truncated or changed",
            hint="restore it from a copy, or make the artifact again",
        )


def file_entry(path: Path) -> FileEntry:
    return FileEntry(bytes=path.stat().st_size, sha256=sha256_file(path))


def plain_config(config: Config | Mapping[str, Any]) -> dict[str, JsonValue]:
    """The settings as JSON, without `inputs`: what a run is made from is its parents, not their paths."""
    tree = config.model_dump(mode="json") if isinstance(config, Config) else dict(config)
    tree.pop("inputs", None)
    return tree


SECRET_WORDS = ("token=", "key=", "password=", "secret=")
SECRET_OPTION = re.compile(r"--?([a-z]+[-_])*(token|key|password|secret)", re.IGNORECASE)


def command_line() -> str:
    """The command as typed, absolute paths made relative or shortened to their names, secrets removed."""
    words = [Path(sys.argv[0]).name, *sys.argv[1:]]
    hidden = ["…" if SECRET_OPTION.fullmatch(before) else word for before, word in pairwise(["", *words])]
    return shlex.join(harmless(word) for word in hidden)


ABSOLUTE_PATH = re.compile(r"(?<![\w./~])/[^\s*+'\"]+")


def harmless(word: str) -> str:
    """One word of a command line without absolute paths or secrets."""
    if any(secret in word.lower() for secret in SECRET_WORDS):
        return word.partition("=")[0] + "=…"
    return ABSOLUTE_PATH.sub(lambda match: shortened(Path(match[0])), word)


def shortened(path: Path) -> str:
    """An absolute path as seen from here; one that lies elsewhere by its name alone."""
    try:
        relative = os.path.relpath(path)
    except ValueError:
        return path.name
    return path.name if relative.startswith("..") else relative


@functools.cache
def git_commit() -> str:
    """The commit of the working folder, with `+` when it has uncommitted changes; empty where git knows none."""
    try:
        head = run_git("rev-parse", "HEAD")
        return head[:12] + ("+" if head and run_git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.TimeoutExpired):
        return ""


def run_git(*words: str) -> str:
    done = subprocess.run(["git", *words], capture_output=True, text=True, timeout=5, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""
