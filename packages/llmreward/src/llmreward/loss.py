"""Losses on pairs of answers: how the score of the better one should stand to that of the worse.

With d = r_chosen - r_rejected and a margin m >= 0 that is each pair's own where the data gives one:

    bradley_terry    (1 - e) · -log σ(d - m)  +  e · -log σ(-d - m)  +  c · (r_chosen + r_rejected)²
    margin_ranking   max(0, m - d)

Another package adds its own by the entry-point group `llmreward.loss`.
"""

from collections.abc import Callable
from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from llmcore.extensions import Part, part
from llmcore.losses import Loss
from llmcore.model.transformer import Transformer
from llmcore.scoring import head_scores, sequence_scores

PairLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(chosen (B,), rejected (B,), margins (B,)) -> (B,); a margin that the data does not give is NaN."""


class PairBatch(NamedTuple):
    """Pairs whose two sides pass the model together: the first B rows are chosen, the next B rejected."""

    ids: Tensor
    """(2B, T), padded on the right."""
    lengths: Tensor
    """(2B,) real tokens of each row."""
    margins: Tensor
    """(B,) float32, NaN where the data gives none."""


class PreferenceLoss(Part):
    """How the two scores of a pair become a loss."""

    def build(self) -> PairLoss:
        """(B,), (B,), (B,) -> (B,): one loss for each pair."""
        raise NotImplementedError


class BradleyTerry(PreferenceLoss):
    """Minus the log-likelihood of the choice, if an answer wins with the odds exp(r) (Bradley and Terry, 1952)."""

    kind: Literal["bradley_terry"] = "bradley_terry"
    margin: float = Field(default=0.0, ge=0)
    """By how much the better score should be higher, for pairs without a margin of their own."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """The share of pairs believed to be labelled the wrong way round."""
    centering: float = Field(default=0.0, ge=0)
    """Weight of the squared sum of both scores, which draws scores to mean 0 (0.01 in arXiv:2312.09244)."""

    def build(self) -> PairLoss:
        def loss(chosen: Tensor, rejected: Tensor, margins: Tensor) -> Tensor:
            check_shapes(chosen, rejected, margins)
            margin = margins.nan_to_num(nan=self.margin)
            difference = chosen - rejected
            right, wrong = F.softplus(margin - difference), F.softplus(margin + difference)
            likelihood = (1 - self.label_smoothing) * right + self.label_smoothing * wrong
            return likelihood + self.centering * (chosen + rejected).square()

        return loss


class MarginRanking(PreferenceLoss):
    """Nothing once the better score leads by the margin, and linear below it (the hinge)."""

    kind: Literal["margin_ranking"] = "margin_ranking"
    margin: float = Field(default=1.0, gt=0)
    """The lead asked for, for pairs without a margin of their own."""

    def build(self) -> PairLoss:
        def loss(chosen: Tensor, rejected: Tensor, margins: Tensor) -> Tensor:
            check_shapes(chosen, rejected, margins)
            return (margins.nan_to_num(nan=self.margin) - (chosen - rejected)).relu()

        return loss


AnyPreferenceLoss = Annotated[
    PreferenceLoss, part("llmreward.loss", bradley_terry=BradleyTerry, margin_ranking=MarginRanking)
]


def reward_loss(pair_loss: PairLoss, *, token_share: float = 0.0) -> Callable[[nn.Module, PairBatch], Loss]:
    """The loss of a batch of pairs for the training loop: a sum over pairs, and their number.

    `token_share` of each pair's loss is the mean loss over the tokens from where its two answers part.
    """

    def loss(model: nn.Module, batch: PairBatch) -> Loss:
        assert isinstance(model, Transformer), f"a {type(model).__name__} has no scores"
        if token_share:
            every = head_scores(model, model.hidden(batch.ids))  # (2B, T)
            chosen, rejected = every.gather(1, (batch.lengths - 1).unsqueeze(1)).squeeze(1).chunk(2)
            at_tokens = token_loss(pair_loss, every, batch)
            losses = (1 - token_share) * pair_loss(chosen, rejected, batch.margins) + token_share * at_tokens
        else:
            chosen, rejected = sequence_scores(model, batch.ids, batch.lengths).chunk(2)  # (B,), (B,)
            losses = pair_loss(chosen, rejected, batch.margins)
        return Loss(losses.sum(), len(losses), pair_metrics(chosen, rejected))

    return loss


def token_loss(pair_loss: PairLoss, scores: Tensor, batch: PairBatch) -> Tensor:
    """Scores of all tokens (2B, T) -> (B,): each pair's mean loss from its first different token to the shorter end."""
    ids, other_ids = batch.ids.chunk(2)  # (B, T)
    begin = (ids != other_ids).long().argmax(1, keepdim=True)  # (B, 1)
    end = torch.minimum(*batch.lengths.chunk(2)).unsqueeze(1)  # (B, 1)
    place = torch.arange(ids.shape[1], device=ids.device)
    inside = (place >= begin) & (place < end)  # (B, T)
    chosen, rejected = scores.chunk(2)
    margins = batch.margins.unsqueeze(1).expand_as(inside)
    losses = torch.zeros_like(chosen)
    losses[inside] = pair_loss(chosen[inside], rejected[inside], margins[inside])
    return losses.sum(1) / inside.sum(1).clamp(min=1)


@torch.no_grad()
def pair_metrics(chosen: Tensor, rejected: Tensor) -> dict[str, tuple[float, int]]:
    """Sums over pairs (B,), and their number, of what a person watches; a tie is wrong."""
    figures = torch.stack([(chosen > rejected).float(), chosen - rejected, chosen, rejected]).sum(1).tolist()
    names = ("accuracy", "margin", "chosen_reward", "rejected_reward")
    return {name: (total, len(chosen)) for name, total in zip(names, figures, strict=True)}


def check_shapes(chosen: Tensor, rejected: Tensor, margins: Tensor) -> None:
    """(B, 1) against (B,) would broadcast to (B, B) and still train, badly."""
    shapes = [tuple(tensor.shape) for tensor in (chosen, rejected, margins)]
    assert chosen.ndim == 1 and len(set(shapes)) == 1, f"chosen, rejected and margins have shapes {shapes}"
