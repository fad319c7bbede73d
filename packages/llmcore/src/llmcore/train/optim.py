"""Optimizers, and which parameters decay.

`build(model, lr)` gives a torch optimizer over the parameters that require a gradient. Each of its groups keeps its
peak rate as `initial_lr`; the loop sets `lr` to that times the schedule's factor, before every step.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import Field, model_validator

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
        from llmcore.train.quick import QuickAdamW

        groups = torch_groups(parameter_groups(model), self.weight_decay)
        return with_peak(QuickAdamW(groups, **self.options(lr), fused=can_fuse(groups)))

    def options(self, lr: float) -> dict[str, Any]:
        """What torch's AdamW calls these settings."""
        return {"lr": lr, "betas": (self.beta1, self.beta2), "eps": self.eps}


class Muon(Optimizer):
    """Orthogonal updates for the hidden matrices, AdamW for embeddings, heads, norms and biases (arXiv:2502.16982)."""

    kind: Literal["muon"] = "muon"
    momentum: float = Field(0.95, ge=0, lt=1)
    """How slowly the mean of the gradients moves."""
    nesterov: bool = True
    """Look ahead along the mean before the update is made orthogonal."""
    ns_steps: int = Field(5, ge=1, le=20)
    """Newton–Schulz steps; each brings the singular values of an update nearer to 1."""
    weight_decay: float = Field(0.1, ge=0)
    """Decay of the hidden matrices per unit of rate."""
    adamw: AdamW = AdamW()
    """What updates all other weights, at the same rate."""

    def build(self, model: nn.Module, lr: float) -> torch.optim.Optimizer:
        from llmcore.train.muon import MuonAdamW

        hidden, others = split_hidden(model, parameter_groups(model))
        rest = torch_groups(others, self.adamw.weight_decay)
        groups = [{**group, "muon": False, "fused": can_fuse(rest)} for group in rest]
        if hidden:
            orthogonal = {"momentum": self.momentum, "nesterov": self.nesterov, "ns_steps": self.ns_steps}
            group = torch_group("hidden matrices", hidden, self.weight_decay)
            groups.insert(0, {**group, "muon": True, **orthogonal})
        return with_peak(MuonAdamW(groups, **self.adamw.options(lr)))


class SGD(Optimizer):
    """Stochastic gradient descent with momentum; the decay is added to the gradient, as torch does it."""

    kind: Literal["sgd"] = "sgd"
    momentum: float = Field(0.9, ge=0, lt=1)
    """How much of the last update goes on."""
    nesterov: bool = False
    """Look ahead along the momentum."""
    weight_decay: float = Field(0.0, ge=0)
    """Decay per unit of rate; norms, biases and embeddings have none."""

    @model_validator(mode="after")
    def check_nesterov(self) -> SGD:
        """Without momentum there is nothing to look ahead along."""
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")
        return self

    def build(self, model: nn.Module, lr: float) -> torch.optim.Optimizer:
        from llmcore.train.quick import QuickSGD

        groups = torch_groups(parameter_groups(model), self.weight_decay)
        return with_peak(QuickSGD(groups, lr=lr, momentum=self.momentum, nesterov=self.nesterov))


AnyOptimizer = Annotated[Optimizer, part("llmcore.optimizer", adamw=AdamW, muon=Muon, sgd=SGD)]


class GroupRow(NamedTuple):
    """One group of parameters, as a person is shown it."""

    group: str
    """By which rule its members are in it."""
    tensors: int
    parameters: int
    lr: float
    """The peak rate."""
    weight_decay: float
    example: str
    """The name of its first member."""


def describe_groups(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[GroupRow]:
    """Every group of an optimizer: its rule, its size, and what is done to it."""
    names = {id(weight): name for name, weight in model.named_parameters()}
    return [
        GroupRow(
            group=group.get("rule", f"group {number}"),
            tensors=len(group["params"]),
            parameters=sum(weight.numel() for weight in group["params"]),
            lr=group.get("initial_lr", group["lr"]),
            weight_decay=group.get("weight_decay", 0.0),
            example=names.get(id(group["params"][0]), ""),
        )
        for number, group in enumerate(optimizer.param_groups)
    ]


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
        raise TrainingError(
            "no parameter of the model requires a gradient: there is nothing to train",
            hint="let at least one weight be trained: requires_grad_(True)",
        )
    return groups


def split_hidden(model: nn.Module, groups: ParameterGroups) -> tuple[dict[str, nn.Parameter], ParameterGroups]:
    """The matrices, and stacks of them, between embedding and head; and what is left.

    A head is that of a Transformer, and whatever has one output: a matrix with one row has no directions to balance.
    """
    heads = {id(weight) for weight in head_weights(model)}
    hidden = {
        name: weight
        for name, weight in groups.decayed.items()
        if weight.ndim in (2, 3) and min(weight.shape[-2:]) > 1 and id(weight) not in heads
    }
    return hidden, groups._replace(decayed={n: w for n, w in groups.decayed.items() if n not in hidden})


def torch_groups(groups: ParameterGroups, weight_decay: float) -> list[dict[str, Any]]:
    """The groups as torch's optimizers take them."""
    found = [
        torch_group("matrices", groups.decayed, weight_decay),
        torch_group("embeddings, norms, biases", groups.kept, 0.0),
    ]
    return [group for group in found if group["params"]]


def torch_group(rule: str, weights: dict[str, nn.Parameter], weight_decay: float) -> dict[str, Any]:
    return {"params": list(weights.values()), "weight_decay": weight_decay, "rule": rule}


def can_fuse(groups: list[dict[str, Any]]) -> bool:
    """Whether torch has a fused AdamW for all of these."""
    parameters = [weight for group in groups for weight in group["params"]]
    return all(p.is_floating_point() and p.device.type in ("cpu", "cuda", "mps") for p in parameters)


def head_weights(model: nn.Module) -> Iterator[torch.Tensor]:
    from llmcore.model.transformer import Transformer

    for module in model.modules():
        if isinstance(module, Transformer):
            yield module.head_weight()


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
