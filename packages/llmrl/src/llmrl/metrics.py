"""Figures of rollouts and updates, under the names that TRL's users know.

Each is a `llmcore.losses.Figure`: (sum, count) of a mean or (value, "max" | "min") of an extreme, so that those of
micro-batches and ranks add up to those of the update. `mask` is True for the tokens that count; other slots may hold
anything.
"""

import torch
from torch import Tensor

from llmcore.losses import Figure
from llmrl.advantages import GroupAdvantages
from llmrl.config import GRPOSettings
from llmrl.rewards.sums import Scores
from llmrl.rollout import Rollout

Figures = dict[str, Figure]


def masked_sum(values: Tensor, mask: Tensor) -> tuple[float, int]:
    """Sum and count over the masked tokens of (B, T-1)."""
    return float(torch.where(mask, values, 0.0).sum()), int(mask.sum())


def group_metrics(rollout: Rollout, scores: Scores, compared: GroupAdvantages) -> Figures:
    """What the groups of a rollout earned; `compared` are its rewards alone, without a KL that was taken from them."""
    return {
        **scores.metrics(),
        "reward_std": (float(compared.spread.sum()), len(compared.spread)),
        "frac_reward_zero_std": (float(compared.flat.sum()), len(compared.flat)),
        **length_metrics(rollout),
    }


def length_metrics(rollout: Rollout) -> Figures:
    """Lengths of completions under TRL's names."""
    lengths = rollout.lengths.float().cpu()
    truncated = rollout.truncated.cpu()
    figures: Figures = {
        "completions/mean_length": (float(lengths.sum()), len(lengths)),
        "completions/min_length": (float(lengths.min()), "min"),
        "completions/max_length": (float(lengths.max()), "max"),
        "completions/clipped_ratio": (float(truncated.sum()), len(lengths)),
    }
    ended = lengths[~truncated]
    if len(ended):
        figures["completions/mean_terminated_length"] = (float(ended.sum()), len(ended))
        figures["completions/min_terminated_length"] = (float(ended.min()), "min")
        figures["completions/max_terminated_length"] = (float(ended.max()), "max")
    return figures


def ratio_metrics(ratio: Tensor, mask: Tensor) -> Figures:
    """The mean of π/π_old (B, T-1), and how far it is from 1 at most."""
    return {"ratio/mean": masked_sum(ratio, mask), "ratio/max_gap": max_gap(ratio, mask)}


def max_gap(ratio: Tensor, mask: Tensor) -> Figure:
    """How far π/π_old (B, T-1) is from 1 at most: on the first update of a rollout, rounding alone."""
    return float(torch.where(mask, ratio - 1, 0.0).abs().max()), "max"


def clip_metrics(ratio: Tensor, advantages: Tensor, mask: Tensor, settings: GRPOSettings) -> Figures:
    """The share of tokens whose gradient the clip takes away, from ratio and advantages (B, T-1).

    `low_min` and `high_max` are of the completion with the smallest and the largest share. cispo takes no gradient
    away: there, the share of tokens whose weight is capped.
    """
    low, high = settings.clip_range
    if settings.loss_type == "cispo":
        return {"cispo_clip_ratio": masked_sum((ratio > high).float(), mask)}
    below = (ratio < low) & (advantages < 0) & mask
    above = (ratio > high) & (advantages > 0) & mask
    figures: Figures = {
        "clip_ratio/low_mean": masked_sum(below.float(), mask),
        "clip_ratio/high_mean": masked_sum(above.float(), mask),
        "clip_ratio/region_mean": masked_sum((below | above).float(), mask),
    }
    if bool(mask.any()):
        rows = mask.any(1)
        lengths = mask.sum(1)[rows]
        figures["clip_ratio/low_min"] = (float((below.sum(1)[rows] / lengths).min()), "min")
        figures["clip_ratio/high_max"] = (float((above.sum(1)[rows] / lengths).max()), "max")
    if settings.delta is not None:
        over = (ratio > settings.delta) & (advantages < 0)
        figures["clip_ratio/delta_mean"] = masked_sum(over.float(), mask)
    return figures


def kl_metrics(policy: Tensor, reference: Tensor, mask: Tensor) -> Figures:
    """Of log-probabilities (B, T-1), under TRL's names.

    `kl` is k3, mean over tokens; `objective/kl` is k1 summed over a completion, mean over completions that count.
    """
    log_ratio = torch.where(mask, policy - reference, 0.0)
    return {
        "kl": masked_sum(torch.expm1(-log_ratio) + log_ratio, mask),
        "objective/kl": (float(log_ratio.sum()), int(mask.any(1).sum())),
    }


def critic_metrics(values: Tensor, returns: Tensor, advantages: Tensor, mask: Tensor) -> Figures:
    """What the critic said, and what it should have said, all (B, T-1); verl's names."""
    figures: Figures = {"critic/vf_explained_var": (explained_variance(values, returns, mask), 1)}
    for name, numbers in (("values", values), ("returns", returns), ("advantages", advantages)):
        chosen = numbers[mask]
        if len(chosen):
            figures[f"critic/{name}/mean"] = (float(chosen.sum()), len(chosen))
            figures[f"critic/{name}/min"] = (float(chosen.min()), "min")
            figures[f"critic/{name}/max"] = (float(chosen.max()), "max")
    return figures


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 - Var(R - V) / Var(R) over the masked tokens of (B, T-1): 1 for a perfect value function, 0 for a constant."""
    wanted, error = returns[mask].cpu().double(), (returns - values)[mask].cpu().double()
    spread = float(wanted.var()) if len(wanted) > 1 else 0.0
    return 1 - float(error.var()) / spread if spread > 0 else 0.0
