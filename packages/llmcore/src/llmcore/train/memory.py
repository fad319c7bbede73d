"""Memory: how much a run holds, and what to say when there is not enough."""

import contextlib
import resource
import sys
from collections.abc import Iterator

import torch

from llmcore.errors import TrainingError


@contextlib.contextmanager
def memory_advice(doing: str) -> Iterator[None]:
    """Turn a failed allocation into one sentence with the settings that help."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        reason = (str(error).splitlines() or ["allocation failed"])[0]
        raise TrainingError(
            f"not enough memory for {doing}: {reason}",
            hint="lower train.micro_batch (the update stays the same), model.context or model.width",
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    words = ("not enough memory", "can't allocate memory", "out of memory")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(word in str(error) for word in words)


def peak_bytes(device: torch.device) -> int:
    """The most memory held so far: of the GPU on CUDA, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
