"""ModelConfig: the architecture, made of parts and complete by default."""

from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from llmcore.config import Config
from llmcore.errors import ConfigError
from llmcore.extensions import part
from llmcore.model.attention import Attention, GroupedQuery
from llmcore.model.feedforward import AnyFeedForward, SwiGLU
from llmcore.model.latent import MultiHeadLatent
from llmcore.model.norms import AnyNorm, RMSNorm
from llmcore.model.positions import AnyPositions, RoPE

if TYPE_CHECKING:
    from llmcore.model.transformer import Transformer

AnyAttention = Annotated[Attention, part("llmcore.attention", gqa=GroupedQuery, mla=MultiHeadLatent)]


class ModelConfig(Config):
    """A decoder-only transformer; the default has 3.2 million weights."""

    vocab_size: PositiveInt | None = None
    """Tokens the model knows; none: as many as its tokenizer."""
    width: PositiveInt = 256
    """Width of the residual stream."""
    depth: PositiveInt = 4
    """Blocks."""
    context: PositiveInt = 256
    """Longest sequence, in tokens."""
    attention: AnyAttention = GroupedQuery()
    """How tokens look at one another."""
    positions: AnyPositions = RoPE()
    """How tokens know where they stand."""
    norm: AnyNorm = RMSNorm()
    """Normalisation, in every block and before the head."""
    feedforward: AnyFeedForward = SwiGLU()
    """What each token does by itself."""
    layout: Literal["pre", "post", "reordered"] = "pre"
    """Norm before each sublayer (GPT-2, Llama), after each sum (2017), or on each sublayer's output (OLMo 2)."""
    head: Literal["lm", "scalar"] = "lm"
    """Scores of all tokens, or one number per token: a reward or a value."""
    tie_embeddings: bool = True
    """Whether the embedding table is also the lm head."""
    embedding_scale: PositiveFloat = 1.0
    """What embeddings are multiplied with (Gemma: √width)."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of embeddings and sublayer outputs dropped in training."""
    initial_std: PositiveFloat = 0.02
    """Standard deviation of the first weights (GPT-2); smaller by √(2·depth) where they add to the stream."""

    @model_validator(mode="after")
    def consistent(self) -> "ModelConfig":
        self.attention.check(self.width)
        self.positions.check(self.attention.head_size(self.width))
        return self

    @property
    def endless(self) -> bool:
        """Whether a sequence may go beyond the context: no token looks further back than a window within it."""
        sight = self.attention.sight()
        near = sight.causal and sight.window is not None and sight.window <= self.context
        return near and self.positions.endless()

    def with_vocabulary(self, size: int) -> "ModelConfig":
        """The same architecture for a tokenizer of `size` tokens; a larger vocab_size of its own is kept."""
        if self.vocab_size is not None and self.vocab_size < size:
            raise ConfigError(
                f"model.vocab_size is {self.vocab_size!r}, but the tokenizer has {size} tokens",
                hint=f"leave model.vocab_size out, or set it to {size} or more",
            )
        return self.model_copy(update={"vocab_size": self.vocab_size or size})

    def build(self, *, seed: int | None = None) -> "Transformer":
        """A model with fresh weights: a function of `seed`, or of the global generator if it is None."""
        from llmcore.model.transformer import Transformer

        if seed is None:
            return Transformer(self)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return Transformer(self)
