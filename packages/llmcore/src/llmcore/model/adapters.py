"""Adapters in a model: given to its projections, taken away for a while, or merged into the weights."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmcore.errors import ConfigError
from llmcore.lora import ALL_LINEAR, Adapter, LoRA
from llmcore.model.linear import Linear, Update

MARK = ".adapter."
"""What stands in the names of adapters' weights, between the projection's name and theirs."""


class LowRank(Update):
    """(…, inputs) -> (…, outputs): (alpha / rank) · B A dropout(x); `delta` is the matrix that it amounts to.

    First weights as in the authors' code: A is Kaiming-uniform (a = √5: between ±1/√inputs), B is zero.
    """

    def __init__(self, config: LoRA, inputs: int, outputs: int, *, seed: int) -> None:
        super().__init__(config)
        bound = 1 / math.sqrt(inputs)
        first = torch.empty(config.rank, inputs)
        if not first.is_meta:
            first.uniform_(-bound, bound, generator=torch.Generator().manual_seed(seed))
        self.a = nn.Parameter(first)
        self.b = nn.Parameter(torch.zeros(outputs, config.rank))
        self.scaling = config.alpha / config.rank
        self.dropout = config.dropout

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(x, self.dropout, self.training) if self.dropout else x
        narrow = F.linear(x, self.a.to(x.dtype)) * self.scaling  # (…, rank)
        return F.linear(narrow, self.b.to(x.dtype))

    def delta(self) -> Tensor:
        """(outputs, inputs)."""
        return (self.b @ self.a) * self.scaling


def add_adapters(model: nn.Module, settings: Adapter, *, seed: int) -> None:
    """Freeze the model, and give each projection that the settings name an adapter; the model says what it said.

    Raises ConfigError for a name that no projection has.
    """
    targets = target_projections(model, settings)
    model.requires_grad_(False)
    for number, linear in enumerate(targets.values()):
        outputs, inputs = linear.weight.shape
        update = settings.build(inputs, outputs, seed=seed * 100_003 + number)
        linear.adapter = update.to(linear.weight.device).train(linear.training)


def target_projections(model: nn.Module, settings: Adapter) -> dict[str, Linear]:
    """The projections that get an adapter, by their full names."""
    known = {name: linear for name, linear in projections(model).items() if name != "head"}
    wanted = settings.target_modules
    if wanted == ALL_LINEAR:
        return known
    names = (wanted,) if isinstance(wanted, str) else wanted
    for name in names:
        if not any(matches(full, name) for full in known):
            raise ConfigError(unknown_target(name, known), hint='name some of them, or use "all-linear"')
    return {full: linear for full, linear in known.items() if any(matches(full, name) for name in names)}


def matches(full: str, name: str) -> bool:
    """Whether a name is the end of a full name, as in PEFT: "out", "attention.out", "blocks.0.attention.out"."""
    return f".{full}".endswith(f".{name}")


FUSED = {"q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv", "gate_proj": "gate_up", "up_proj": "gate_up",
         "o_proj": "out", "down_proj": "down"}  # fmt: skip


def unknown_target(name: str, known: dict[str, Linear]) -> str:
    """What to say of a name that no projection has; names of Hugging Face models are known, but not ours."""
    ends = list(dict.fromkeys(full.rpartition(".")[2] for full in known))
    near = [FUSED[name]] if FUSED.get(name) in ends else difflib.get_close_matches(name, ends, 1)
    advice = f" — {near[0]!r} holds it" if name in FUSED and near else f" — did you mean {near[0]!r}?" if near else ""
    return f"target_modules: no projection of this model is named {name!r}{advice} (there are: {', '.join(ends)})"


def adapted(model: nn.Module) -> dict[str, Linear]:
    """The projections that have an adapter, by their full names."""
    return {name: linear for name, linear in projections(model).items() if linear.adapter is not None}


def projections(model: nn.Module) -> dict[str, Linear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, Linear)}


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """While inside, the model is the one below its adapters: the reference of reinforcement learning, at no cost."""
    taken = [(linear, linear.adapter) for linear in adapted(model).values()]
    assert all(linear.held is None for linear, _ in taken), "held weights have the adapters in them: release them first"
    for linear, _ in taken:
        linear.adapter = None
    try:
        yield
    finally:
        for linear, adapter in taken:
            linear.adapter = adapter


@torch.no_grad()
def merge_adapters(model: nn.Module) -> None:
    """Add each adapter to its weight and drop it; all weights can be trained again."""
    for linear in adapted(model).values():
        assert linear.adapter is not None
        linear.weight.add_(linear.adapter.delta())
        linear.adapter = None
    model.requires_grad_(True)


def adapter_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The adapters' weights by name, as `blocks.0.attention.qkv.adapter.a`; contiguous, on the CPU."""
    state = model.state_dict()
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items() if MARK in name}
