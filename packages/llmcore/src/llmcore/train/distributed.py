"""The processes that share a run: who this one is, and the few words they exchange.

`torchrun` starts them and tells each its place by environment variables. What they say to each other outside of the
gradients (sums of losses, whether to stop, where files are) is small JSON over gloo; a process alone says nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from llmcore.errors import ConfigError, LLMError

if TYPE_CHECKING:  # settings are read without torch
    import torch
    from torch import Tensor

SHORT = 4096
"""Bytes of a message that goes out in one exchange; a longer one needs two."""


class LostContactError(LLMError):
    """Another process of the run ended or hangs."""


class Place(NamedTuple):
    """Which of the processes this one is."""

    rank: int = 0
    size: int = 1
    local: int = 0
    """Its number on this machine: which GPU it takes."""


def place_from_environment(*, strict: bool = True) -> Place:
    """What torchrun says in RANK, WORLD_SIZE and LOCAL_RANK; without it, a process alone.

    Raises ConfigError if that is nonsense; unless `strict`, that is a process alone too.
    """
    words = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE")}
    if words["WORLD_SIZE"] is None or words["RANK"] is None:
        return Place()
    try:
        rank, size = int(words["RANK"]), int(words["WORLD_SIZE"])
        local = int(os.environ.get("LOCAL_RANK", rank))
    except ValueError:
        rank, size, local = -1, -1, -1
    if not 0 <= rank < size or local < 0:
        if not strict:
            return Place()
        raise ConfigError(
            f"RANK={words['RANK']!r} and WORLD_SIZE={words['WORLD_SIZE']!r} name no process of a run",
            hint="start the processes with torchrun, or unset both to train with one",
        )
    return Place(rank, size, local)


class Ranks:
    """The processes of one run as one of them sees them; rank 0 alone writes and speaks."""

    def __init__(self, place: Place | None = None, *, ours: bool = False) -> None:
        """`ours`: the process group was made for these ranks, and ends with them."""
        self.rank, self.size, self.local = place or Place()
        self.ours = ours

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def gather(self, value: Any = None) -> list[Any]:
        """Every rank's JSON value, by rank; all wait for the last one."""
        if self.size == 1:
            return [value]
        text = json.dumps(value).encode()
        head = len(text).to_bytes(8, "big")
        with contact():
            first = self.exchange((head + text)[:SHORT].ljust(SHORT))
            lengths = [int.from_bytes(message[:8], "big") for message in first]
            longest = max(lengths) + 8
            whole = first if longest <= SHORT else self.exchange((head + text).ljust(longest))
        return [json.loads(message[8 : 8 + length]) for message, length in zip(whole, lengths, strict=True)]

    def first(self, value: Any = None) -> Any:
        """Rank 0's JSON value, on every rank."""
        return self.gather(value if self.main else None)[0]

    def wait(self) -> None:
        """Go on when every rank has come this far."""
        self.gather()

    def share(self, count: int) -> slice:
        """This rank's part of `count` rows, next to each other."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def join_rows(self, mine: Tensor, count: int) -> Tensor:
        """The rows of all ranks from each one's `share` of `count`: (share, …) -> (count, …)."""
        if self.size == 1:
            return mine
        import torch
        import torch.distributed as dist

        most = -(-count // self.size)
        padded = mine.new_zeros((most, *mine.shape[1:]), device="cpu")
        padded[: len(mine)] = mine
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        with contact():
            dist.all_gather(parts, padded)
        shares = [Ranks(Place(rank, self.size)).share(count) for rank in range(self.size)]
        return torch.cat([part[: s.stop - s.start] for part, s in zip(parts, shares, strict=True)]).to(mine.device)

    def exchange(self, message: bytes) -> list[bytes]:
        """Messages of one length, by rank."""
        import torch
        import torch.distributed as dist

        sent = torch.frombuffer(bytearray(message), dtype=torch.uint8)
        received = [torch.empty_like(sent) for _ in range(self.size)]
        dist.all_gather(received, sent)
        return [tensor.numpy().tobytes() for tensor in received]

    def leave(self) -> None:
        """End the process group, if it was made for this run."""
        if self.ours:
            import torch.distributed as dist

            self.ours = False
            dist.destroy_process_group()


ALONE = Ranks()


def join_ranks(device: torch.device, *, timeout: float) -> Ranks:
    """Meet the other processes; one that does not come within `timeout` seconds, or at any later meeting, is lost."""
    import torch
    import torch.distributed as dist

    place = place_from_environment()
    if place.size == 1:
        return ALONE
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not dist.is_available():
        raise ConfigError("this PyTorch is built without torch.distributed", hint="train with one process")
    if dist.is_initialized():
        return Ranks(place)
    limit = timedelta(seconds=timeout)
    with contact():
        store, rank, size = next(dist.rendezvous("env://", timeout=limit))  # type: ignore[attr-defined]
        # torchrun keeps its store over a restart, with the addresses of the processes that are gone.
        start = f"{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}-of-{size}"
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            store=dist.PrefixStore(start, store),  # type: ignore[attr-defined]
            rank=rank,
            world_size=size,
            timeout=limit,
            device_id=device if device.type == "cuda" else None,
        )
    return Ranks(place, ours=True)


@contextmanager
def contact() -> Iterator[None]:
    """While inside, an error of the exchange says in one sentence that another process is gone."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        lost = lost_contact(error)
        if lost is None:
            raise
        raise lost from error


SIGNS = (
    "connection closed",
    "connection reset",
    "connection refused",
    "connection was likely closed",
    "timed out",
    "timeout",
    "broken pipe",
    "gloo",
    "nccl",
    "rendezvous",
    "store",
    "socket",
)
"""What torch's many errors about a process that is gone have in common; it has no class for them."""


def lost_contact(error: BaseException) -> LostContactError | None:
    """The sentence for an error of the communication; None if it is about anything else."""
    text = str(error)
    if not any(sign in text.lower() for sign in SIGNS):
        return None
    return LostContactError(
        f"another process of this run ended or does not answer ({text.splitlines()[0][:160]})",
        hint="its own message says why; the same command goes on from the last saved step",
    )
