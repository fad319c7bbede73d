"""What our programs ask of the process they run in. For programs alone: importing a package of ours changes nothing."""

import ctypes
import os

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt."""
LARGEST_KEPT = 2**31 - 1


def prepare_process() -> None:
    """To be called before torch is imported."""
    share_the_cores()
    keep_freed_memory()


def share_the_cores() -> None:
    """Keep torch's threads from spinning long at each barrier.

    On cores that other processes use too, libgomp's default of some milliseconds makes training up to ten times slower
    (a thread spins through the time slice that its partner waits for); alone it gains nothing that we could measure.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def keep_freed_memory() -> None:
    """Have glibc keep what large tensors leave for the next ones, instead of handing it back to the kernel.

    The kernel clears each page that it gives: a step with 32,000 tokens of vocabulary met 100,000 fresh pages and spent
    a fifth of its time on them. The peak of memory stays what it was. Where `malloc` is another, nothing happens, and
    where MALLOC_… or GLIBC_TUNABLES in the environment say otherwise, they are left the last word.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(MMAP_THRESHOLD, LARGEST_KEPT)
        mallopt(TRIM_THRESHOLD, LARGEST_KEPT)
