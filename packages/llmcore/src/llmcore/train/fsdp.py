"""Weights, gradients and optimizer state in parts: torch's `fully_shard` around the blocks and around the whole.

A block's weights are gathered for its forward and its backward, in the precision of the activations. Losses call more
of a model than its forward, so the outermost unit is not the model but `loss_fn(model, batch)` itself: embedding, norms
and head are whole while any part of a loss runs. Collectives must meet: every rank takes equally many micro-batches,
repeating one, with weight 0, where it has none left; and whatever has a length of its own on each rank (sampling) reads
a gathered copy.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from llmcore.errors import ConfigError
from llmcore.losses import Loss
from llmcore.model.linear import Held
from llmcore.train.device import set_precision
from llmcore.train.distributed import Ranks, contact
from llmcore.train.parallel import Engine

if TYPE_CHECKING:
    from llmcore.train.device import Placement

M = TypeVar("M", bound=nn.Module)
B = TypeVar("B")


class Idle(NamedTuple, Generic[B]):
    """Another's micro-batch, for a rank that has none left: it keeps the others company and counts for nothing."""

    batch: B


class Step(nn.Module):
    """The outermost unit: its forward is the loss."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, loss_fn: Callable[[nn.Module, Any], Loss], batch: Any) -> Loss:
        return loss_fn(self.model, batch)


class Sharded(Engine):
    """The engine of `train.parallel=fsdp`."""

    sharded = True

    def __init__(self, ranks: Ranks, *, reshard: bool, offload: bool, wide: bool) -> None:
        super().__init__(ranks)
        self.reshard, self.offload, self.wide = reshard, offload, wide

    def place(self, model: nn.Module, placement: Placement) -> None:
        """Cut the model up; only one block at a time is whole on the device meanwhile."""
        for name, weight in model.named_parameters():
            if weight.ndim == 0:
                raise ConfigError(
                    f"{name} is a single number, which cannot be cut into parts (train.parallel=fsdp)",
                    hint="make it a row of one number, or set train.parallel=ddp",
                )
        set_precision(model, placement)
        self.device = placement.device
        self.empty = without_weights(model)
        mesh = init_device_mesh(placement.device.type, (self.ranks.size,))
        offload = CPUOffloadPolicy(pin_memory=placement.device.type == "cuda") if self.offload else OffloadPolicy()
        narrow = MixedPrecisionPolicy(
            param_dtype=None if self.wide else placement.dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
        one_precision = self.wide or placement.dtype == torch.float32
        for block in blocks(model):
            unit = block if one_precision else matrices(block)
            fully_shard(unit, mesh=mesh, reshard_after_forward=self.reshard, mp_policy=narrow, offload_policy=offload)
        self.step = Step(model)
        fully_shard(self.step, mesh=mesh, reshard_after_forward=False, offload_policy=offload)
        self.model = model

    def deal(self, micro_batches: Sequence[B]) -> Iterator[B]:
        """Every size-th micro-batch, and equally many for every rank."""
        mine = list(micro_batches)[self.ranks.rank :: self.ranks.size]
        yield from mine
        if len(mine) * self.ranks.size < len(micro_batches):
            yield cast(B, Idle(micro_batches[0]))

    def loss(self, model: M, loss_fn: Callable[[M, B], Loss], batch: B) -> Loss:
        """The loss as the forward of the outermost unit."""
        assert model is self.model, "another model than the one that was placed"
        if isinstance(batch, Idle):
            return Loss(self.step(loss_fn, batch.batch).total * 0, 0)
        return cast(Loss, self.step(loss_fn, batch))

    def gradients(self, optimizer: torch.optim.Optimizer) -> list[Tensor]:
        """This rank's part of each gradient; torch averaged over the ranks, the loop wants sums."""
        parts = [cast(DTensor, grad).to_local() for grad in super().gradients(optimizer)]
        torch._foreach_mul_(parts, self.ranks.size)
        return parts

    def norm(self, norms: Sequence[float]) -> float:
        """Squares add up over the parts."""
        return math.hypot(*norms)

    @contextmanager
    def whole(self, module: M, *, device: torch.device | str | None = None, main_only: bool = False) -> Iterator[M]:
        """A plain copy of the module, gathered weight by weight; on meta for ranks that get none."""
        place = next(name for name, other in self.model.named_modules() if other is module)
        twin = cast(M, self.empty.get_submodule(place))
        twin.train(module.training)
        keep = self.ranks.main or not main_only
        weights: dict[str, Tensor] = {}
        with torch.no_grad(), contact():
            for name, part in module.state_dict().items():
                full = part.full_tensor() if isinstance(part, DTensor) else part
                if keep:
                    weights[name] = full.to(device or self.device)
        if keep:
            twin.load_state_dict(weights, assign=True)
        del weights
        try:
            yield twin
        finally:
            twin.to("meta")


def blocks(model: nn.Module) -> list[nn.Module]:
    """What is gathered and freed together: the members of each list of layers."""
    lists = (module for module in model.modules() if isinstance(module, nn.ModuleList))
    return [block for members in lists for block in members]


def matrices(block: nn.Module) -> list[nn.Module]:
    """What a block multiplies in the precision of the activations; norms and routers compute in float32."""
    return [module for module in block.modules() if isinstance(module, Held)]


def without_weights(model: M) -> M:
    """The same modules, with weights that take no memory."""
    empty = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
        for p in model.parameters()
    }
    return copy.deepcopy(model, empty)
