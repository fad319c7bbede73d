"""MoE: the settings of a mixture-of-experts feed-forward."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field, PositiveInt, model_validator

from llmcore.model.feedforward import FeedForward, SwiGLU, round_up

if TYPE_CHECKING:
    from llmmoe.layer import MoELayer


class MoE(FeedForward):
    """Each token goes through the few experts, of many, that a router gives the best scores (Shazeer et al. 2017).

    Experts are SwiGLU. No expert is ever full: every token is served, so a token does not depend on the others of
    its batch, nor on padding.
    """

    kind: Literal["moe"] = "moe"
    experts: PositiveInt = 8
    """How many there are."""
    active: PositiveInt = 2
    """How many serve each token."""
    hidden: PositiveInt | None = None
    """Hidden width of an expert; none: the active ones together cost what the dense SwiGLU does."""
    balance: float = Field(default=0.01, ge=0.0)
    """Weight of the load-balancing loss, which is least (1) when experts serve equally."""
    z_loss: float = Field(default=0.0, ge=0.0)
    """Weight of the router z-loss, which keeps its scores small (ST-MoE uses 0.001)."""

    @model_validator(mode="after")
    def consistent(self) -> "MoE":
        if self.active > self.experts:
            raise ValueError(f"active ({self.active}) cannot exceed experts ({self.experts})")
        return self

    def hidden_width(self, width: int) -> int:
        return self.hidden or round_up(SwiGLU().hidden_width(width) / self.active, 8)

    def build(self, width: int) -> "MoELayer":
        from llmmoe.layer import MoELayer

        return MoELayer(self, width)
