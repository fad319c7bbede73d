"""How much better a completion, or a token, was than expected: group baselines for GRPO, GAE for PPO.

All of it is arithmetic on plain tensors without gradients: rewards in, advantages out. Masked slots may hold anything,
NaN included; they never reach a result.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

GROUP_EPSILON = 1e-4
WHITEN_EPSILON = 1e-8


class GroupAdvantages(NamedTuple):
    """What a rollout's rewards come to."""

    advantages: Tensor  # (P·G,) float32
    spread: Tensor  # (P,) standard deviation of each group, ddof 1
    flat: Tensor  # (P,) bool: every reward that counts is the same, so nothing is learned from the group


def group_advantages(
    rewards: Tensor, *, samples: int, scale: Literal["group", "batch", "none"] = "group"
) -> GroupAdvantages:
    """Each reward minus its group's mean, over the deviation of its group, of the batch, or over nothing. (P·G,)

    Groups are contiguous. A NaN reward is unscorable: out of mean and deviation, and its advantage is 0. So is every
    advantage of a group without spread, exactly.
    """
    assert rewards.numel() % samples == 0, f"{rewards.numel()} rewards are no groups of {samples}"
    grouped = rewards.double().view(-1, samples)  # (P, G)
    known = ~grouped.isnan()
    count = known.sum(1, keepdim=True)
    filled = grouped.masked_fill(~known, 0.0)
    mean = filled.sum(1, keepdim=True) / count.clamp(min=1)
    centred = (filled - mean).masked_fill(~known, 0.0)
    highest = grouped.masked_fill(~known, -torch.inf).amax(1, keepdim=True)
    lowest = grouped.masked_fill(~known, torch.inf).amin(1, keepdim=True)
    flat = highest <= lowest
    centred = centred.masked_fill(flat, 0.0)  # a mean of equal numbers may differ from them in the last bit
    spread = (centred.square().sum(1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    if scale == "group":
        advantages = centred / (spread + GROUP_EPSILON)
    elif scale == "batch":
        advantages = centred / (batch_deviation(grouped[known]) + GROUP_EPSILON)
    else:
        advantages = centred
    return GroupAdvantages(advantages.flatten().float(), spread.flatten().float(), flat.flatten())


def batch_deviation(rewards: Tensor) -> Tensor:
    """Standard deviation of all rewards of a rollout, ddof 1; 0 for fewer than two."""
    return rewards.std() if rewards.numel() > 1 else rewards.new_zeros(())


def generalized_advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """GAE over the masked tokens: advantages and returns, both (B, T), 0 outside the mask.

    delta_t = r_t + gamma V_{t+1} - V_t and A_t = delta_t + gamma lam A_{t+1}; V after the last token is 0, also when
    the completion was cut. Slots outside the mask are skipped without decay. Returns are A + V, before any whitening.
    In float64 on the CPU, wherever the values are: thousands of tiny steps, and not every device has float64.
    """
    device, mask, rewards, values = values.device, mask.cpu(), rewards.cpu(), values.cpu()
    rewards = torch.where(mask, rewards, 0.0).double()
    values = torch.where(mask, values, 0.0).double()
    advantages = torch.zeros_like(rewards)
    next_value = rewards.new_zeros(rewards.shape[0])
    next_advantage = rewards.new_zeros(rewards.shape[0])
    for t in reversed(range(rewards.shape[1])):
        here = mask[:, t]
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = delta + gamma * lam * next_advantage
        advantages[:, t] = torch.where(here, advantage, 0.0)
        next_advantage = torch.where(here, advantage, next_advantage)
        next_value = torch.where(here, values[:, t], next_value)
    return advantages.float().to(device), (advantages + values).float().to(device)


def whiten(values: Tensor, mask: Tensor, *, shift_mean: bool = True) -> Tensor:
    """Mean 0 and variance 1 (ddof 1) over the masked tokens; 0 elsewhere. Same shape.

    With fewer than two tokens there is no variance, and only the mean is taken off. `shift_mean=False` keeps the mean.
    """
    chosen = values[mask].cpu().double()
    if chosen.numel() == 0:
        return torch.zeros_like(values)
    mean = chosen.mean()
    scale = (chosen.var() + WHITEN_EPSILON).sqrt() if chosen.numel() > 1 else chosen.new_ones(())
    centred = (torch.where(mask, values, 0.0).cpu().double() - mean) / scale
    result = (centred if shift_mean else centred + mean).to(values.dtype).to(values.device)
    return torch.where(mask, result, 0.0)


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, *, kl_coef: float) -> Tensor:
    """PPO's reward of each token: -kl_coef · KL_t, and the score (B,) on the last masked token. (B, T)"""
    rewards = torch.where(mask, -kl_coef * torch.where(mask, kl, 0.0), 0.0)
    return rewards + torch.where(last_masked(mask), scores[:, None], 0.0)


def last_masked(mask: Tensor) -> Tensor:
    """Only the last True of each row. (B, T) bool"""
    after = mask.long().flip(1).cumsum(1).flip(1)  # how many are left, this one included
    return mask & (after == 1)
