"""How several processes train one model: `train.parallel`, and what the loop asks of it.

    train.parallel = "single"   one process (the default)
    train.parallel = "ddp"      every process holds the whole model; gradients are added up
    train.parallel = "fsdp"     weights, gradients and optimizer state are cut into one part for each process

Every rank has the same step's micro-batches from the same source and takes its own of them, so that the global batch
is that of one process. An engine is what `fit` works with; that of one process does nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import Field

from llmcore.errors import ConfigError
from llmcore.extensions import Part, part
from llmcore.train.distributed import ALONE, Ranks, join_ranks, place_from_environment

if TYPE_CHECKING:  # settings are read without torch
    import torch
    from torch import Tensor, nn

    from llmcore.losses import Loss
    from llmcore.train.device import Placement

M = TypeVar("M", bound="nn.Module")
B = TypeVar("B")


class Engine:
    """Training on one device; also the contract of the others."""

    sharded = False
    """Whether each rank holds a part of the weights only."""

    def __init__(self, ranks: Ranks = ALONE) -> None:
        self.ranks = ranks

    def place(self, model: nn.Module, placement: Placement) -> None:
        """Bring the model to its device, in the form in which it is trained."""
        from llmcore.train.device import place

        place(model, placement)

    def deal(self, micro_batches: Sequence[B]) -> Iterator[B]:
        """This rank's of a step's micro-batches."""
        return iter(micro_batches)

    def loss(self, model: M, loss_fn: Callable[[M, B], Loss], batch: B) -> Loss:
        """The loss of one micro-batch of `deal`."""
        return loss_fn(model, batch)

    def gradients(self, optimizer: torch.optim.Optimizer) -> list[Tensor]:
        """Each trained weight's gradient, or this rank's part of it, summed over the micro-batches of all ranks."""
        return [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]

    def norm(self, norms: Sequence[float]) -> float:
        """The norm of the whole gradient, from that of what `gradients` gave to each rank."""
        return norms[0]

    @contextmanager
    def whole(self, module: M, *, device: torch.device | str | None = None, main_only: bool = False) -> Iterator[M]:  # noqa: ARG002
        """The trained model, or a module of it, with all its weights, for evaluation, sampling and writing.

        Where they are in parts they are gathered once, on `device` (none: the model's), and freed at the end;
        `main_only`: for rank 0 alone.
        """
        yield module

    def close(self) -> None:
        """Take back what `place` hung on the model."""


class Parallel(Part):
    """How the processes of a run share the work."""

    timeout: float = Field(600.0, gt=0)
    """Seconds after which a process that does not answer is given up, and the run ends (resumably)."""
    optimizers: ClassVar[frozenset[str] | None] = None
    """The kinds of optimizers that this works with; none: any."""

    def engine(self, ranks: Ranks) -> Engine:
        """What the loop works with, for two processes or more."""
        raise NotImplementedError(f"{type(self).__name__} must define engine(ranks)")

    def build(self, device: torch.device, *, batch: int, optimizer: str) -> Engine:
        """Meet the other processes and give the engine; with one process, that of one device.

        Raises ConfigError where this mode cannot do what the settings ask.
        """
        size = place_from_environment().size
        if size == 1:
            return Engine()
        if device.type == "mps":
            raise ConfigError(
                "MPS has no communication between processes", hint="train with one process, or on the cpu"
            )
        if batch < size:
            raise ConfigError(
                f"train.batch is {batch}, fewer than the {size} processes",
                hint=f"raise train.batch, or start at most {batch} processes",
            )
        if self.optimizers is not None and optimizer not in self.optimizers:
            raise ConfigError(
                f"train.optimizer {optimizer!r} does not work on weights in parts (train.parallel={self.kind})",
                hint=f"choose {' or '.join(sorted(self.optimizers))}, or train.parallel=ddp",
            )
        return self.engine(join_ranks(device, timeout=self.timeout))


class OneProcess(Parallel):
    """One process."""

    kind: Literal["single"] = "single"

    def engine(self, ranks: Ranks) -> Engine:  # noqa: ARG002
        raise AssertionError("one process has no ranks")

    def build(self, device: torch.device, *, batch: int, optimizer: str) -> Engine:  # noqa: ARG002
        size = place_from_environment().size
        if size > 1:
            raise ConfigError(
                f"{size} processes were started, but train.parallel is 'single': each would train the same",
                hint="set train.parallel=ddp (or fsdp, for models that one device does not hold)",
            )
        return Engine()


class DDP(Parallel):
    """Every process holds the whole model; gradients are added up while the backward still runs."""

    kind: Literal["ddp"] = "ddp"
    bucket_mb: float = Field(25.0, gt=0)
    """MiB of gradients that travel together."""

    def engine(self, ranks: Ranks) -> Engine:
        from llmcore.train.ddp import Replicated

        return Replicated(ranks, bucket_bytes=int(self.bucket_mb * 2**20))


class FSDP(Parallel):
    """Weights, gradients and optimizer state in parts (torch's `fully_shard`)."""

    kind: Literal["fsdp"] = "fsdp"
    optimizers = frozenset({"adamw", "sgd"})
    reshard: bool = True
    """Free each block's weights after its forward and gather them again for the backward (ZeRO-3); false: ZeRO-2."""
    offload: bool = False
    """Keep the parts, with the optimizer state, in main memory and compute the update there."""
    gather: Literal["auto", "fp32"] = "auto"
    """Precision in which the weights of the blocks travel: that of the activations, or fp32, as one device has them."""

    def engine(self, ranks: Ranks) -> Engine:
        from llmcore.train.fsdp import Sharded

        return Sharded(ranks, reshard=self.reshard, offload=self.offload, wide=self.gather == "fp32")


AnyParallel = Annotated[Parallel, part("llmcore.parallel", single=OneProcess, ddp=DDP, fsdp=FSDP)]


def per_rank(rows: int) -> int:
    """The most rows that one of this run's processes has of so many."""
    return -(-rows // place_from_environment().size)


def engine_of(config: Any, device: torch.device) -> Engine:
    """The engine that training settings ask for."""
    return config.parallel.build(device, batch=config.batch, optimizer=config.optimizer.kind)  # type: ignore[no-any-return]
