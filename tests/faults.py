"""A disk that fails where a test wants it: every file operation of this process below a folder is counted.

`Disk` puts itself between the process and the operating system's calls that change files. After the k-th it can end the
process as `kill -9` does, or as a power failure does: of what was not yet synced, nothing is sure to be there. Or it
refuses every operation from the k-th on. Meant for a forked child, which it never leaves.
"""

# No pathlib here: it goes through the very functions that are replaced.

import builtins
import errno
import io
import os
import random
import shutil
import signal
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ON_PATHS = ("mkdir", "rmdir", "unlink", "remove", "rename", "replace", "open")
ON_DESCRIPTORS = ("fsync", "pwrite", "write", "ftruncate")
WRITING = os.O_WRONLY | os.O_RDWR


class Disk:
    """Counts the operations on files below `root`, and acts on the `last`-th: see `kill`, `cut_power`, `refuse`."""

    def __init__(self, root: Path, *, last: int = 0, act: Callable[["Disk"], None] | None = None) -> None:
        self.root, self.last, self.act = str(root.resolve()), last, act
        self.names: list[str] = []
        self.refusal: int | None = None
        self.undo: list[tuple[str, Callable[[], None]]] = []
        """Of each change of a folder that is not synced yet: the folder, and what takes the change back."""
        self.synced: dict[int, bytes] = {}
        """What is surely on the disk, by the number of the file."""
        self.real: dict[str, Any] = {}

    def install(self) -> "Disk":
        """From here on, for as long as this process lives."""
        for path in Path(self.root).rglob("*"):
            if path.is_file():
                self.synced[path.stat().st_ino] = path.read_bytes()
        for name in (*ON_PATHS, *ON_DESCRIPTORS):
            self.real[name] = getattr(os, name)
            setattr(os, name, self.on_path(name) if name in ON_PATHS else self.on_descriptor(name))
        self.real["file"] = io.open
        builtins.open = io.open = self.open_file  # type: ignore[assignment]
        return self

    def below(self, path: object, folder: int | None = None) -> str | None:
        """The whole path, if it is below the root."""
        if isinstance(path, int):
            try:
                whole = os.readlink(f"/proc/self/fd/{path}")
            except OSError:
                return None
        else:
            base = os.getcwd() if folder is None else os.readlink(f"/proc/self/fd/{folder}")
            whole = os.path.normpath(os.path.join(base, os.fspath(path)))  # type: ignore[call-overload]
        return whole if whole == self.root or whole.startswith(f"{self.root}/") else None

    def on_path(self, name: str) -> Callable[..., Any]:
        real = self.real[name]

        def operation(path: Any, *more: Any, **named: Any) -> Any:
            place = self.below(path, named.get("dir_fd") or named.get("src_dir_fd"))
            if place is None or (name == "open" and not (more and more[0] & WRITING)):
                return real(path, *more, **named)
            self.check(place)
            back = self.way_back(name, place, *more)
            result = real(path, *more, **named)
            self.done(name, place, back)
            return result

        return operation

    def on_descriptor(self, name: str) -> Callable[..., Any]:
        real = self.real[name]

        def operation(descriptor: Any, *more: Any) -> Any:
            place = self.below(descriptor) if isinstance(descriptor, int) else None
            if place is None:
                return real(descriptor, *more)
            self.check()
            result = real(descriptor, *more)
            if name == "fsync":
                self.note_sync(descriptor, place)
            self.done(name, place)
            return result

        return operation

    def open_file(self, file: Any, mode: str = "r", *more: Any, **named: Any) -> Any:
        place = None if isinstance(file, int) else self.below(file)
        if place is None or mode.strip("bt") == "r":
            return self.real["file"](file, mode, *more, **named)
        self.check(place)
        back = self.way_back("open", place)
        result = self.real["file"](file, mode, *more, **named)
        self.done("open", place, back)
        return result

    # What a power failure may take back

    def way_back(self, name: str, place: str, *more: Any) -> Callable[[], None] | None:
        """What undoes a change of a folder."""
        if name == "open":
            return None if os.path.lexists(place) else lambda: remove_file(place, self.real["unlink"])
        if name == "mkdir":
            return lambda: shutil.rmtree(place, ignore_errors=True)
        if name == "rmdir":
            return lambda: self.real["mkdir"](place)
        if name in ("rename", "replace"):
            target = str(self.below(more[0]))
            return partial(self.rename_back, place, target, self.last_content(target))
        return partial(self.put, place, self.last_content(place) or b"")

    def rename_back(self, source: str, target: str, before: bytes | None) -> None:
        self.real["rename"](target, source)
        if before is not None:
            self.put(target, before)

    def last_content(self, place: str) -> bytes | None:
        """What of a file that is about to go is surely on the disk."""
        if not os.path.isfile(place):
            return None
        return self.synced.pop(os.stat(place).st_ino, b"")

    def note_sync(self, descriptor: int, place: str) -> None:
        """A file's content is safe; or the names in a folder are, and all changes before the last of them."""
        facts = os.fstat(descriptor)
        if not stat.S_ISDIR(facts.st_mode):
            self.synced[facts.st_ino] = self.read(f"/proc/self/fd/{descriptor}")
            return
        safe = [number for number, (folder, _) in enumerate(self.undo, 1) if folder == place]
        del self.undo[: max(safe, default=0)]

    def put(self, place: str, content: bytes) -> None:
        with self.real["file"](place, "wb") as file:
            file.write(content)

    def read(self, place: str) -> bytes:
        with self.real["file"](place, "rb") as file:
            content: bytes = file.read()
            return content

    # What happens at the last operation

    def check(self, *places: str) -> None:
        if self.refusal is not None:
            raise OSError(self.refusal, os.strerror(self.refusal), *places)

    def done(self, name: str, place: str, back: Callable[[], None] | None = None) -> None:
        if back is not None:
            self.undo.append((os.path.dirname(place), back))
        self.names.append(f"{name} {place[len(self.root) :]}")
        if len(self.names) == self.last and self.act is not None:
            self.act(self)

    def kill(self) -> None:
        """kill -9."""
        os.kill(os.getpid(), signal.SIGKILL)

    def cut_power(self, chance: random.Random) -> None:
        """What was not synced is there, in part there, or not; then the process is gone."""
        kept = chance.randint(0, len(self.undo))
        for root, _, names in os.walk(self.root):
            for name in names:
                self.tear(os.path.join(root, name), chance)
        for _, back in reversed(self.undo[kept:]):
            back()
        self.kill()

    def tear(self, place: str, chance: random.Random) -> None:
        """One file as the power failure leaves it: beyond what was synced, whole, cut short, or zeros."""
        now, safe = self.read(place), self.synced.get(os.stat(place).st_ino, b"")
        if now == safe:
            return
        alike = next((i for i, (a, b) in enumerate(zip(now, safe, strict=False)) if a != b), min(len(now), len(safe)))
        cut = chance.randint(alike, len(now))
        self.put(place, chance.choice([now, safe, now[:cut], now[:cut] + bytes(len(now) - cut)]))

    def refuse(self, number: int = errno.EIO) -> None:
        """Every operation from here on fails."""
        self.refusal = number


def remove_file(place: str, unlink: Callable[[str], None]) -> None:
    if os.path.lexists(place):
        unlink(place)
