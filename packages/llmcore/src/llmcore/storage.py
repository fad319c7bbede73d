"""Durable writes: what was announced survives `kill -9` and power loss.

One protocol for every artifact: write under a temporary name, fsync each file, rename, fsync the parent folder.
Deleting is a commit too: rename first, then remove. Nothing here knows what the bytes mean.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from llmcore.errors import ArtifactError, LLMError

TEMPORARY = ".tmp-"
"""Every name that is not yet, or no longer, part of an artifact begins with this."""

CHUNK = 1 << 20


def write_durably(path: Path, data: bytes) -> None:
    """Replace one file by `data`, whole or not at all."""
    temporary = path.with_name(f"{TEMPORARY}{path.name}-{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise disk_error(path, error) from error
    sync_folder(path.parent)


@contextlib.contextmanager
def commit_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary folder; at the end of the block it becomes `path`, complete and fsynced."""
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ArtifactError(f"{path} exists already", hint="choose another folder to write to, or remove it")
    temporary = path.with_name(f"{TEMPORARY}{path.name}-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        yield temporary
        sync_tree(temporary)
        if path.is_dir():
            path.rmdir()
        temporary.rename(path)
        sync_folder(path.parent)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise disk_error(path, error) from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def remove_durably(path: Path) -> None:
    """Take a folder or file away: at no instant is it half there under its own name."""
    doomed = path.with_name(f"{TEMPORARY}del-{path.name}-{os.getpid()}")
    path.rename(doomed)
    sync_folder(path.parent)
    remove(doomed)


def remove_leftovers(folder: Path) -> list[str]:
    """Remove what a killed process left under temporary names in `folder`; the names removed."""
    leftovers = sorted(folder.glob(f"{TEMPORARY}*")) if folder.is_dir() else []
    for path in leftovers:
        remove(path)
    return [path.name for path in leftovers]


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync_tree(folder: Path) -> None:
    """fsync every file below a folder, then the folders; files get the mode that the umask allows."""
    mode = 0o666 & ~current_umask()
    for root, _, names in os.walk(folder):
        for name in names:
            descriptor = os.open(Path(root, name), os.O_RDONLY)
            try:
                os.fchmod(descriptor, mode)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_folder(Path(root))


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def current_umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def sha256_file(path: Path) -> str:
    """SHA-256 of a regular file, read in pieces."""
    digest = hashlib.sha256()
    with open_regular(path) as descriptor:
        while piece := os.read(descriptor, CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def read_regular(path: Path, *, limit: int) -> bytes:
    """The bytes of a regular file of at most `limit` bytes; a folder, FIFO, device or dangling link is refused."""
    with open_regular(path) as descriptor:
        size = os.fstat(descriptor).st_size
        if size > limit:
            raise ArtifactError(
                f"{path} has {size:,} bytes, more than the {limit:,} such a file can have",
                hint="is it the file you mean? otherwise restore it from a copy",
            )
        with os.fdopen(os.dup(descriptor), "rb") as file:
            return file.read(limit + 1)


@contextlib.contextmanager
def open_regular(path: Path) -> Iterator[int]:
    """A descriptor of a regular file; never blocks on a FIFO."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        raise ArtifactError(f"{path}: no such file", hint="check the path, or restore the file from a copy") from None
    except OSError as error:
        raise ArtifactError(
            f"{path} cannot be read: {error.strerror}", hint="check its rights and its disk, or restore it from a copy"
        ) from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ArtifactError(
                f"{path} is not a regular file",
                hint="put the file itself there: no folder, pipe, device or dangling link",
            )
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def lock_directory(folder: Path) -> Iterator[str]:
    """Hold a folder for this process; the lock dies with the process, so none is ever stale.

    Yields who held it last and died without letting go (`kill -9`, a power failure), or nothing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666 & ~current_umask())
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 200).decode("utf-8", "replace").strip() or "another process"
            raise LLMError(f"{folder} is in use by {holder}", hint="wait for it, or choose another --out") from None
        died = os.read(descriptor, 200).decode("utf-8", "replace").strip()
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        try:
            yield died
        finally:
            os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def check_free_space(folder: Path, needed: int) -> None:
    """Raise before a write that cannot fit, not after two hours of it."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise LLMError(
            f"{folder}: {needed:,} bytes are needed and {free:,} are free",
            hint="free some space and give the same command again: it goes on where it stopped",
        )


def disk_error(path: Path, error: OSError) -> LLMError:
    """The one sentence for a disk that is full, read-only or failing."""
    reasons = {
        errno.ENOSPC: "the disk is full",
        errno.EDQUOT: "the disk quota is used up",
        errno.EROFS: "the disk is read-only",
        errno.EACCES: "permission denied",
        errno.EIO: "the disk failed (input/output error)",
    }
    reason = reasons.get(error.errno or 0, error.strerror or str(error))
    return LLMError(
        f"{path} could not be written: {reason}",
        hint="mend that and give the same command again; what was saved before is untouched",
    )
