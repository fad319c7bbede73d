"""Model FLOPs utilisation: what a step computes, as a share of what this device does in plain matrix products.

The peak is measured, not looked up: the best of some products in the precision of the activations, in about 0.3 s.
"""

import time

import torch
from torch import nn

from llmcore.model.size import flops_per_token
from llmcore.model.transformer import Transformer

BUDGET_SECONDS = 0.3
SIZES = {"cpu": 1024, "cuda": 8192, "mps": 4096}


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the best square product within the budget."""
    size = SIZES.get(device.type, 1024)
    a, b = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty(size, size, device=device, dtype=dtype)
    best = float("inf")
    deadline = time.perf_counter() + BUDGET_SECONDS
    rounds = 0
    while rounds < 3 or time.perf_counter() < deadline:
        synchronize(device)
        started_at = time.perf_counter()
        torch.mm(a, b, out=out)
        synchronize(device)
        best = min(best, time.perf_counter() - started_at)
        rounds += 1
    return 2 * size**3 / best


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def training_flops(model: nn.Module) -> int | None:
    """Training FLOPs of a token at the model's full context; None of a model that is not ours.

    Rows shorter than the context cost a little less attention than this counts.
    """
    ours = next((module for module in model.modules() if isinstance(module, Transformer)), None)
    return None if ours is None else flops_per_token(ours)
