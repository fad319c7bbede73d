"""Readings that benchmarks share: seconds of a call, of the whole machine, and memory of this process."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def timed(function: Callable[[], T]) -> tuple[float, T]:
    """Seconds that a call takes, and what it gives."""
    started_at = time.perf_counter()
    result = function()
    return time.perf_counter() - started_at, result


def busy_seconds() -> float:
    """CPU seconds that the whole machine has been busy; 0 where the kernel does not say."""
    try:
        ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    except OSError:
        return 0.0
    return (sum(ticks) - ticks[3] - ticks[4]) / float(os.sysconf("SC_CLK_TCK"))


def status_mib(name: str) -> float:
    """One memory figure of this process (VmRSS, VmHWM) in MiB."""
    rows = Path("/proc/self/status").read_text().splitlines()
    return next(int(row.split()[1]) / 1024 for row in rows if row.startswith(name))
