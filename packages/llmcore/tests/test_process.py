"""What our programs ask of their process."""

import os
import resource
import subprocess
import sys

import pytest

# Faults of pages while large tensors come and go: with the memory kept there are next to none after some rounds.
FAULTS = """
import resource, sys
from llmcore.process import prepare_process
if sys.argv[1] == "prepared":
    prepare_process()
import torch
fewest = 10**9
for round in range(12):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    kept = [torch.ones(10 << 20) for _ in range(3)]
    del kept
    fewest = min(fewest, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(fewest)
"""


def faults(how: str, **environment: str) -> int:
    process = subprocess.run(
        [sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True, env=os.environ | environment
    )
    return int(process.stdout)


@pytest.mark.skipif(not hasattr(os, "confstr") or "CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="needs glibc")
def test_memory_of_large_tensors_is_kept_for_the_next() -> None:
    pages = 3 * (10 << 20) * 4 // resource.getpagesize()
    assert faults("plain") > pages / 2
    assert faults("prepared") < pages / 100
    assert faults("prepared", MALLOC_ARENA_MAX="2") > pages / 2, "the environment has the last word"
