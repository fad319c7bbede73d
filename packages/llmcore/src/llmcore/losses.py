"""The next-token loss, token log-probabilities, and what all losses give to the training loop.

The shift — the logits at token t are about token t + 1 — happens in this file and nowhere else. Losses are sums.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from llmcore.errors import ConfigError
from llmcore.generate.sampling import Sampling
from llmcore.head import linear_cross_entropy, linear_logprobs
from llmcore.model.transformer import Transformer


class Batch(NamedTuple):
    """Rows of token ids, padded on the right, and which tokens the model shall learn to say."""

    ids: Tensor
    """(B, T) long."""
    mask: Tensor
    """(B, T) bool: this token is a target; column 0 never is."""
    documents: Tensor | None = None
    """(B, T) long: packed rows; positions restart in each document, and none sees another."""

    @property
    def rows(self) -> int:
        return self.ids.shape[0]

    @property
    def targets(self) -> int:
        """How many tokens are targets."""
        return int(self.mask[:, 1:].sum())

    def to(self, device: torch.device | str) -> "Batch":
        documents = None if self.documents is None else self.documents.to(device, non_blocking=True)
        return Batch(self.ids.to(device, non_blocking=True), self.mask.to(device, non_blocking=True), documents)


Figure = tuple[float, int | Literal["max", "min"]]
"""(sum, count) of a mean, or (value, "max") or (value, "min") of an extreme; so figures of parts add up to one."""


class Loss(NamedTuple):
    """A sum over `count` items; only the training loop divides."""

    total: Tensor
    """Scalar, attached to the graph."""
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody needs
    """Tokens, pairs or sequences."""
    metrics: Mapping[str, Figure] = {}


def next_token_loss(model: Transformer, batch: Batch, *, label_smoothing: float = 0.0, z_loss: float = 0.0) -> Loss:
    """Cross-entropy of each target given the tokens before it, and how often the target had the best score.

    With label smoothing or a z-loss (`linear_cross_entropy`) the plain cross-entropy stands beside it, as `nll`.
    Raises ConfigError for a model that sees the tokens it shall predict.
    """
    if not model.config.attention.sight().causal:
        raise ConfigError(
            "a model whose attention is not causal sees the next token: there is nothing to predict",
            hint="train it as a reward model (llmreward run), or set model.attention.causal=true",
        )
    hidden = model.hidden(batch.ids, documents=batch.documents)
    rows = batch.mask[:, 1:].flatten().nonzero().squeeze(1)
    targets = batch.ids[:, 1:].flatten()[rows]
    total, nll, right = linear_cross_entropy(
        before_last(hidden),
        model.head_weight(),
        targets=targets,
        rows=rows,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
    )
    count = len(rows)
    metrics = {"accuracy": (float(right), count)}
    return Loss(total, count, {**metrics, "nll": (float(nll), count)} if label_smoothing or z_loss else metrics)


def token_logprobs(
    model: Transformer,
    ids: Tensor,
    *,
    temperature: float = 1.0,
    sampling: Sampling | None = None,
    documents: Tensor | None = None,
) -> Tensor:
    """(B, T) -> (B, T-1) float32 log p(ids[:, t+1] | ids[:, :t+1]), differentiable.

    Of the model's own distribution at a temperature; with `sampling`, of the one that such settings sample from: its
    temperature, and after top-k, top-p and min-p, where a token that they leave out has -inf. So the engine's
    `logprobs` are scored again, up to rounding; only a token that stands within it of a threshold may change sides.
    """
    hidden = before_last(model.hidden(ids, documents=documents))
    logprobs, _ = linear_logprobs(
        hidden, model.head_weight(), targets=ids[:, 1:].flatten(), temperature=temperature, sampling=sampling
    )
    return logprobs.view(ids.shape[0], ids.shape[1] - 1)


def before_last(hidden: Tensor) -> Tensor:
    """(B, T, D) -> (B·(T-1), D): the states that are followed by a token."""
    return hidden[:, :-1].flatten(0, 1)
