"""Log-probabilities of a rollout's completions under any policy, by the training forward and without a gradient."""

import torch
from torch import Tensor

from llmcore.model.adapters import adapters_off
from llmcore.model.transformer import Transformer
from llmcore.train.distributed import ALONE, Ranks
from llmrl.rollout import Rollout
from llmrl.states import sampled_logprobs

SCORING_ROWS = 128
"""Rows of one forward pass without gradients."""


def rollout_logprobs(
    model: Transformer, rollout: Rollout, *, temperature: float, rows: int = SCORING_ROWS, ranks: Ranks = ALONE
) -> Tensor:
    """(B, T-1) log-probabilities of the sampled tokens; 0 elsewhere.

    Each of the `ranks` computes its share of the rows; all get all.
    """
    count, columns = len(rollout.ids), rollout.ids.shape[1] - 1
    found = [torch.zeros(0, columns, device=rollout.ids.device)]
    with torch.no_grad():
        for p in pieces(ranks.share(count), rows):
            found.append(sampled_logprobs(model, rollout.ids[p], rollout.mask[p], temperature=temperature)[0])
    return ranks.join_rows(torch.cat(found), count)


def reference_logprobs(
    policy: Transformer, reference: Transformer, rollout: Rollout, *, temperature: float, ranks: Ranks = ALONE
) -> Tensor:
    """(B, T-1) by the reference: a model of its own, or the policy itself, which then means without its adapters."""
    if reference is policy:
        with adapters_off(policy):
            return rollout_logprobs(policy, rollout, temperature=temperature, ranks=ranks)
    reference.activation_dtype = policy.activation_dtype
    return rollout_logprobs(reference, rollout, temperature=temperature, ranks=ranks)


def pieces(share: slice, rows: int = SCORING_ROWS) -> list[slice]:
    """A run of rows in pieces of at most so many."""
    return [slice(start, min(start + rows, share.stop)) for start in range(share.start, share.stop, rows)]
