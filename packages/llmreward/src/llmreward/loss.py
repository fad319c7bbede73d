"""Losses on comparisons of answers: how the score of the better one should stand to that of the worse.

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

from llmcore.branches import Layout, plain_rows
from llmcore.extensions import Part, part
from llmcore.losses import Figure, Loss
from llmcore.model.transformer import Transformer
from llmcore.scoring import layout_scores, layout_token_scores

PairLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(chosen (B,), rejected (B,), margins (B,)) -> (B,); a margin that the data does not give is NaN."""


class PreferenceBatch(NamedTuple):
    """Answers to some prompts, each once, and the B comparisons among those of one prompt."""

    layout: Layout
    """The rows of N answers, laid out so that a prompt is read once."""
    better: Tensor
    """(B,) long: the number of each comparison's better answer."""
    worse: Tensor
    """(B,) long: the number of its worse answer."""
    margins: Tensor
    """(B,) float32, NaN where the data gives none."""
    weights: Tensor
    """(B,) float32: 1 / the comparisons of that prompt."""
    prompts: int
    """Groups of comparisons, which is what a loss is averaged over."""

    @property
    def ids(self) -> Tensor:
        """(R, S): what one forward reads."""
        return self.layout.ids


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


def reward_loss(pair_loss: PairLoss, *, token_share: float = 0.0) -> Callable[[nn.Module, PreferenceBatch], Loss]:
    """The loss of a batch for the training loop: a sum over prompts, and their number.

    A prompt's loss is the mean over its comparisons, C(K, 2) of them where K answers are ranked (Ouyang et al. 2022,
    equation 1). `token_share` of each comparison's loss is the mean over the tokens from where its two answers part.
    """

    def loss(model: nn.Module, batch: PreferenceBatch) -> Loss:
        assert isinstance(model, Transformer), f"a {type(model).__name__} has no scores"
        if token_share:
            every = layout_token_scores(model, batch.layout)  # (N, T)
            scores = every.gather(1, (batch.layout.lengths - 1).unsqueeze(1)).squeeze(1)  # (N,)
        else:
            scores = layout_scores(model, batch.layout)  # (N,)
        better, worse = scores[batch.better], scores[batch.worse]  # (B,), (B,)
        losses = pair_loss(better, worse, batch.margins)
        if token_share:
            losses = (1 - token_share) * losses + token_share * token_loss(pair_loss, every, batch)
        check_shapes(losses, batch.weights)
        return Loss((losses * batch.weights).sum(), batch.prompts, pair_metrics(better, worse))

    return loss


def token_loss(pair_loss: PairLoss, scores: Tensor, batch: PreferenceBatch) -> Tensor:
    """Scores of all tokens (N, T) -> (B,): each comparison's mean from its first different token to the shorter end."""
    ids, inside_row = plain_rows(batch.layout)  # (N, T), (N, T)
    parted = (ids[batch.better] != ids[batch.worse]).cumsum(1) > 0  # (B, T)
    inside = parted & inside_row[batch.better] & inside_row[batch.worse]
    margins = batch.margins.unsqueeze(1).expand_as(inside)
    losses = torch.zeros(inside.shape, dtype=scores.dtype, device=scores.device)
    losses[inside] = pair_loss(scores[batch.better][inside], scores[batch.worse][inside], margins[inside])
    return losses.sum(1) / inside.sum(1).clamp(min=1)


@torch.no_grad()
def pair_metrics(chosen: Tensor, rejected: Tensor) -> dict[str, Figure]:
    """(B,), (B,) -> what a person watches of comparisons and of both their answers; a tie is wrong."""
    both, pairs = torch.cat([chosen, rejected]), len(chosen)
    figures: dict[str, tuple[Tensor, int | Literal["max", "min"]]] = {
        "accuracy": ((chosen > rejected).sum(), pairs),
        "margin": ((chosen - rejected).sum(), pairs),
        "chosen_reward": (chosen.sum(), pairs),
        "rejected_reward": (rejected.sum(), pairs),
        "mean_reward": (both.sum(), 2 * pairs),
        "min_reward": (both.min(), "min"),
        "max_reward": (both.max(), "max"),
    }
    values = torch.stack([value.to(both.dtype) for value, _ in figures.values()]).tolist()
    return {name: (value, over) for value, (name, (_, over)) in zip(values, figures.items(), strict=True)}


def check_shapes(*tensors: Tensor) -> None:
    """(B, 1) against (B,) would broadcast to (B, B) and still train, badly."""
    shapes = [tuple(tensor.shape) for tensor in tensors]
    assert tensors[0].ndim == 1 and len(set(shapes)) == 1, f"scores, margins or weights have shapes {shapes}"
