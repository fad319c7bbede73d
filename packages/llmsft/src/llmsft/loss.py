"""The losses of supervised fine-tuning: cross-entropy (nll) or DFT, with noise on the embeddings if asked for."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from llmcore.head import linear_logprobs
from llmcore.losses import Loss, before_last
from llmcore.model.transformer import Transformer
from llmcore.objective import NextToken
from llmsft.batches import ChatBatch

LossType = Literal["nll", "dft"]


def sft_loss(
    loss_type: LossType, objective: NextToken | None = None, *, neftune_noise_alpha: float | None = None
) -> Callable[[Transformer, ChatBatch], Loss]:
    """The loss function of a run; the objective's additions are the cross-entropy's."""
    cross_entropy = (objective or NextToken()).build()
    of_targets = dft_loss if loss_type == "dft" else lambda model, batch: cross_entropy(model, batch.plain)
    return partial(chat_loss, of_targets=of_targets, neftune_noise_alpha=neftune_noise_alpha or 0.0)


def chat_loss(
    model: Transformer,
    batch: ChatBatch,
    *,
    of_targets: Callable[[Transformer, ChatBatch], Loss],
    neftune_noise_alpha: float,
) -> Loss:
    """The summed loss of all targets, and what is logged beside it."""
    with embedding_noise(model, batch.lengths, alpha=neftune_noise_alpha):
        loss = of_targets(model, batch)
    figures = {} if batch.competence is None else {"competence": (batch.competence * loss.count, loss.count)}
    return loss._replace(metrics={**loss.metrics, **figures})


def dft_loss(model: Transformer, batch: ChatBatch) -> Loss:
    """-sg(p) log p of each target with its probability p (dynamic fine-tuning, Wu et al., arXiv:2508.05629).

    The weight takes away the 1/p by which the gradient of cross-entropy is large where a target is unlikely.
    """
    hidden = before_last(model.hidden(batch.ids, documents=batch.documents))
    rows = batch.mask[:, 1:].flatten().nonzero().squeeze(1)
    logprobs, _ = linear_logprobs(hidden[rows], model.head_weight(), targets=batch.ids[:, 1:].flatten()[rows])
    total = -(logprobs.detach().exp() * logprobs).sum()
    return Loss(total, len(rows), {"nll": (float(-logprobs.detach().sum()), len(rows))})


@contextmanager
def embedding_noise(model: Transformer, lengths: Tensor, *, alpha: float) -> Iterator[None]:
    """While inside, embeddings have noise from ±alpha/√(L·D) in training (NEFTune, Jain et al., arXiv:2310.05914).

    L is the length (B, T) of the conversation that a token is in, neither padding nor neighbours in a packed row
    counted. The noise comes from the global generator, which the loop seeds by the step.
    """

    def add_noise(_module: nn.Module, _inputs: Any, embedded: Tensor) -> Tensor:
        if not model.training:
            return embedded
        scale = alpha / (lengths * embedded.shape[-1]).to(embedded.dtype).sqrt()  # (B, T)
        noise = torch.rand_like(embedded).mul_(2).sub_(1)
        return embedded + noise * scale.unsqueeze(-1)

    handle = model.embedding.register_forward_hook(add_noise) if alpha else None
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()
