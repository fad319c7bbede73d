"""PyTorch's profiler on chosen steps: a trace for Perfetto, and a table of the costliest operators."""

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from llmcore.storage import disk_error

ROWS = 25


class Profiling:
    """Traces the steps `first` to `last`, counted from 1, into `folder`; the run itself stays the same."""

    def __init__(self, folder: Path, *, first: int, last: int) -> None:
        self.folder, self.first, self.last = folder, first, last
        self.traced_from = 0
        self.profiler: profile | None = None

    def before(self, step: int) -> None:
        """Begin, if `step` is to be traced and nothing is yet."""
        if self.profiler is None and self.first <= step <= self.last:
            activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
            self.profiler = profile(activities=activities)
            self.profiler.start()
            self.traced_from = step

    def after(self, step: int) -> str | None:
        """End after the last step; where the trace is, once it is there."""
        return self.finish(step) if self.profiler is not None and step >= self.last else None

    def finish(self, step: int) -> str | None:
        """Write what was traced, if anything was."""
        if self.profiler is None:
            return None
        profiler, self.profiler = self.profiler, None
        profiler.stop()
        name = f"steps-{self.traced_from}-{step}"
        order = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            profiler.export_chrome_trace(str(self.folder / f"{name}.json"))
            table = profiler.key_averages().table(sort_by=order, row_limit=ROWS)
            (self.folder / f"{name}.txt").write_text(table, encoding="utf-8")
        except OSError as error:
            raise disk_error(self.folder, error) from error
        where = f"{self.folder / name}.json (open it in ui.perfetto.dev), {name}.txt"
        return f"traced steps {self.traced_from} to {step}: {where}"
