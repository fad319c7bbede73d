"""What this machine can do for a training run, and what stands in the way."""

import os
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, NamedTuple

from llmcore.extensions import all_offers

PACKAGES = ("llmcore", "llmdata", "llmpretrain", "llmmoe", "llmsft", "llmreward", "llmrl")
LIBRARIES = ("torch", "safetensors", "tokenizers", "pydantic", "typer", "tensorboard")
LOW_DISK = 5 << 30


class Finding(NamedTuple):
    """One thing looked at."""

    state: Literal["OK", "WARN", "FAIL"]
    subject: str
    detail: str


def checkup() -> list[Finding]:
    """Look at libraries, devices, number formats, threads, disk, and the packages of this project."""
    return [*libraries(), *devices(), *threads(), disk(), *packages(), *parts()]


def libraries() -> list[Finding]:
    return [installed_version(name, "uv sync") for name in LIBRARIES]


def installed_version(name: str, mend: str) -> Finding:
    try:
        return Finding("OK", name, version(name))
    except PackageNotFoundError:
        return Finding("WARN", name, f"not installed; to have it: {mend}")


def devices() -> list[Finding]:
    import torch

    from llmcore.train.device import resolve

    found = [Finding("OK", "auto", resolve("auto", "auto").reason)]
    if torch.cuda.is_available():
        name, memory = torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory
        found.append(Finding("OK", "gpu", f"{name}, {memory / 2**30:.0f} GiB"))
    return found


def threads() -> list[Finding]:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = torch.get_num_threads()
    busy = os.getloadavg()[0]
    found = [Finding("OK", "threads", f"{count} of {cores} cores")]
    if count > cores:
        found = [Finding("WARN", "threads", f"{count} threads on {cores} cores: set OMP_NUM_THREADS={cores}")]
    if busy > cores / 2:
        detail = f"{busy:.1f} on {cores} cores: other work slows training; OMP_WAIT_POLICY=PASSIVE softens it"
        found.append(Finding("WARN", "load", detail))
    return found


def disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free
    state: Literal["OK", "WARN"] = "OK" if free > LOW_DISK else "WARN"
    return Finding(state, "disk", f"{free / 2**30:.0f} GiB free here")


def packages() -> list[Finding]:
    return [installed_version(name, f"install packages/{name} of this repository") for name in PACKAGES]


def parts() -> list[Finding]:
    """The parts that installed packages add."""
    return [Finding("OK", entry.group, f"{entry.name} ({entry.value})") for entry in all_offers()]
