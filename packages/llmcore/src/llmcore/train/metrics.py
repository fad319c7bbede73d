"""What a run measured: `metrics.jsonl` is the truth, one JSON object a step; TensorBoard shows the same."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmcore.errors import ArtifactError
from llmcore.storage import disk_error, sync_folder

Row = Mapping[str, float | int | None]


class MetricsFile:
    """The metrics of a run, cut at the step it goes on from: no step is repeated, none missing, no line half."""

    def __init__(self, path: Path, *, start: int) -> None:
        """Open for steps after `start`."""
        self.path = path
        rows, self.abandoned = kept_rows(path, start)
        self.last: dict[str, float | int | None] = dict(rows[-1]) if rows else {}
        self.end = sum(len(encode(row)) for row in rows[:-1])
        try:
            self.file = path.open("r+b" if path.exists() else "w+b", buffering=0)
            self.file.truncate(self.end)
            self.write(self.last)
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
                raise OSError(28, os.strerror(28))
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


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Every line of a metrics file."""
    return kept_rows(path, None)[0]


def kept_rows(path: Path, start: int | None) -> tuple[list[dict[str, Any]], int | None]:
    """(the lines up to step `start`, the last step beyond it, which a run that died had reached)."""
    if not path.exists():
        return [], None
    rows: list[dict[str, Any]] = []
    beyond: int | None = None
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1], 1):  # what follows the last newline is half a line, or nothing
        try:
            row = json.loads(line)
            step = int(row["step"])
        except (ValueError, TypeError, KeyError, RecursionError):
            raise ArtifactError(f"{path}:{number}: not a line of metrics", hint="remove that line") from None
        if start is None or step <= start:
            rows.append(row)
        else:
            beyond = step
    return rows, beyond


def encode(row: Row) -> bytes:
    """One line; JSON has no NaN, so a figure that is none becomes null."""
    clean = {k: v if v is None or math.isfinite(v) else None for k, v in row.items()}
    return json.dumps(clean, allow_nan=False).encode() + b"\n"


class TensorBoard:
    """Event files for TensorBoard, where it is installed; steps a resumed run repeats are purged."""

    def __init__(self, folder: Path, *, start: int) -> None:
        # 0.15 s after torch, against seconds for anything that would look for TensorFlow.
        from tensorboard.compat.proto.event_pb2 import SessionLog
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self.writer = EventFileWriter(str(folder))
        if start:
            self.add_event(start + 1, session_log=SessionLog(status=SessionLog.START))

    def add(self, row: Row) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [
            Summary.Value(tag=tag(name), simple_value=value)
            for name, value in row.items()
            if name != "step" and value is not None
        ]
        self.add_event(int(row["step"] or 0), summary=Summary(value=values))

    def add_event(self, step: int, **content: Any) -> None:
        import time

        from tensorboard.compat.proto.event_pb2 import Event

        self.writer.add_event(Event(wall_time=time.time(), step=step, **content))

    def close(self) -> None:
        self.writer.close()


def open_tensorboard(folder: Path, *, start: int) -> TensorBoard | None:
    """A writer, if TensorBoard is installed (`llmcore[tb]`)."""
    try:
        return TensorBoard(folder, start=start)
    except ModuleNotFoundError:
        return None


def tag(name: str) -> str:
    """`val_loss` -> `val/loss`, `loss` -> `train/loss`."""
    return f"val/{name.removeprefix('val_')}" if name.startswith("val_") else f"train/{name}"
