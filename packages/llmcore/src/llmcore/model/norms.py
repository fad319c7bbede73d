"""Normalisation of the last dimension; computed in float32 whatever the activations are held in."""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat
from torch import Tensor, nn

from llmcore.extensions import Part, part
from llmcore.model.linear import widen


class Norm(Part):
    """The contract of a norm: `build(width)` gives a module that maps (…, width) -> (…, width)."""

    def build(self, width: int) -> nn.Module:
        raise NotImplementedError(f"{type(self).__name__} must define build")


class RMSNorm(Norm):
    """Divide by the root mean square (Zhang and Sennrich 2019)."""

    kind: Literal["rmsnorm"] = "rmsnorm"
    eps: PositiveFloat = 1e-5
    """Added to the mean square."""

    def build(self, width: int) -> nn.Module:
        return RMSNormLayer(width, eps=self.eps)


class LayerNorm(Norm):
    """Subtract the mean and divide by the standard deviation (Ba et al. 2016)."""

    kind: Literal["layernorm"] = "layernorm"
    eps: PositiveFloat = 1e-5
    """Added to the variance."""
    bias: bool = True
    """Whether a learned bias is added."""

    def build(self, width: int) -> nn.Module:
        return LayerNormLayer(width, eps=self.eps, bias=self.bias)


AnyNorm = Annotated[Norm, part("llmcore.norm", rmsnorm=RMSNorm, layernorm=LayerNorm)]


class RMSNormLayer(nn.Module):
    """(…, D) -> (…, D)."""

    def __init__(self, width: int, *, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = widen(x)
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide * scale * self.weight).to(x.dtype)


class LayerNormLayer(nn.Module):
    """(…, D) -> (…, D)."""

    def __init__(self, width: int, *, eps: float, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.layer_norm(x, self.weight.shape, self.weight.to(x.dtype), bias, self.eps)
