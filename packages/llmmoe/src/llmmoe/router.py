"""The router: which experts serve a token, in which proportions, and what uneven routing costs."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmcore.model.linear import Spread, widen


class Routing(NamedTuple):
    """Where N tokens go."""

    scores: Tensor
    """(N, E) float32, before the softmax."""
    chosen: Tensor
    """(N, K) long: experts, the best first."""
    proportions: Tensor
    """(N, K) float32, summing to 1 over the chosen."""


class Router(nn.Module):
    """(N, D) -> the K experts with the best scores, and a softmax over those (Mixtral, Jiang et al. 2024).

    It computes in float32 whatever the activations are held in: rounded scores change who is chosen (Switch
    Transformer, section 2.4).
    """

    def __init__(self, width: int, *, experts: int, active: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, width))
        self.active = active

    def initialise(self, spread: Spread) -> None:
        nn.init.normal_(self.weight, std=spread.std)

    def forward(self, x: Tensor) -> Routing:
        wide = widen(x)
        scores = F.linear(wide, self.weight.to(wide.dtype))
        best, chosen = scores.topk(self.active, dim=-1)
        return Routing(scores, chosen, torch.softmax(best, dim=-1))


def balance_loss(routing: Routing) -> Tensor:
    """E · Σ share of assignments · mean probability, over the experts: 1 when routing is even, E when all go to one.

    Switch Transformer (Fedus et al. 2021), equations 4 to 6, with assignments counted over all K choices as Mixtral
    does; divided by K, so that the least value is 1 for any K. Its gradient flows through the probabilities.
    """
    experts = routing.scores.shape[-1]
    shares = torch.bincount(routing.chosen.flatten(), minlength=experts) / routing.chosen.numel()
    probabilities = torch.softmax(routing.scores, dim=-1).mean(0)
    return experts * (shares * probabilities).sum()


def z_loss(routing: Routing) -> Tensor:
    """The mean square of the scores' log-sum-exp (ST-MoE, Zoph et al. 2022, equation 5)."""
    return torch.logsumexp(routing.scores, dim=-1).square().mean()
