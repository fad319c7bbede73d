"""Adapters: a few new weights beside frozen ones, which alone are trained; LoRA is the core's own kind.

Another kind joins by the entry-point group `llmcore.adapter`. What adapters do to a model is in
`llmcore.model.adapters`, how they are kept in `llmcore.adapters`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from llmcore.extensions import Part, part

if TYPE_CHECKING:  # settings are read without torch
    from llmcore.model.linear import Update

ALL_LINEAR = "all-linear"
"""Every projection of the blocks; the head and the embedding table are none (PEFT's word for it)."""


class Adapter(Part):
    """The contract: `build` gives the `Update` that one projection gets."""

    target_modules: tuple[str, ...] | str = ALL_LINEAR
    """Which projections get one, by name ("qkv", "out", "gate_up", "up", "down") or as "all-linear"; queries, keys and
    values are one matrix here, gate and up another."""

    def build(self, inputs: int, outputs: int, *, seed: int) -> Update:
        """The update of an (outputs, inputs) matrix, at first zero."""
        raise NotImplementedError(f"{type(self).__name__} must define build")


class LoRA(Adapter):
    """W x + (alpha / rank) · B A dropout(x), with A (rank, inputs) and B (outputs, rank) (Hu et al., arXiv:2106.09685).

    A fused matrix (queries, keys and values; gate and up) has one A for all its parts, as the paper's W has: exported,
    each part takes its rows of B and the same A.
    """

    kind: Literal["lora"] = "lora"
    rank: int = Field(8, ge=1)
    """Rank of the update."""
    alpha: float = Field(16.0, gt=0)
    """The update is scaled by alpha / rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the inputs of A dropped in training."""

    def build(self, inputs: int, outputs: int, *, seed: int) -> Update:
        from llmcore.model.adapters import LowRank

        return LowRank(self, inputs, outputs, seed=seed)


AnyAdapter = Annotated[Adapter, part("llmcore.adapter", lora=LoRA)]
OptionalAdapter = Annotated[Adapter | None, part("llmcore.adapter", lora=LoRA)]
