"""Optimizers, and which parameters decay.

`build(model, lr)` gives a torch optimizer over the parameters that require a gradient. Each of its groups keeps its
peak rate as `initial_lr`; the loop sets `lr` to that times the schedule's factor, before every step.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from pydantic import Field

from llmcore.errors import TrainingError
from llmcore.extensions import Part, part

if TYPE_CHECKING:  # settings are read without torch
    import torch
    from torch import nn


class Optimizer(Part):
    """What turns gradients into updates."""

    def build(self, model: nn.Module, lr: float) -> torch.optim.Optimizer:
        """A torch optimizer over the trainable parameters of `model`, with the peak rate `lr`."""
        raise NotImplementedError(f"{type(self).__name__} must define build(model, lr)")


class AdamW(Optimizer):
    """Adam with decoupled weight decay, fused where torch can."""

    kind: Literal["adamw"] = "adamw"
    beta1: float = Field(0.9, ge=0, lt=1)
    """How slowly the mean of the gradients moves."""
    beta2: float = Field(0.95, ge=0, lt=1)
    """How slowly the mean of their squares moves."""
    eps: float = Field(1e-8, gt=0)
    """What keeps the division away from zero."""
    weight_decay: float = Field(0.1, ge=0)
    """Decay per unit of rate; norms, biases and embeddings have none."""

    def build(self, model: nn.Module, lr: float) -> torch.optim.Optimizer:
        from llmcore.train.adamw import QuickAdamW

        groups = parameter_groups(model)
        parameters = [*groups.decayed.values(), *groups.kept.values()]
        fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda", "mps") for p in parameters)
        optimizer = QuickAdamW(
            [
                {"params": list(groups.decayed.values()), "weight_decay": self.weight_decay},
                {"params": list(groups.kept.values()), "weight_decay": 0.0},
            ],
            lr=lr,
            betas=(self.beta1, self.beta2),
            eps=self.eps,
            fused=fused,
        )
        return with_peak(optimizer)


AnyOptimizer = Annotated[Optimizer, part("llmcore.optimizer", adamw=AdamW)]


class ParameterGroups(NamedTuple):
    """Trainable parameters by name."""

    decayed: dict[str, nn.Parameter]
    kept: dict[str, nn.Parameter]


def parameter_groups(model: nn.Module) -> ParameterGroups:
    """Matrices decay; vectors (norms, biases) and embeddings, tied heads among them, do not."""
    embeddings = {id(weight) for weight in embedding_weights(model)}
    groups = ParameterGroups({}, {})
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            kept = weight.ndim < 2 or id(weight) in embeddings
            (groups.kept if kept else groups.decayed)[name] = weight
    if not (groups.decayed or groups.kept):
        raise TrainingError("no parameter of the model requires a gradient: there is nothing to train")
    return groups


def embedding_weights(model: nn.Module) -> Iterator[torch.Tensor]:
    from torch import nn

    from llmcore.model.linear import Embedding

    for module in model.modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag | Embedding):
            yield module.weight


def with_peak(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Note each group's peak rate, which the schedule's factor multiplies."""
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    return optimizer


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's rate to its peak times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
