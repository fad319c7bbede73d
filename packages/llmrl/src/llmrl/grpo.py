"""Group relative policy optimization (arXiv:2402.03300), from rollout to loss; no value function.

1. Sample G completions of each prompt from the policy; a reward r for each.
2. Advantage: A_i = (r_i - mean of its group) / (deviation of its group), the same for every token of completion i.
3. Loss of token t: l_t = -min(ρ_t A, clip(ρ_t, 1-ε, 1+ε_high) A) + β·KL_t - entropy_coef·H_t, ρ_t = π(t)/π_old(t); with
   `delta` the first ρ_t is at most that, so that a bad token which has become likely does not rule the step.
4. Average l over the tokens, as `loss_type` says.

With one update per rollout π_old is π itself: ρ = 1 exactly, nothing is clipped, and the loss is about 0 while its
gradient is not (the advantages of a group add up to 0, their products with ∇log π do not).

**KL.** Estimators of one token: k1 = log π/ref, k2 = k1²/2, k3 = e^(-k1) - 1 + k1. What matters in a loss is the
gradient: that of k1 is 0 on average, of k2 that of KL(π‖ref), of k3 (the field's convention, and the default) that of
KL(ref‖π). `kl_in_reward` takes β·Σk1 from the reward instead; the optimum is then ref·exp(r/β), as in PPO.
"""

from collections.abc import Mapping

import torch
from pydantic import JsonValue
from torch import Tensor, nn

from llmcore.errors import TrainingError
from llmcore.losses import Loss
from llmcore.model.transformer import Transformer
from llmcore.tokenizer import Tokenizer
from llmcore.train.parallel import Engine
from llmcore.train.seeds import step_seed
from llmrl.advantages import GroupAdvantages, group_advantages
from llmrl.config import GRPOConfig, GRPOSettings
from llmrl.experience import Experience
from llmrl.logprobs import reference_logprobs, rollout_logprobs
from llmrl.metrics import clip_metrics, group_metrics, kl_metrics, masked_sum, ratio_metrics
from llmrl.prompts import Prompts
from llmrl.rewards.sums import Rewards, Scores, check_scorable
from llmrl.rollout import Rollout, join, sample_rollout
from llmrl.samples import SampleLog
from llmrl.states import sampled_logprobs


class GRPO:
    """The algorithm around one live policy: what `Experiences` pulls from, and the loss it is trained with."""

    def __init__(
        self,
        policy: Transformer,
        *,
        prompts: Prompts,
        rewards: Rewards,
        tokenizer: Tokenizer,
        config: GRPOConfig,
        reference: Transformer | None = None,
        log: SampleLog | None = None,
        engine: Engine | None = None,
    ) -> None:
        assert (reference is not None) == (config.grpo.beta > 0), "a reference is loaded where beta > 0, and only there"
        self.policy = policy
        self.reference = reference
        self.prompts = prompts
        self.rewards = rewards
        self.tokenizer = tokenizer
        self.config = config
        self.settings = config.grpo
        self.log = log
        self.engine = engine or Engine()
        self.ranks = self.engine.ranks

    def experience(self, number: int, *, step: int) -> Experience:
        """Sample groups, reward them, and compare each completion with its group."""
        with self.engine.whole(self.policy) as policy:
            rollout, scores = self.sample(policy, number)
            old, reference = self.logprobs(policy, rollout)
        rewards, divergence = scores.total, {}
        if self.settings.kl_in_reward:
            assert old is not None and reference is not None
            log_ratio = torch.where(rollout.mask[:, 1:], old - reference, 0.0)
            rewards = rewards - self.settings.beta * log_ratio.sum(1).cpu()
            divergence = kl_metrics(old, reference, rollout.mask[:, 1:])
        advantages = self.compare(rewards).advantages
        if self.log is not None:
            self.log.add(step + 1, rollout, scores.terms, scores.total, advantages)
        mask = rollout.mask
        if self.settings.mask_truncated_completions:
            mask = mask & ~rollout.truncated[:, None]
            check_some_ended(mask, number, longest=self.config.rollout.max_completion_length)
        return Experience(
            rollout.ids,
            mask,
            advantages.to(mask.device)[:, None] * mask[:, 1:],
            old_logprobs=old if self.settings.num_iterations > 1 else None,
            reference_logprobs=None if self.settings.kl_in_reward else reference,
            metrics=group_metrics(rollout, scores, self.compare(scores.total)) | divergence,
        )

    def loss(self, model: nn.Module, batch: Experience) -> Loss:
        """`grpo_loss` of the live policy."""
        assert isinstance(model, Transformer)
        return grpo_loss(
            model,
            batch,
            self.settings,
            temperature=self.config.rollout.temperature,
            longest=self.config.rollout.max_completion_length,
        )

    def sample(self, policy: Transformer, number: int) -> tuple[Rollout, Scores]:
        """The groups of one rollout; those of equal rewards are replaced while attempts are left."""
        groups = self.config.train.batch // self.settings.num_generations
        chosen = self.prompts.draw(self.config.train.seed, number, groups)
        rollout, scores = self.sample_groups(policy, chosen, number, 0)
        for attempt in range(1, self.settings.refill_attempts + 1):
            flat = self.compare(scores.total).flat
            if not bool(flat.any()):
                break
            chosen = self.prompts.draw_again(self.config.train.seed, number, attempt, int(flat.sum()))
            fresh, fresh_scores = self.sample_groups(policy, chosen, number, attempt)
            kept = (~flat).repeat_interleave(self.settings.num_generations).nonzero().flatten()
            rollout = join(rollout, kept, fresh, pad_id=self.tokenizer.pad_id)
            scores = scores.take(kept).join(fresh_scores)
        return rollout, scores

    def sample_groups(
        self, policy: Transformer, chosen: list[int], number: int, attempt: int
    ) -> tuple[Rollout, Scores]:
        """G completions of each of the `chosen` prompts, groups in their order, and what they earned: P·G rows."""
        G = self.settings.num_generations  # noqa: N806
        rollout = sample_rollout(
            policy,
            self.prompts,
            chosen,
            self.tokenizer,
            self.config.rollout,
            samples=G,
            seed=step_seed(self.config.train.seed, (number << 4) + attempt),
            ranks=self.ranks,
        )
        for start in range(0, len(rollout.samples), G):
            group = rollout.samples[start : start + G]
            assert all(sample.prompt is group[0].prompt for sample in group), f"a group of mixed prompts at row {start}"
        scores = self.rewards.score(rollout.samples, self.ranks)
        check_scorable(scores, self.config.rollout.max_unscorable)
        return rollout, scores

    def logprobs(self, policy: Transformer, rollout: Rollout) -> tuple[Tensor | None, Tensor | None]:
        """(B, T-1) of the policy that sampled, where they are needed, and of the reference, where there is one."""
        temperature = self.config.rollout.temperature
        old = reference = None
        if self.settings.num_iterations > 1 or self.settings.kl_in_reward:
            old = rollout_logprobs(policy, rollout, temperature=temperature, ranks=self.ranks)
        if self.reference is not None:
            other = policy if self.reference is self.policy else self.reference
            reference = reference_logprobs(policy, other, rollout, temperature=temperature, ranks=self.ranks)
        return old, reference

    def compare(self, rewards: Tensor) -> GroupAdvantages:
        """Rewards (P·G,) within their groups."""
        return group_advantages(rewards, samples=self.settings.num_generations, scale=self.settings.scale_rewards)

    def begin(self) -> None:
        """Nothing to note."""

    def enough(self) -> bool:
        """Every update of a rollout is made."""
        return False

    def controllers(self) -> dict[str, JsonValue]:
        """Nothing goes from one rollout to the next."""
        return {}

    def restore(self, controllers: Mapping[str, JsonValue]) -> None:
        """Nothing to take up."""


def check_some_ended(mask: Tensor, number: int, *, longest: int) -> None:
    """With every completion left out there is no update to make."""
    if not bool(mask.any()):
        raise TrainingError(
            f"every completion of rollout {number + 1} was cut at {longest} tokens, "
            "and grpo.mask_truncated_completions leaves them all out",
            hint="raise rollout.max_completion_length, or set grpo.mask_truncated_completions=false",
        )


def grpo_loss(
    model: Transformer, batch: Experience, settings: GRPOSettings, *, temperature: float, longest: int
) -> Loss:
    """`token_losses` of the live model, with KL and entropy, added up as `loss_type` says.

    ids and mask (B, T), the tensors of tokens (B, T-1); `longest` is the longest completion that could be sampled.
    """
    mask = batch.mask[:, 1:]
    advantages = torch.where(mask, batch.advantages, 0.0)
    logprobs, entropies = sampled_logprobs(
        model, batch.ids, batch.mask, temperature=temperature, entropy=True, entropy_gradient=settings.entropy_coef > 0
    )
    old = logprobs.detach() if batch.old_logprobs is None else batch.old_logprobs
    ratio = probability_ratio(logprobs, old, mask, level=settings.importance_sampling_level)
    losses = token_losses(logprobs, ratio, advantages, settings)
    if settings.entropy_coef:
        losses = losses - settings.entropy_coef * entropies
    metrics = ratio_metrics(ratio.detach(), mask) | clip_metrics(ratio.detach(), advantages, mask, settings)
    metrics["entropy"] = masked_sum(entropies.detach(), mask)
    if batch.reference_logprobs is not None:
        losses = losses + settings.beta * kl_losses(
            logprobs, batch.reference_logprobs, mask, estimator=settings.kl_estimator
        )
        metrics |= kl_metrics(logprobs.detach(), batch.reference_logprobs, mask)
    total, count = aggregate(losses, mask, settings.loss_type, longest=longest)
    return Loss(total, count, metrics | dict(batch.metrics))


def probability_ratio(logprobs: Tensor, old: Tensor, mask: Tensor, *, level: str) -> Tensor:
    """π/π_old of each token, or of the whole completion (its geometric mean) at each token. (B, T-1)"""
    difference = torch.where(mask, logprobs - old, 0.0)
    if level == "sequence":
        mean = difference.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
        difference = torch.where(mask, mean, 0.0)
    return difference.exp()


def token_losses(logprobs: Tensor, ratio: Tensor, advantages: Tensor, settings: GRPOSettings) -> Tensor:
    """The clipped objective of each token, negated; with cispo the capped ratio only weighs the gradient; (B, T-1)."""
    low, high = settings.clip_range
    if settings.loss_type == "cispo":
        return -ratio.detach().clamp(max=high) * advantages * logprobs
    bounded = ratio if settings.delta is None else ratio.clamp(max=settings.delta)
    return -torch.minimum(bounded * advantages, ratio.clamp(low, high) * advantages)


def kl_losses(logprobs: Tensor, reference: Tensor, mask: Tensor, *, estimator: str) -> Tensor:
    """k2 or k3 of each token. (B, T-1)"""
    log_ratio = torch.where(mask, logprobs - reference, 0.0)
    return log_ratio.square() / 2 if estimator == "k2" else torch.expm1(-log_ratio) + log_ratio


def aggregate(losses: Tensor, mask: Tensor, loss_type: str, *, longest: int) -> tuple[Tensor, int]:
    """(B, T-1) -> a sum and the count that the loop divides it by, after all micro-batches of the step.

    grpo     mean over completions of the mean over each one's tokens    sum of means / completions
    dapo     mean over all tokens of the step (cispo likewise)           sum / tokens
    dr_grpo  sum over tokens, over a constant for each completion        sum / (completions · longest)
    bnpo     mean over the tokens of each micro-batch                    (sum / its tokens · its rows) / completions

    bnpo alone depends on how a step is split into micro-batches; it is here because TRL has it. A completion without a
    token that counts is one of the completions, with a loss of 0.
    """
    losses = torch.where(mask, losses, 0.0)
    rows = len(mask)
    if loss_type == "grpo":
        return (losses.sum(1) / mask.sum(1).clamp(min=1)).sum(), rows
    if loss_type == "dr_grpo":
        return losses.sum() / longest, rows
    if loss_type == "bnpo":
        return losses.sum() / mask.sum().clamp(min=1) * rows, rows
    return losses.sum(), int(mask.sum())
