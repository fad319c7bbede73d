"""Looking into one step: the norm of what every module puts out and of its gradients, and where numbers end first."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


@dataclass
class Norms:
    """Euclidean norms of one module in one step, over all its micro-batches."""

    output: float = 0.0
    """Of what it puts out."""
    output_gradient: float = 0.0
    """Of the gradient that reaches what it puts out; of the summed loss, before any division."""
    weight: float = 0.0
    """Of its own weights, without those of modules inside."""
    weight_gradient: float = 0.0
    """Of their gradient, as it is when the step ends."""


class Probe:
    """Watches a model while a `with` block runs; the numbers that are computed stay the same."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.norms = {name or "the whole model": Norms() for name, _ in model.named_modules()}
        self.first: str | None = None
        self.handles: list[RemovableHandle] = []

    def __enter__(self) -> Probe:
        for name, weight in self.model.named_parameters():
            if not bool(weight.isfinite().all()):
                self.found(f"the weight {name}, before the step")
            if weight.requires_grad:
                self.handles.append(weight.register_hook(self.weight_hook(name)))  # type: ignore[no-untyped-call]
        for name, module in self.model.named_modules():
            self.handles.append(module.register_forward_hook(self.output_hook(name or "the whole model")))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self.handles:
            handle.remove()
        for name, module in self.model.named_modules():
            norms = self.norms[name or "the whole model"]
            weights = list(module.parameters(recurse=False))
            norms.weight = norm_of(weights)
            norms.weight_gradient = norm_of([weight.grad for weight in weights if weight.grad is not None])

    def output_hook(self, name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            for tensor in tensors_in(output):
                self.norms[name].output = math.hypot(self.norms[name].output, norm_of([tensor]))
                if not bool(tensor.isfinite().all()):
                    self.found(f"the forward of {name}")
                if tensor.requires_grad:
                    tensor.register_hook(self.gradient_hook(name))  # type: ignore[no-untyped-call]

        return hook

    def gradient_hook(self, name: str) -> Any:
        def hook(gradient: Tensor) -> None:
            self.norms[name].output_gradient = math.hypot(self.norms[name].output_gradient, norm_of([gradient]))
            if not bool(gradient.isfinite().all()):
                self.found(f"the backward, at the output of {name}")

        return hook

    def weight_hook(self, name: str) -> Any:
        def hook(gradient: Tensor) -> None:
            if not bool(gradient.isfinite().all()):
                self.found(f"the backward of {name.rpartition('.')[0] or name}, in the gradient of {name}")

        return hook

    def found(self, where: str) -> None:
        """Remember the first place only: what comes after has it from there."""
        self.first = self.first or where

    def table(self) -> list[tuple[str, Norms]]:
        """The modules that took part, in the order of the model."""
        return [(name, norms) for name, norms in self.norms.items() if norms.output or norms.weight]


def norm_of(tensors: Sequence[Tensor]) -> float:
    """The norm of all numbers of some tensors together."""
    return math.hypot(*(float(torch.linalg.vector_norm(tensor.detach().float())) for tensor in tensors))


def tensors_in(output: Any) -> Iterator[Tensor]:
    """The floating-point tensors that a module put out."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, tuple | list):
        for item in output:
            yield from tensors_in(item)
    elif isinstance(output, dict):
        yield from tensors_in(list(output.values()))
