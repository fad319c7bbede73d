"""What a run measured: `metrics.jsonl` is the truth, one JSON object a step."""

import errno
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from llmcore.errors import ArtifactError
from llmcore.storage import disk_error, sync_folder

Row = Mapping[str, float | int | None]


class MetricsFile:
    """The metrics of a run, cut at the step it goes on from: no step is repeated, none missing, no line half."""

    def __init__(self, path: Path, *, start: int) -> None:
        """Open for steps after `start`."""
        self.path = path
        rows, self.abandoned = kept_rows(path, start)
        self.rows = [row.figures for row in rows]
        self.last: dict[str, float | int | None] = dict(rows[-1].figures) if rows else {}
        self.end = rows[-1].offset if rows else 0
        try:
            self.file = path.open("r+b" if path.exists() else "w+b", buffering=0)
            self.write(self.last)
            self.file.truncate(self.end + (len(encode(self.last)) if self.last else 0))
            self.sync()
            sync_folder(path.parent)
        except OSError as error:
            raise disk_error(path, error) from error

    def add(self, row: Row) -> None:
        """Append one step; figures of a step that is already the last join its line."""
        if self.last and row["step"] == self.last["step"]:
            self.last |= row
        else:
            self.end += len(encode(self.last)) if self.last else 0
            self.last = dict(row)
        self.write(self.last)

    def evaluated(self, step: int) -> bool:
        """Whether the last line is that of `step` and holds validation figures."""
        return self.last.get("step") == step and any(name.startswith("val_") for name in self.last)

    def write(self, row: Row) -> None:
        """Put the last line where it belongs: half a line after a full disk is overwritten, not followed."""
        line = encode(row) if row else b""
        try:
            written = os.pwrite(self.file.fileno(), line, self.end)
            if written != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise disk_error(self.path, error) from error

    def sync(self) -> None:
        """Make every line so far durable."""
        try:
            os.fsync(self.file.fileno())
        except OSError as error:
            raise disk_error(self.path, error) from error

    def close(self) -> None:
        self.sync()
        self.file.close()


class NoMetrics(MetricsFile):
    """What a process that does not write has in its place."""

    def __init__(self) -> None:
        self.last, self.abandoned, self.end, self.rows = {}, None, 0, []

    def write(self, row: Row) -> None:
        """Nowhere."""

    def sync(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Every line of a metrics file."""
    return [line.figures for line in kept_rows(path, None)[0]]


class Line(NamedTuple):
    """One line of a metrics file and where it begins."""

    offset: int
    figures: dict[str, Any]


def kept_rows(path: Path, start: int | None) -> tuple[list[Line], int | None]:
    """(the lines up to step `start`, the last step beyond it, which a start that died had reached)."""
    rows: list[Line] = []
    beyond: int | None = None
    damaged: int | None = None
    offset = 0
    content = path.read_bytes() if path.exists() else b""
    for number, line in enumerate(content.split(b"\n")[:-1], 1):  # behind the last newline is half a line, or nothing
        row = parse_row(line)
        if row is None or not all(is_figure(value) for value in row.values()):
            damaged = damaged or number
        elif start is not None and row["step"] > start:
            beyond = row["step"]
        elif damaged is not None:  # at the end it is what a power failure left; before a line to keep, it is a loss
            raise ArtifactError(f"{path}:{damaged}: not a line of metrics", hint="remove that line")
        else:
            rows.append(Line(offset, row))
        offset += len(line) + 1
    return rows, beyond


def parse_row(line: bytes) -> dict[str, Any] | None:
    """What one line says of its step, or None if it is damaged."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def is_figure(value: object) -> bool:
    """Whether a value is one that a line of metrics can have."""
    return value is None or isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)


def encode(row: Row) -> bytes:
    """One line; JSON has no NaN, so a figure that is none becomes null."""
    clean = {k: v if v is None or math.isfinite(v) else None for k, v in row.items()}
    return json.dumps(clean, allow_nan=False).encode() + b"\n"
