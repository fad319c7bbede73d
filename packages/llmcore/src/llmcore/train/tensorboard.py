"""TensorBoard's event files, written without TensorFlow and without torch's writer (which imports much more)."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

# 0.15 s after torch, against seconds for anything that would look for TensorFlow.
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[import-untyped]
from tensorboard.compat.proto.summary_pb2 import (  # type: ignore[import-untyped]
    HistogramProto,
    Summary,
    SummaryMetadata,
)
from tensorboard.compat.proto.tensor_pb2 import TensorProto  # type: ignore[import-untyped]
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto  # type: ignore[import-untyped]
from tensorboard.compat.proto.types_pb2 import DT_STRING  # type: ignore[import-untyped]
from tensorboard.summary.writer.event_file_writer import EventFileWriter  # type: ignore[import-untyped]
from torch import Tensor

from llmcore.train.watchers import Row

BINS = 64


class EventFiles:
    """Event files of one start of a run; TensorBoard forgets what an earlier start wrote of steps after `start`."""

    def __init__(self, folder: Path, *, start: int) -> None:
        purge = folder.is_dir() and any(folder.iterdir())
        self.writer = EventFileWriter(str(folder))
        if purge:
            self.add_event(start + 1, session_log=SessionLog(status=SessionLog.START))

    def add(self, row: Row) -> None:
        values = [
            Summary.Value(tag=tag(name), simple_value=value)
            for name, value in row.items()
            if name != "step" and value is not None
        ]
        self.add_event(int(row["step"] or 0), summary=Summary(value=values))

    def histograms(self, step: int, values: Mapping[str, Tensor]) -> None:
        drawn = {name: histogram(tensor) for name, tensor in values.items()}
        summary = Summary(value=[Summary.Value(tag=name, histo=bars) for name, bars in drawn.items() if bars])
        self.add_event(step, summary=summary)

    def texts(self, step: int, texts: Sequence[tuple[str, str]]) -> None:
        values = []
        for number, (prompt, text) in enumerate(texts):
            plugin = SummaryMetadata.PluginData(plugin_name="text")
            content = f"**{prompt}**{text}".encode()
            tensor = TensorProto(
                dtype=DT_STRING,
                string_val=[content],
                tensor_shape=TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)]),
            )
            metadata = SummaryMetadata(plugin_data=plugin)
            values.append(Summary.Value(tag=f"samples/{number}", metadata=metadata, tensor=tensor))
        self.add_event(step, summary=Summary(value=values))

    def add_event(self, step: int, **content: Any) -> None:
        self.writer.add_event(Event(wall_time=time.time(), step=step, **content))

    def close(self) -> None:
        self.writer.close()


def histogram(values: Tensor) -> HistogramProto | None:
    """The spread of a tensor's numbers in equal bins; none if it is empty or not finite."""
    flat = values.detach().flatten().float().cpu()
    if not flat.numel() or not bool(flat.isfinite().all()):
        return None
    low, high = float(flat.min()), float(flat.max())
    if low == high:
        low, high = low - 0.5, high + 0.5
    counts = torch.histc(flat, BINS, low, high)
    edges = torch.linspace(low, high, BINS + 1)[1:]
    return HistogramProto(
        min=float(flat.min()),
        max=float(flat.max()),
        num=flat.numel(),
        sum=float(flat.double().sum()),
        sum_squares=float(flat.double().square().sum()),
        bucket_limit=edges.tolist(),
        bucket=counts.tolist(),
    )


def tag(name: str) -> str:
    """`val_loss` -> `val/loss`, `loss` -> `train/loss`."""
    return f"val/{name.removeprefix('val_')}" if name.startswith("val_") else f"train/{name}"
