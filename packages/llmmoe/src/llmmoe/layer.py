"""The layer: tokens sorted by expert once, one product for all experts, and back in order."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from llmcore.model.linear import Spread, inputs_first
from llmmoe.config import MoE
from llmmoe.router import Router, balance_loss, z_loss


class MoELayer(nn.Module):
    """(B, T, D) -> (B, T, D); in training `aux_loss` holds the router's losses of the last forward."""

    def __init__(self, config: MoE, width: int) -> None:
        super().__init__()
        self.config = config
        self.router = Router(width, experts=config.experts, active=config.active)
        self.experts = Experts(width, config.hidden_width(width), experts=config.experts, active=config.active)
        self.aux_loss: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, -2)  # (N, D)
        routing = self.router(tokens)
        if self.training and torch.is_grad_enabled():
            self.aux_loss = self.config.balance * balance_loss(routing)
            if self.config.z_loss:
                self.aux_loss = self.aux_loss + self.config.z_loss * z_loss(routing)
        active = self.config.active
        assigned = routing.chosen.flatten()  # (N·K,)
        order = assigned.argsort(stable=True)
        inverse = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        counts = torch.bincount(assigned, minlength=self.config.experts)
        sorted_tokens: Tensor = Rearranged.apply(tokens, order, inverse, active)  # (N·K, D)
        sorted_outputs = self.experts(sorted_tokens, counts)
        outputs: Tensor = Rearranged.apply(sorted_outputs, inverse, order, 1)  # (N·K, D)
        shares = routing.proportions.to(x.dtype).unsqueeze(-1)
        mixed: Tensor = (outputs.view(-1, active, x.shape[-1]) * shares).sum(1)  # (N, D)
        return mixed.view(x.shape)


class Experts(nn.Module):
    """SwiGLU experts: (M, D) sorted by expert, and how many rows each expert has -> (M, D)."""

    def __init__(self, width: int, hidden: int, *, experts: int, active: int) -> None:
        super().__init__()
        self.gate_up = nn.Parameter(torch.empty(experts, 2 * hidden, width))
        self.down = nn.Parameter(torch.empty(experts, width, hidden))
        self.active = active
        self.held: tuple[Tensor, Tensor] | None = None

    def initialise(self, spread: Spread) -> None:
        nn.init.normal_(self.gate_up, std=spread.std)
        nn.init.normal_(self.down, std=spread.residual)

    @property
    def inactive_parameters(self) -> int:
        """Weights that a token is not multiplied with."""
        experts = len(self.gate_up)
        return (self.gate_up.numel() + self.down.numel()) * (experts - self.active) // experts

    def forward(self, x: Tensor, counts: Tensor) -> Tensor:
        gate_up, down = self.held or (self.gate_up.to(x.dtype), self.down.to(x.dtype))
        gate, up = grouped_product(x, gate_up, counts).chunk(2, dim=-1)
        return grouped_product(F.silu(gate) * up, down, counts)

    def hold(self, dtype: torch.dtype) -> None:
        self.held = inputs_first(self.gate_up, dtype), inputs_first(self.down, dtype)

    def release(self) -> None:
        self.held = None


class Rearranged(torch.autograd.Function):
    """Row i of the result is row order[i] // copies of x.

    The backward gathers too, by the inverse, and adds the copies: scattering is slower, and on a GPU it adds in
    an order that changes from run to run.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor, copies: int) -> Tensor:
        ctx.save_for_backward(inverse)
        ctx.copies = copies
        return x.index_select(0, order // copies if copies > 1 else order)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:
        (inverse,) = ctx.saved_tensors
        gathered = upstream.index_select(0, inverse)
        if ctx.copies > 1:
            gathered = gathered.view(-1, ctx.copies, upstream.shape[-1]).sum(1)
        return gathered, None, None, None


def grouped_product(x: Tensor, weights: Tensor, counts: Tensor) -> Tensor:
    """(M, inputs), (E, outputs, inputs) -> (M, outputs): the first counts[0] rows by weights[0], and so on."""
    if has_grouped_kernel(x):
        product: Tensor = F.grouped_mm(x, weights.mT, offs=counts.cumsum(0).to(torch.int32))
        return product
    return split_product(x, weights, counts)


def split_product(x: Tensor, weights: Tensor, counts: Tensor) -> Tensor:
    """The same, one expert at a time."""
    parts = zip(torch.split(x, counts.tolist()), weights.unbind(), strict=True)
    return torch.cat([part @ weight.mT for part, weight in parts])


def has_grouped_kernel(x: Tensor) -> bool:
    """Whether this PyTorch has a grouped product for these activations that beats one product for each expert.

    On a CPU it does in float32 alone. Milliseconds of a layer forward + backward, 2048 tokens, width 256, 8 experts,
    2 active, 1 thread of a Zen 5, dense / grouped / one by one: float32 38 / 52 / 56, bfloat16 22 / 42 / 36.
    """
    dtype = torch.float32 if x.device.type == "cpu" else torch.bfloat16
    return hasattr(F, "grouped_mm") and x.dtype == dtype and x.device.type in ("cpu", "cuda")
