"""What several completions of each prompt are good for: pass@k, and the best of them, which training has to beat.

Every figure here is one number for each prompt, so that intervals and paired differences are over prompts.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from llmcore.evaluate import passes

RIGHT_OR_WRONG = {0.0, 1.0}


def pass_at(right: Tensor, samples: int, k: int) -> Tensor:
    """(P·G,) -> (P,) the chance that one of k completions is right, from G >= k; what was not scored is not right."""
    counts = right.nan_to_num(0.0).view(-1, samples).sum(1).tolist()
    return torch.tensor([passes.pass_at(int(count), samples, k) for count in counts], dtype=torch.float64)


def pass_rates(terms: Mapping[str, Tensor], samples: int) -> dict[str, Tensor]:
    """pass@1, 2, 4, … of each term that says right or wrong and nothing between; by name, (P,) each."""
    found: dict[str, Tensor] = {}
    for name, values in terms.items():
        if set(values[~values.isnan()].tolist()) <= RIGHT_OR_WRONG:
            found |= {f"pass@{k}/{name}": pass_at(values, samples, k) for k in passes.powers(samples)}
    return found


def best_of(rewards: Tensor, terms: Mapping[str, Tensor], samples: int) -> dict[str, Tensor]:
    """The best completion of each prompt by the whole reward: what it earns, and what each term gives it; (P,) each.

    A term of weight 0 is how a true rule judges what a learned reward picked. NaN where nothing could be scored.
    """
    grouped = rewards.double().view(-1, samples)
    picked = grouped.nan_to_num(-torch.inf).argmax(1, keepdim=True)
    found = {f"best_of_{samples}": grouped.gather(1, picked).squeeze(1)}
    for name, values in terms.items():
        found[f"best_of_{samples}/rewards/{name}"] = values.double().view(-1, samples).gather(1, picked).squeeze(1)
    return found


def best_of_divergence(samples: int) -> float:
    """log n - (n-1)/n: the KL of the best of n to the policy, at most (Beirami et al., arXiv:2401.01879), in nats."""
    return math.log(samples) - (samples - 1) / samples
