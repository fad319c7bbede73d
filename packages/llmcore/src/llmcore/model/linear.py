"""Projections and the embedding table: float32 weights, cast to the dtype of the activations at each use.

Holding activations in bfloat16 and weights in float32 costs one cast per weight and forward, where autocast casts
around every operation; and the optimizer then updates the float32 weights themselves.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmcore.model.products import Product

if TYPE_CHECKING:
    from llmcore.lora import Adapter


class Spread(NamedTuple):
    """Standard deviations of first weights."""

    std: float
    residual: float
    """Of projections back into the residual stream."""


@runtime_checkable
class Initialised(Protocol):
    """A module that sets its own first weights."""

    def initialise(self, spread: Spread) -> None: ...


@runtime_checkable
class Held(Protocol):
    """A module that can use its weights from a copy; see `held_weights`."""

    def hold(self, dtype: torch.dtype) -> None: ...

    def release(self) -> None: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...


class Update(nn.Module):
    """What an adapter adds to a projection: (…, inputs) -> (…, outputs); see `llmcore.lora`."""

    def __init__(self, settings: "Adapter") -> None:
        super().__init__()
        self.settings = settings

    def delta(self) -> Tensor:
        """(outputs, inputs): the matrix that the update amounts to, without dropout."""
        raise NotImplementedError(f"{type(self).__name__} must define delta")


class Linear(nn.Module):
    """`x @ weight.T (+ bias)`: (…, inputs) -> (…, outputs), in the dtype of x."""

    def __init__(
        self, inputs: int, outputs: int, *, bias: bool = False, residual: bool = False, std: float | None = None
    ) -> None:
        """`residual` marks a projection back into the residual stream, which starts smaller; `std` overrides both."""
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.residual = residual
        self.std = std
        self.held: Tensor | None = None
        self.adapter: Update | None = None

    def initialise(self, spread: Spread) -> None:
        nn.init.normal_(self.weight, std=self.std or (spread.residual if self.residual else spread.std))
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        if self.adapter is None or self.held is not None:
            return F.linear(x, self.matrix(x.dtype), bias)
        update: Tensor = self.adapter(x)
        return F.linear(x, self.weight.to(x.dtype), bias) + update

    def matrix(self, dtype: torch.dtype) -> Tensor:
        """(outputs, inputs) as a forward uses it, the adapter's update included."""
        return self.whole().to(dtype) if self.held is None else self.held

    def whole(self) -> Tensor:
        """The weight with the adapter's update."""
        return self.weight if self.adapter is None else self.weight + self.adapter.delta()

    def prepare(self, dtype: torch.dtype) -> Product:
        """The same for one token of each row."""
        return Product(self.matrix(dtype), self.bias)

    def hold(self, dtype: torch.dtype) -> None:
        self.held = inputs_first(self.whole(), dtype)

    def release(self) -> None:
        self.held = None


class Embedding(nn.Module):
    """A table of one row per token, which is also the head where the two are tied."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, width))
        self.held: Tensor | None = None

    def initialise(self, spread: Spread) -> None:
        nn.init.normal_(self.weight, std=spread.std)

    def forward(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """(…) -> (…, D)."""
        return F.embedding(ids, self.weight).to(dtype)

    def project(self, x: Tensor) -> Tensor:
        """(…, D) -> (…, V): the scores of all tokens."""
        return F.linear(x, self.matrix(x.dtype))

    def matrix(self, dtype: torch.dtype) -> Tensor:
        """(V, D) as `project` uses it."""
        return self.weight.to(dtype) if self.held is None else self.held

    def prepare(self, dtype: torch.dtype) -> Product:
        """`project` for one token of each row."""
        return Product(self.matrix(dtype))

    def hold(self, dtype: torch.dtype) -> None:
        self.held = inputs_first(self.weight, dtype)

    def release(self) -> None:
        self.held = None


@contextmanager
def held_weights(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """While inside, each weight is used from a copy in `dtype`, laid out for one-row products.

    For the many small steps of decoding: no cast per step, and a CPU reads weights stored [inputs, outputs] faster.
    The copies cost memory, carry no gradient, and do not follow an update of the weights: leave before training goes
    on.
    """
    modules = [module for module in model.modules() if isinstance(module, Held)]
    # A block of their size, freed at once: from then on glibc keeps as much for the next, up to 32 MiB, instead of
    # handing it back to the kernel, whose fresh pages cost more than the copies (26 MiB: 15 ms, then 5).
    torch.empty(sum(weight.numel() for module in modules for weight in module.parameters()), dtype=dtype)
    for module in modules:
        module.hold(dtype)
    try:
        yield
    finally:
        for module in modules:
            module.release()


def inputs_first(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The same (…, outputs, inputs) matrix, stored with the inputs as its rows."""
    turned = weight.detach().mT
    # Copying into an empty tensor turns a matrix block by block; `contiguous` takes three times as long.
    return torch.empty(turned.shape, dtype=dtype, device=turned.device).copy_(turned).mT


def initialise(model: nn.Module, *, std: float, depth: int) -> None:
    """Weights ~ N(0, std²), projections into the residual stream divided by √(2·depth): GPT-2, section 2.3.

    Each block adds twice to the stream, so that without the division its variance would grow with depth. A model
    on the meta device has no weights to set.
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        return
    for module in model.modules():
        if isinstance(module, Initialised):
            module.initialise(Spread(std, std / math.sqrt(2 * depth)))


def widen(x: Tensor) -> Tensor:
    """At least float32: what sums and exponentials are computed in."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
