"""What reads a conversation before the scalar head: a causal model's last token, or the mean over an encoder's tokens.

A causal model (`base`) sums a conversation up at its last token. An encoder sees every token from both sides and is
read by the mean; there are two ways to one: `encoder` lets the base's own weights look both ways (as in LLM2Vec,
BehnamGhader et al. 2024), and `fresh` is a new model of any architecture:

    llmreward run --base runs/sft trunk.kind=encoder
    llmreward run --base runs/sft trunk.kind=fresh trunk.model.attention.causal=false trunk.model.width=128

Another package adds its own by the entry-point group `llmreward.trunk`.
"""

from typing import Annotated, Literal

import torch

from llmcore.errors import ConfigError
from llmcore.extensions import Part, part
from llmcore.model.config import ModelConfig
from llmcore.model.transformer import Transformer


class Trunk(Part):
    """Where the reward model's weights below the head come from."""

    def build(self, base: Transformer, *, seed: int) -> Transformer:
        """The model to train, with a scalar head: `base` holds the policy's weights and a fresh one."""
        raise NotImplementedError(f"{type(self).__name__} must define build")


class BaseTrunk(Trunk):
    """The base policy's weights, as they are."""

    kind: Literal["base"] = "base"

    def build(self, base: Transformer, *, seed: int) -> Transformer:  # noqa: ARG002
        return base


class EncoderTrunk(Trunk):
    """The base policy's weights in a model whose tokens see both ways."""

    kind: Literal["encoder"] = "encoder"

    def build(self, base: Transformer, *, seed: int) -> Transformer:  # noqa: ARG002
        attention = base.config.attention
        if "causal" not in type(attention).model_fields:
            raise ConfigError(
                f"attention of kind {attention.kind!r} cannot look both ways", hint="choose trunk.kind=base or fresh"
            )
        table = {**attention.model_dump(), "causal": False}
        return same_weights(base, base.config.model_copy(update={"attention": type(attention).model_validate(table)}))


class FreshTrunk(Trunk):
    """A new model, which shares only the tokenizer with the base policy."""

    kind: Literal["fresh"] = "fresh"
    model: ModelConfig = ModelConfig()
    """Its architecture, of at least the base's context; `model.attention.causal = false` makes it an encoder."""

    def build(self, base: Transformer, *, seed: int) -> Transformer:
        assert base.config.vocab_size is not None
        config = self.model.with_vocabulary(base.config.vocab_size)
        context = max(config.context, base.config.context)
        return config.model_copy(update={"head": "scalar", "context": context}).build(seed=seed)


AnyTrunk = Annotated[Trunk, part("llmreward.trunk", base=BaseTrunk, encoder=EncoderTrunk, fresh=FreshTrunk)]


def same_weights(model: Transformer, config: ModelConfig) -> Transformer:
    """The weights of a model in another architecture that has the same ones."""
    with torch.device("meta"):
        other = config.build()
    other.load_state_dict(model.state_dict(), assign=True)
    return other
