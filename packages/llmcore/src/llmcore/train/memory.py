"""Memory: how much a run holds, and what to say when there is not enough."""

from __future__ import annotations

import contextlib
import errno
import resource
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from llmcore.errors import TrainingError

if TYPE_CHECKING:
    import torch

WORDS = ("not enough memory", "can't allocate memory", "out of memory", "Cannot allocate memory")
"""How torch and the operating system say it, where the error has no class of its own."""


@contextlib.contextmanager
def memory_advice(doing: str, *, lower: str) -> Iterator[None]:
    """Turn a failed allocation into one sentence; `lower` names the settings that help."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        raise out_of_memory(error, doing, lower=lower) from error


def out_of_memory(
    error: BaseException,
    doing: str = "",
    *,
    lower: str = "train.micro_batch, model.context or model.width; the number or length of samples, if it only samples",
) -> TrainingError:
    """The one sentence for an allocation that failed."""
    reason = (str(error).splitlines() or ["allocation failed"])[0]
    return TrainingError(f"not enough memory{doing and f' for {doing}'}: {reason}", hint=f"lower {lower}")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on whatever device."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(word in str(error) for word in WORDS)


def peak_bytes(device: torch.device) -> int:
    """The most memory held so far: of the GPU on CUDA, else of this process."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
