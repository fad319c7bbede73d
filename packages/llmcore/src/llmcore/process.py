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

    On cores that other processes use too, with libgomp's default of some milliseconds a thread spins through the time
    slice that its partner waits for; with too short a wait it falls asleep between two operations. Tokens/s of training
    and of sampling one row, two threads, two other busy processes on the two cores, by the number of turns: 1,930 and
    90 (300,000, the default), 2,750 and 227 (10,000), 3,450 and 174 (1,000). Alone, 10,000 sample 10 % more than 1,000.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def keep_freed_memory() -> None:
    """Have glibc keep what large tensors leave for the next ones, instead of handing it back to the kernel.

    The kernel clears each page that it gives: a step with 32,000 tokens of vocabulary met 100,000 fresh pages and spent
    a fifth of its time on them. The peak of memory stays what it was where batches are alike; where they are ragged it
    may grow (the largest process of the quickstart: from 2.8 to 3.2 GiB). Where `malloc` is another, nothing happens,
    and where MALLOC_… or GLIBC_TUNABLES in the environment say otherwise, they are left the last word.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(MMAP_THRESHOLD, LARGEST_KEPT)
        mallopt(TRIM_THRESHOLD, LARGEST_KEPT)
