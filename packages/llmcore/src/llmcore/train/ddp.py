"""Every rank holds the whole model: gradients are added up in buckets while the backward still runs.

torch's DistributedDataParallel averages and wraps the model's forward; here gradients are *summed*, since only the
loop divides, and whatever a loss calls of the model is followed, because the hooks are on the weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from llmcore.train.distributed import Ranks, contact
from llmcore.train.parallel import Engine

if TYPE_CHECKING:
    from llmcore.train.device import Placement

B = TypeVar("B")


class Replicated(Engine):
    """The engine of `train.parallel=ddp`."""

    def __init__(self, ranks: Ranks, *, bucket_bytes: int) -> None:
        super().__init__(ranks)
        self.bucket_bytes = bucket_bytes
        self.buckets: Buckets | None = None

    def place(self, model: nn.Module, placement: Placement) -> None:
        """Bring the model to the device, with rank 0's weights on every rank."""
        super().place(model, placement)
        with torch.no_grad(), contact():
            for tensor in (*model.parameters(), *model.buffers()):
                dist.broadcast(tensor, 0)
        self.buckets = Buckets([p for p in model.parameters() if p.requires_grad], limit=self.bucket_bytes)

    def deal(self, micro_batches: Sequence[B]) -> Iterator[B]:
        """Every size-th micro-batch; the last one's backward sends what is ready."""
        assert self.buckets is not None, "place() comes first"
        mine = list(micro_batches)[self.ranks.rank :: self.ranks.size]
        for index, batch in enumerate(mine):
            if index == len(mine) - 1:
                self.buckets.open()
            yield batch

    def gradients(self, optimizer: torch.optim.Optimizer) -> list[Tensor]:
        """The summed gradients, once all have arrived."""
        assert self.buckets is not None, "place() comes first"
        with contact():
            self.buckets.finish()
        return super().gradients(optimizer)

    def close(self) -> None:
        """Take the hooks off the weights."""
        if self.buckets is not None:
            self.buckets.close()


class Buckets:
    """Gradients by the order in which a backward makes them, in messages of about `limit` bytes.

    Messages leave in one order on every rank. Behind a bucket's gradients travels how many ranks have each: one that
    no rank has stays None, as it would with one process, and the optimizer leaves its weight alone.
    """

    def __init__(self, weights: Sequence[nn.Parameter], *, limit: int) -> None:
        self.buckets: list[list[nn.Parameter]] = []
        size = limit + 1
        for weight in reversed(weights):
            if size + weight.nbytes > limit:
                self.buckets.append([])
                size = 0
            self.buckets[-1].append(weight)
            size += weight.nbytes
        self.number = {id(weight): number for number, bucket in enumerate(self.buckets) for weight in bucket}
        self.hooks = [weight.register_post_accumulate_grad_hook(self.arrived) for weight in weights]  # type: ignore[no-untyped-call]
        self.is_open = False
        self.missing: list[int] = []
        self.sent: list[tuple[Tensor, Any]] = []

    def open(self) -> None:
        """The next backward is the step's last: send each bucket when it is complete."""
        self.is_open = True
        self.missing = [len(bucket) for bucket in self.buckets]

    def arrived(self, weight: Tensor) -> None:
        """A gradient is complete."""
        if self.is_open:
            self.missing[self.number[id(weight)]] -= 1
            while len(self.sent) < len(self.buckets) and self.missing[len(self.sent)] == 0:
                self.send()

    @torch.no_grad()
    def send(self) -> None:
        """Send the next bucket; a gradient that is not there counts as 0."""
        bucket = self.buckets[len(self.sent)]
        pieces = [torch.zeros_like(w) if w.grad is None else w.grad for w in bucket]
        there = torch.tensor([float(w.grad is not None) for w in bucket])
        flat = torch.cat([*(piece.flatten() for piece in pieces), there.to(pieces[0])])
        self.sent.append((flat, dist.all_reduce(flat, async_op=True)))

    @torch.no_grad()
    def finish(self) -> None:
        """Send what is left, wait for all, and put the sums where the gradients were."""
        self.is_open = False
        while len(self.sent) < len(self.buckets):
            self.send()
        for (flat, work), bucket in zip(self.sent, self.buckets, strict=True):
            work.wait()
            *sums, there = torch.split(flat, [*(w.numel() for w in bucket), len(bucket)])
            for weight, total, holders in zip(bucket, sums, there.tolist(), strict=True):
                weight.grad = total.view_as(weight) if holders else None
        self.sent = []

    def close(self) -> None:
        for hook in self.hooks:
            hook.remove()
