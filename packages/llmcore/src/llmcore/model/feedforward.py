"""Feed-forward layers: gated (SwiGLU, GEGLU) and plain (GELU, ReLU²)."""

import math
from collections.abc import Callable
from typing import Annotated, Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from llmcore.extensions import Part, part
from llmcore.model.linear import Linear

Activation = Callable[[Tensor], Tensor]
FeedForwardStep = Callable[[Tensor, Tensor | None], Tensor]
"""What `prepare` gives: x (B, D), onto (B, D) -> (B, D), added to `onto` where it is given, which is overwritten."""


class FeedForward(Part):
    """The contract of a feed-forward: `build(width)` gives a module that maps (B, T, D) -> (B, T, D).

    After a forward in training mode the module may carry a scalar `aux_loss` to be added to the loss; the training
    loop takes and clears it. It may have a `prepare(dtype)`, which gives a `FeedForwardStep`: the same, quicker, for
    one token of each row, on weights of its own (`model/step.py`).
    """

    def build(self, width: int) -> nn.Module:
        raise NotImplementedError(f"{type(self).__name__} must define build")


@runtime_checkable
class OffersFeedForwardStep(Protocol):
    """A feed-forward with a form of itself for one token of each row."""

    def prepare(self, dtype: torch.dtype) -> FeedForwardStep: ...


def prepare_feedforward(layer: nn.Module, dtype: torch.dtype) -> FeedForwardStep:
    """Its form for one token of each row, or one that calls the layer where it has none."""
    if isinstance(layer, OffersFeedForwardStep):
        return layer.prepare(dtype)

    def step(x: Tensor, onto: Tensor | None) -> Tensor:
        made: Tensor = layer(x.unsqueeze(1)).squeeze(1)
        return made if onto is None else onto.add_(made)

    return step


class Sized(FeedForward):
    """What the core's own feed-forwards share: their hidden width and biases."""

    hidden: PositiveInt | None = None
    """Hidden width; none: expansion times the width, rounded up to a multiple of 16."""
    expansion: PositiveFloat = 4.0
    """Hidden width over model width, where `hidden` is not given."""
    bias: bool = False
    """Whether the projections have biases."""

    def hidden_width(self, width: int) -> int:
        return self.hidden if self.hidden is not None else round_up(self.expansion * width)


class Gated(Sized):
    """A gated feed-forward has three matrices: 8/3 of the width costs as much as a plain one of 4."""

    expansion: PositiveFloat = 8 / 3
    """Hidden width over model width, where `hidden` is not given."""


class SwiGLU(Gated):
    """down(silu(gate(x)) * up(x)) (Shazeer 2020)."""

    kind: Literal["swiglu"] = "swiglu"

    def build(self, width: int) -> nn.Module:
        return GatedLayer(width, self.hidden_width(width), activation=F.silu, bias=self.bias)


class GEGLU(Gated):
    """down(gelu(gate(x)) * up(x)) (Shazeer 2020); the tanh form of GELU, as Gemma has it."""

    kind: Literal["geglu"] = "geglu"

    def build(self, width: int) -> nn.Module:
        return GatedLayer(width, self.hidden_width(width), activation=gelu_tanh, bias=self.bias)


class GELU(Sized):
    """down(gelu(up(x))) (GPT-2, in the tanh form)."""

    kind: Literal["gelu"] = "gelu"
    exact: bool = False
    """The error function instead of its tanh form."""

    def build(self, width: int) -> nn.Module:
        activation = F.gelu if self.exact else gelu_tanh
        return PlainLayer(width, self.hidden_width(width), activation=activation, bias=self.bias)


class ReLU2(Sized):
    """down(relu(up(x))²) (Primer, So et al. 2021)."""

    kind: Literal["relu2"] = "relu2"

    def build(self, width: int) -> nn.Module:
        return PlainLayer(width, self.hidden_width(width), activation=relu_squared, bias=self.bias)


AnyFeedForward = Annotated[FeedForward, part("llmcore.feedforward", swiglu=SwiGLU, geglu=GEGLU, gelu=GELU, relu2=ReLU2)]


class GatedLayer(nn.Module):
    """(B, T, D) -> (B, T, D); gate and up are one matrix, gate first."""

    def __init__(self, width: int, hidden: int, *, activation: Activation, bias: bool = False) -> None:
        super().__init__()
        self.gate_up = Linear(width, 2 * hidden, bias=bias)
        self.down = Linear(hidden, width, bias=bias, residual=True)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        product: Tensor = self.down(self.activation(gate) * up)
        return product

    def prepare(self, dtype: torch.dtype) -> FeedForwardStep:
        gate_up, down, activation = self.gate_up.prepare(dtype), self.down.prepare(dtype), self.activation

        def step(x: Tensor, onto: Tensor | None) -> Tensor:
            gate, up = gate_up(x).chunk(2, dim=-1)
            return down(activation(gate) * up, onto)

        return step


class PlainLayer(nn.Module):
    """(B, T, D) -> (B, T, D)."""

    def __init__(self, width: int, hidden: int, *, activation: Activation, bias: bool = False) -> None:
        super().__init__()
        self.up = Linear(width, hidden, bias=bias)
        self.down = Linear(hidden, width, bias=bias, residual=True)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        product: Tensor = self.down(self.activation(self.up(x)))
        return product

    def prepare(self, dtype: torch.dtype) -> FeedForwardStep:
        up, down, activation = self.up.prepare(dtype), self.down.prepare(dtype), self.activation

        def step(x: Tensor, onto: Tensor | None) -> Tensor:
            return down(activation(up(x)), onto)

        return step


def gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def relu_squared(x: Tensor) -> Tensor:
    return F.relu(x).square()


def round_up(width: float, multiple: int = 16) -> int:
    return multiple * math.ceil(width / multiple)
