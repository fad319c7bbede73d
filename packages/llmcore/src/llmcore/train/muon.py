"""Muon: momentum whose matrices are made orthogonal before they are added (Jordan 2024), and AdamW for the rest.

An update with singular values all near 1 moves a matrix in every direction it has, instead of in the few that dominate
the gradient. https://kellerjordan.github.io/posts/muon; the size of the update is that of Liu et al. (2025),
arXiv:2502.16982, section 2.2: its root mean square is AdamW's, so that one rate and one decay serve both.

torch has a Muon too. It is the test's oracle and not what runs here: it refuses stacks of matrices (the experts of a
mixture), takes one matrix at a time, and would be a second optimizer beside the AdamW that all other weights need.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from llmcore.train.quick import Closure, QuickAdamW

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""a, b, c of X <- aX + b(XXᵀ)X + c(XXᵀ)²X: the steepest at zero, so that small singular values grow fastest."""

SMALLEST_NORM = 1e-7


class MuonAdamW(QuickAdamW):
    """Groups with `muon` set get orthogonal updates, all others AdamW's; one state, one list of groups."""

    # AdamW's own looks for its step count in the state of every weight.
    __setstate__ = torch.optim.Optimizer.__setstate__

    @torch.no_grad()
    def step(self, closure: Closure = None) -> Any:
        """One update."""
        every = self.param_groups
        hidden = [group for group in every if group["muon"]]
        try:
            self.param_groups = [group for group in every if not group["muon"]]
            loss = super().step(closure)
        finally:
            self.param_groups = every
        for group in hidden:
            self.update(group)
        return loss

    def update(self, group: dict[str, Any]) -> None:
        """Move the weights of one group, all of one shape together."""
        by_shape: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
        for weight in group["params"]:
            if weight.grad is not None:
                by_shape[tuple(weight.shape)].append(weight)
        for shape, weights in by_shape.items():
            towards = [self.direction(weight, group) for weight in weights]
            updates = orthogonal(towards, steps=group["ns_steps"])
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(weights, updates, alpha=-group["lr"] * 0.2 * math.sqrt(max(shape[-2:])))

    def direction(self, weight: Tensor, group: dict[str, Any]) -> Tensor:
        """The gradient's running mean; with Nesterov's look ahead."""
        assert weight.grad is not None
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        mean: Tensor = state["momentum_buffer"]
        mean.lerp_(weight.grad, 1 - group["momentum"])
        return weight.grad.lerp(mean, group["momentum"]) if group["nesterov"] else mean


def orthogonal(matrices: Sequence[Tensor], *, steps: int) -> list[Tensor]:
    """Matrices of one shape (m, n), or stacks of them (E, m, n) -> for USVᵀ about UVᵀ, in their dtype.

    Newton–Schulz in bfloat16 on a GPU; a CPU has it in the dtype of the matrices, where bfloat16 may be emulated.
    """
    stack = torch.stack(list(matrices))
    dtype = torch.bfloat16 if stack.is_cuda else stack.dtype
    flat = stack.flatten(0, -3)  # (E, m, n), or (·E, m, n) of stacks
    x = newton_schulz(flat.to(dtype), steps=steps).to(stack.dtype)
    return list(x.view(stack.shape).unbind())


def newton_schulz(x: Tensor, *, steps: int) -> Tensor:
    """(E, m, n) -> (E, m, n): singular values go to about 1 (0.7 to 1.2 after five steps)."""
    a, b, c = COEFFICIENTS
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=SMALLEST_NORM)
    for _ in range(steps):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
