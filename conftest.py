"""What all tests share: one thread, set before torch is imported, and the same global state of torch for each test."""

import os
import sys
from collections.abc import Iterator

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For tests that fork, which leaves OpenMP's threads behind, and for thousands of tiny products."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def fresh_torch() -> Iterator[None]:
    """The global seed and the precision of fp32 products, which placing a model changes, begin alike in every test."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(0)
        torch.set_float32_matmul_precision("highest")
    yield
