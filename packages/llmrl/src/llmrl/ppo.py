"""Proximal policy optimization (arXiv:1707.06347, as arXiv:1909.08593 uses it for language), from rollout to loss.

1. Sample completions from the policy; keep their log-probabilities and values, and the reference's log-probabilities.
2. Score each completion; take `missing_eos_penalty` from one that was cut; clip (and normalise) by running moments.
3. Reward of token t: -kl_coef · (log π_old - log ref); on the last token also the score.
4. GAE gives advantages and, before any whitening, returns R = A + V.
5. For some epochs, in mini-batches: ρ = π/π_old,
   policy loss  -min(ρ A, clip(ρ, 1-c, 1+c_high) A), if A < 0 at most dual_clip·|A|
   value loss   ½ max((V - R)², (clip(V, V_old ± c) - R)²)
   policy loss + vf_coef · value loss - entropy_coef · entropy, averaged over the tokens of the update.
6. Once per rollout kl_coef moves towards `kl_target`, which is in nats per completion: KL summed over its tokens.

The critic is a part (`ppo.critic`): a linear head on the policy's own trunk, which its gradient reaches through
vf_coef, or a model of its own.
"""

from collections.abc import Mapping
from typing import NamedTuple, cast

import torch
from pydantic import JsonValue
from torch import Tensor, nn

from llmcore.losses import Loss
from llmcore.model.transformer import Transformer
from llmcore.tokenizer import Tokenizer
from llmcore.train.parallel import Engine
from llmcore.train.seeds import step_seed
from llmrl.advantages import generalized_advantages, token_rewards, whiten
from llmrl.config import PPOConfig, PPOSettings
from llmrl.controllers import KLCoefficient, RunningMoments
from llmrl.critic_models import CriticModel, ValueHead
from llmrl.experience import Experience
from llmrl.logprobs import pieces, reference_logprobs
from llmrl.metrics import Figures, critic_metrics, length_metrics, masked_sum, max_gap
from llmrl.prompts import Prompts
from llmrl.rewards.sums import Rewards, check_scorable, sum_and_count
from llmrl.rollout import Rollout, sample_rollout
from llmrl.samples import SampleLog
from llmrl.states import logprobs_of_states, sampled_states, spread


class ActorCritic(nn.Module):
    """A policy with its critic: what the loop trains, and what a resumable checkpoint holds."""

    def __init__(self, policy: Transformer, critic: CriticModel | None = None) -> None:
        """A head on the policy's trunk, at first 0, if no critic is given."""
        super().__init__()
        self.policy = policy
        self.critic = critic or ValueHead(policy.config.width)

    def forward(
        self, ids: Tensor, mask: Tensor, *, temperature: float = 1.0, entropy_gradient: bool = False
    ) -> "Judged":
        """ids and mask (B, T) -> what is said of the masked tokens; V_t is that of the state before token t."""
        states = sampled_states(self.policy, ids, mask)
        logprobs, entropies = logprobs_of_states(
            self.policy, states, ids, mask, temperature, entropy=True, entropy_gradient=entropy_gradient
        )
        return Judged(logprobs, entropies, spread(self.critic(states, ids, mask), mask))


class Judged(NamedTuple):
    """What actor and critic say of each sampled token. All (B, T-1), float32, 0 elsewhere."""

    logprobs: Tensor
    entropies: Tensor
    values: Tensor


class PPO:
    """The algorithm around one live policy: what `Experiences` pulls from, and the loss it is trained with."""

    def __init__(
        self,
        actor: ActorCritic,
        *,
        reference: Transformer,
        prompts: Prompts,
        rewards: Rewards,
        tokenizer: Tokenizer,
        config: PPOConfig,
        log: SampleLog | None = None,
        engine: Engine | None = None,
    ) -> None:
        self.actor = actor
        self.reference = reference
        self.prompts = prompts
        self.rewards = rewards
        self.tokenizer = tokenizer
        self.config = config
        self.settings = config.ppo
        self.log = log
        self.engine = engine or Engine()
        self.ranks = self.engine.ranks
        self.kl_coef = KLCoefficient(config.ppo.kl_coef, target=config.ppo.kl_target, horizon=config.ppo.horizon)
        self.moments = RunningMoments()
        self.update_kl: tuple[float, int] = (0.0, 0)

    def experience(self, number: int, *, step: int) -> Experience:
        """Sample, score, and say of each token how much better it was than expected."""
        with self.engine.whole(self.actor) as actor:
            rollout = self.sample(actor, number)
            scores = self.rewards.score(rollout.samples, self.ranks)
            check_scorable(scores, self.config.rollout.max_unscorable)
            judged, reference = self.judge(actor, rollout)
        known = ~scores.total.isnan()
        rollout = rollout._replace(mask=rollout.mask & known.to(rollout.mask.device)[:, None])
        mask = rollout.mask[:, 1:]
        log_ratio = torch.where(mask, judged.logprobs - reference, 0.0)
        points = self.points(scores.total, rollout.truncated.cpu()).to(mask.device)
        rewards = token_rewards(points, log_ratio, mask, kl_coef=self.kl_coef.value)
        if self.settings.whiten_rewards:
            rewards = whiten(rewards, mask, shift_mean=False)
        advantages, returns = generalized_advantages(
            rewards, judged.values, mask, gamma=self.settings.gamma, lam=self.settings.lam
        )
        if self.settings.whiten_advantages:
            advantages = whiten(advantages, mask)
        if self.log is not None:
            self.log.add(step + 1, rollout, scores.terms, scores.total, advantages.sum(1) / mask.sum(1).clamp(min=1))
        divergence = float(log_ratio.sum()) / max(1, int(known.sum()))
        metrics = {
            **scores.metrics(),
            **length_metrics(rollout),
            **self.objective_metrics(judged, points, log_ratio, mask, known=known),
            **critic_metrics(judged.values, returns, advantages, mask),
            "val/num_eos_tokens": (float((~rollout.truncated).sum()), 1),
        }
        self.kl_coef.update(divergence, completions=int(known.sum()))
        return Experience(rollout.ids, rollout.mask, advantages, judged.logprobs, None, judged.values, returns, metrics)

    def loss(self, model: nn.Module, batch: Experience) -> Loss:
        """`ppo_loss` of the live policy; remembers how far the update is from the rollout."""
        assert isinstance(model, ActorCritic)
        loss = ppo_loss(model, batch, self.settings, temperature=self.config.rollout.temperature)
        self.update_kl = (self.update_kl[0] + loss.metrics["policy/approxkl_avg"][0], self.update_kl[1] + loss.count)
        return loss

    def sample(self, actor: ActorCritic, number: int) -> Rollout:
        """One completion of each of B prompts, the next ones in order: train.batch for each mini-batch."""
        return sample_rollout(
            actor.policy,
            self.prompts,
            self.prompts.draw(self.config.train.seed, number, self.config.train.batch * self.settings.num_mini_batches),
            self.tokenizer,
            self.config.rollout,
            samples=1,
            seed=step_seed(self.config.train.seed, number),
            ranks=self.ranks,
        )

    def judge(self, actor: ActorCritic, rollout: Rollout) -> tuple[Judged, Tensor]:
        """What the actor and critic that sampled, and the reference, say of a rollout; without gradients."""
        temperature, count = self.config.rollout.temperature, len(rollout.ids)
        none = torch.zeros(0, rollout.ids.shape[1] - 1, device=rollout.ids.device)
        found = [Judged(none, none, none)]
        with torch.no_grad():
            for p in pieces(self.ranks.share(count)):
                found.append(actor(rollout.ids[p], rollout.mask[p], temperature=temperature))
        other = actor.policy if self.reference is self.actor.policy else self.reference
        reference = reference_logprobs(actor.policy, other, rollout, temperature=temperature, ranks=self.ranks)
        joined = (self.ranks.join_rows(torch.cat(tensors), count) for tensors in zip(*found, strict=True))
        return Judged(*joined), reference

    def points(self, scores: Tensor, truncated: Tensor) -> Tensor:
        """Scores as the tokens are paid with them; 0 where there is none. (B,)"""
        scores = scores - self.settings.missing_eos_penalty * truncated
        known = scores[~scores.isnan()]
        self.moments.update(known)
        mean, deviation = self.moments.mean, self.moments.deviation
        if self.settings.score_clip is not None and deviation > 0:
            reach = self.settings.score_clip * deviation
            scores = scores.clamp(mean - reach, mean + reach)
        if self.settings.normalize_scores:
            scores = (scores - mean) / (deviation or 1.0)
        return torch.where(scores.isnan(), 0.0, scores)

    def objective_metrics(
        self, judged: Judged, points: Tensor, log_ratio: Tensor, mask: Tensor, *, known: Tensor
    ) -> Figures:
        """TRL's `objective/…`: means over completions of sums over tokens."""
        count = int(known.sum())
        cost = self.kl_coef.value * float(log_ratio.sum())
        return {
            "objective/kl": (float(log_ratio.sum()), count),
            "objective/entropy": (-masked_sum(judged.logprobs, mask)[0], count),
            "objective/non_score_reward": (-cost, count),
            "objective/rlhf_reward": (float(points.sum()) - cost, count),
            "objective/scores": sum_and_count(points[known.to(points.device)]),
            "objective/kl_coef": (self.kl_coef.value, 1),
        }

    def begin(self) -> None:
        """An update begins: nothing is known yet of how far it goes."""
        self.update_kl = (0.0, 0)

    def enough(self) -> bool:
        """Whether the last update went as far from its rollout as `stop_kl` allows, over all ranks."""
        if self.settings.stop_kl is None:
            return False
        total, count = (sum(figures) for figures in zip(*self.ranks.gather(self.update_kl), strict=True))
        return bool(total > self.settings.stop_kl * max(1, count))

    def controllers(self) -> dict[str, JsonValue]:
        """The coefficient of the next rollout and the moments so far."""
        return {"kl_coef": self.kl_coef.value, "moments": list(self.moments.state())}

    def restore(self, controllers: Mapping[str, JsonValue]) -> None:
        """Take up what `controllers` gave."""
        self.kl_coef.value = float(cast(float, controllers["kl_coef"]))
        self.moments = RunningMoments(*cast(list[float], controllers["moments"]))


def ppo_loss(model: ActorCritic, batch: Experience, settings: PPOSettings, *, temperature: float) -> Loss:
    """Clipped policy and value losses and the entropy, summed over the tokens; ids and mask (B, T), others (B, T-1)."""
    assert batch.old_logprobs is not None and batch.values is not None and batch.returns is not None
    mask = batch.mask[:, 1:]
    judged = model(batch.ids, batch.mask, temperature=temperature, entropy_gradient=settings.entropy_coef > 0)
    difference = torch.where(mask, judged.logprobs - batch.old_logprobs, 0.0)
    ratio = difference.exp()
    advantages = torch.where(mask, batch.advantages, 0.0)
    policy, clipped = policy_losses(ratio, advantages, clip_range=settings.clip_range, dual_clip=settings.dual_clip)
    value, value_clipped = value_losses(
        torch.where(mask, judged.values, 0.0),
        old=torch.where(mask, batch.values, 0.0),
        returns=torch.where(mask, batch.returns, 0.0),
        cliprange=settings.cliprange_value,
    )
    metrics: Figures = {
        "policy/approxkl_avg": masked_sum(0.5 * difference.detach().square(), mask),
        "policy/clipfrac_avg": masked_sum(clipped.float(), mask),
        "policy/entropy_avg": masked_sum(judged.entropies.detach(), mask),
        "loss/policy_avg": masked_sum(policy.detach(), mask),
        "loss/value_avg": masked_sum(value.detach(), mask),
        "val/clipfrac_avg": masked_sum(value_clipped.float(), mask),
        "val/ratio": masked_sum(ratio.detach(), mask),
        "val/ratio_var": masked_sum((ratio.detach() - 1).square(), mask),  # 1: its expectation
        "val/ratio_max_gap": max_gap(ratio.detach(), mask),
    }
    losses = policy + settings.value_weight * value - settings.entropy_coef * judged.entropies
    return Loss(torch.where(mask, losses, 0.0).sum(), int(mask.sum()), metrics | dict(batch.metrics))


def policy_losses(
    ratio: Tensor, advantages: Tensor, *, clip_range: tuple[float, float], dual_clip: float | None
) -> tuple[Tensor, Tensor]:
    """The clipped objective of each token, negated, and where the clip takes the gradient away. All (B, T-1)."""
    plain = -ratio * advantages
    bounded = -ratio.clamp(*clip_range) * advantages
    losses = torch.maximum(plain, bounded)
    clipped = bounded > plain
    if dual_clip is not None:
        ceiling = -dual_clip * advantages
        over = (advantages < 0) & (losses > ceiling)
        losses, clipped = torch.where(over, ceiling, losses), clipped | over
    return losses, clipped.detach()


def value_losses(values: Tensor, *, old: Tensor, returns: Tensor, cliprange: float) -> tuple[Tensor, Tensor]:
    """½ max((V - R)², (clip(V, V_old ± cliprange) - R)²) of each token, and where the clip takes the gradient away.

    All (B, T-1).
    """
    near = old + (values - old).clamp(-cliprange, cliprange)
    plain, bounded = (values - returns).square(), (near - returns).square()
    return 0.5 * torch.maximum(plain, bounded), (bounded > plain).detach()
