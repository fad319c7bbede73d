"""Key maps: which tensors of a Hugging Face file are which tensor of ours, and how to go either way.

A rule holds both directions side by side, so that an import and an export cannot drift apart.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from llmcore.errors import ArtifactError


@dataclass(frozen=True)
class Rule:
    """One tensor of ours, the tensors of theirs that hold it, and the way from each side to the other."""

    ours: str
    theirs: tuple[str, ...]
    join: Callable[[Sequence[Tensor]], Tensor]
    split: Callable[[Tensor], Sequence[Tensor]]


class Source(Protocol):
    """Tensors by name, read when they are asked for."""

    def names(self) -> set[str]: ...

    def read(self, name: str) -> Tensor: ...


def same(ours: str, theirs: str) -> Rule:
    """The tensor as it is."""
    return Rule(ours, (theirs,), lambda parts: parts[0], lambda tensor: [tensor])


def transposed(ours: str, theirs: str) -> Rule:
    """A matrix stored the other way round (GPT-2's Conv1D)."""
    return Rule(ours, (theirs,), lambda parts: parts[0].T.contiguous(), lambda tensor: [tensor.T.contiguous()])


def fused(ours: str, theirs: Sequence[str], sizes: Sequence[int]) -> Rule:
    """Their tensors, of these many rows each, are one of ours, in this order."""
    return Rule(
        ours,
        tuple(theirs),
        lambda parts: torch.cat(list(parts)),
        lambda tensor: [part.contiguous() for part in torch.split(tensor, list(sizes))],
    )


def below(ours: str, theirs: str, rules: Sequence[Rule]) -> Iterator[Rule]:
    """The rules with a prefix on either side."""
    for rule in rules:
        yield replace(rule, ours=ours + rule.ours, theirs=tuple(theirs + name for name in rule.theirs))


def read_tensors(
    rules: Sequence[Rule], source: Source, *, ignored: Callable[[str], bool], where: str
) -> dict[str, Tensor]:
    """Our tensors, float32, from theirs; every one of theirs must be used or known to be of no use."""
    names = source.names()
    wanted = {name for rule in rules for name in rule.theirs}
    missing = sorted(wanted - names)
    extra = sorted(name for name in names - wanted if not ignored(name))
    if missing or extra:
        raise ArtifactError(
            f"{where} does not fit its config.json: missing {missing[:3]}, unexpected {extra[:3]}",
            hint="give a folder that save_pretrained wrote, with all of its files",
        )
    return {rule.ours: rule.join([as_float32(source, name, where) for name in rule.theirs]) for rule in rules}


def as_float32(source: Source, name: str, where: str) -> Tensor:
    """A tensor of theirs in our master precision: exact for every format that has at most its bits."""
    tensor = source.read(name)
    if tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ArtifactError(
            f"{where}: {name} is {tensor.dtype}, a quantised or unusual format",
            hint="import the model as it was before quantisation (float32, bfloat16 or float16)",
        )
    return tensor.float()


def write_tensors(rules: Sequence[Rule], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their tensors from ours; a tensor that no rule names would be lost, and is a defect."""
    ours = {rule.ours for rule in rules}
    assert ours == set(tensors), f"key map: missing {sorted(ours - set(tensors))}, left {sorted(set(tensors) - ours)}"
    written: dict[str, Tensor] = {}
    for rule in rules:
        parts = rule.split(tensors[rule.ours])
        assert len(parts) == len(rule.theirs), f"{rule.ours}: {len(parts)} parts for {len(rule.theirs)} names"
        written.update(zip(rule.theirs, parts, strict=True))
    return written
