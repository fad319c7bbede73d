"""The modules behind the critics: the policy's states, or a model's own, to one number each."""

from copy import deepcopy

import torch
from torch import Tensor, nn

from llmcore.model.dropout import switch_dropout_off
from llmcore.model.transformer import Transformer
from llmcore.scoring import Scorer
from llmrl.states import sampled_states


class CriticModel(nn.Module):
    """Values of the states before the sampled tokens."""

    def forward(self, states: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """The policy's states (N, D) before the masked tokens of ids and mask (B, T) -> (N,) float32."""
        raise NotImplementedError(f"{type(self).__name__} must define forward")


class ValueHead(CriticModel):
    """w·h + b on the policy's states, at first 0."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, states: Tensor, ids: Tensor, mask: Tensor) -> Tensor:  # noqa: ARG002
        return states.float() @ self.weight + self.bias


class OwnTrunk(CriticModel):
    """A transformer that reads the text for itself."""

    def __init__(self, trunk: Transformer, head: ValueHead) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head

    @classmethod
    def of(cls, start: Scorer | Transformer) -> "OwnTrunk":
        """Begin as a copy of a policy, saying 0, or as a reward model, saying what it says."""
        head = ValueHead((start.model if isinstance(start, Scorer) else start).config.width)
        if isinstance(start, Scorer):
            with torch.no_grad():
                head.weight.copy_(start.model.head_weight().float().squeeze(0) * start.scale.gain)
                head.bias.fill_(start.scale.bias)
        trunk = deepcopy(start.model if isinstance(start, Scorer) else start).requires_grad_(True)
        trunk.head = None  # what the head of tokens or rewards would say is not asked
        switch_dropout_off(trunk)
        return cls(trunk, head)

    def forward(self, states: Tensor, ids: Tensor, mask: Tensor) -> Tensor:  # noqa: ARG002
        own: Tensor = self.head(sampled_states(self.trunk, ids, mask), ids, mask)
        return own
