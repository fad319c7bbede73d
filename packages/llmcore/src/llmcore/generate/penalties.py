"""Penalties on tokens that were there before: repetition, presence, frequency."""

from collections.abc import Sequence

import torch
from torch import Tensor


class Usage:
    """Which tokens each row has seen, and how often it generated them; (B, V) each."""

    def __init__(self, seen: Tensor, counts: Tensor) -> None:
        self.seen = seen
        self.counts = counts

    @classmethod
    def of_prompts(cls, prompts: Sequence[Sequence[int]], vocab_size: int, device: torch.device) -> "Usage":
        """What holds before the first token is generated."""
        seen = torch.zeros(len(prompts), vocab_size, dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            seen[row, torch.tensor(prompt)] = True
        return cls(seen.to(device), torch.zeros(seen.shape, device=device))

    def add(self, tokens: Tensor) -> None:
        """Count one more generated token (B,) of each row."""
        column = tokens.unsqueeze(-1)
        self.seen.scatter_(1, column, True)
        self.counts.scatter_add_(1, column, torch.ones_like(column, dtype=self.counts.dtype))

    def penalise(self, logits: Tensor, *, repetition: float, presence: float, frequency: float) -> Tensor:
        """(B, V) -> (B, V).

        Repetition (Keskar et al. 2019) counts the prompt too, as most libraries do; presence and frequency count
        what was generated, as the API that made them known does.
        """
        if repetition != 1.0:
            smaller = torch.where(logits > 0, logits / repetition, logits * repetition)
            logits = torch.where(self.seen, smaller, logits)
        return logits - presence * (self.counts > 0) - frequency * self.counts

    def keep(self, rows: Tensor) -> None:
        """Keep these rows, in this order; a row may come more than once."""
        self.seen, self.counts = self.seen[rows], self.counts[rows]
