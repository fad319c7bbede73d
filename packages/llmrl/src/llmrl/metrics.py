"""Figures of rollouts and updates, under the names that TRL's users know; (sum, count) pairs, so that they add up."""

import torch
from torch import Tensor

from llmrl.advantages import GroupAdvantages
from llmrl.rewards.sums import Scores
from llmrl.rollout import Rollout, length_metrics

Figures = dict[str, tuple[float, int]]


def masked_sum(values: Tensor, mask: Tensor) -> tuple[float, int]:
    """Sum and count over the masked tokens."""
    return float(torch.where(mask, values, 0.0).sum()), int(mask.sum())


def group_metrics(rollout: Rollout, scores: Scores, compared: GroupAdvantages) -> Figures:
    """What the groups of a rollout earned."""
    return {
        **scores.metrics(),
        "reward_std": (float(compared.spread.sum()), len(compared.spread)),
        "frac_reward_zero_std": (float(compared.flat.sum()), len(compared.flat)),
        **length_metrics(rollout),
    }


def clip_metrics(ratio: Tensor, advantages: Tensor, mask: Tensor, *, low: float, high: float) -> Figures:
    """The share of tokens whose gradient the clip takes away, and the ratio's mean; `low_min` is of one completion."""
    below = (ratio < low) & (advantages < 0) & mask
    above = (ratio > high) & (advantages > 0) & mask
    tokens = int(mask.sum())
    lengths = mask.sum(1).clamp(min=1)
    return {
        "clip_ratio/low_mean": (float(below.sum()), tokens),
        "clip_ratio/high_mean": (float(above.sum()), tokens),
        "clip_ratio/region_mean": (float((below | above).sum()), tokens),
        "clip_ratio/low_min": (float((below.sum(1) / lengths).min()), 1),
        "clip_ratio/high_max": (float((above.sum(1) / lengths).max()), 1),
        "ratio/mean": masked_sum(ratio, mask),
        "ratio/max_gap": max_gap(ratio, mask),
    }


def max_gap(ratio: Tensor, mask: Tensor) -> tuple[float, int]:
    """How far π/π_old is from 1 at most: on the first update of a rollout, rounding alone."""
    return float(torch.where(mask, ratio - 1, 0.0).abs().max()), 1


def kl_metrics(policy: Tensor, reference: Tensor, mask: Tensor) -> Figures:
    """`kl`: k3, mean over tokens (TRL's GRPO); `objective/kl`: k1 summed over a completion, mean over completions."""
    log_ratio = torch.where(mask, policy - reference, 0.0)
    return {
        "kl": masked_sum(torch.expm1(-log_ratio) + log_ratio, mask),
        "objective/kl": (float(log_ratio.sum()), len(mask)),
    }


def critic_metrics(values: Tensor, returns: Tensor, advantages: Tensor, mask: Tensor) -> Figures:
    """What the critic said, and what it should have said; verl's names."""
    figures: Figures = {"critic/vf_explained_var": (explained_variance(values, returns, mask), 1)}
    for name, numbers in (("values", values), ("returns", returns), ("advantages", advantages)):
        chosen = numbers[mask]
        if len(chosen):
            figures[f"critic/{name}/mean"] = (float(chosen.sum()), len(chosen))
            figures[f"critic/{name}/min"] = (float(chosen.min()), 1)
            figures[f"critic/{name}/max"] = (float(chosen.max()), 1)
    return figures


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 - Var(R - V) / Var(R): 1 for a perfect value function, 0 for a constant one."""
    wanted, error = returns[mask].cpu().double(), (returns - values)[mask].cpu().double()
    spread = float(wanted.var()) if len(wanted) > 1 else 0.0
    return 1 - float(error.var()) / spread if spread > 0 else 0.0
