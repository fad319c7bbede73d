"""PPO: losses in closed form, controllers, and the invariants of the first step."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from llmcore.losses import token_logprobs
from llmcore.model.config import ModelConfig
from llmcore.model.transformer import Transformer
from llmcore.scoring import RewardScale, Scorer
from llmcore.tokenizer import Tokenizer
from llmcore.train.loop import train_step
from llmcore.train.optim import AdamW, set_rate
from llmcore.train.tally import Tally
from llmrl.advantages import generalized_advantages, token_rewards
from llmrl.config import PPOSettings
from llmrl.controllers import KLCoefficient, RunningMoments
from llmrl.critic import CriticRate, SeparateCritic, SharedTrunk
from llmrl.critic_models import OwnTrunk
from llmrl.experience import Experience
from llmrl.metrics import explained_variance
from llmrl.ppo import ActorCritic, policy_losses, ppo_loss, value_losses


def tiny(seed: int = 0) -> ActorCritic:
    """A small policy with a value head that has learned something."""
    torch.manual_seed(seed)
    actor = ActorCritic(ModelConfig(vocab_size=11, width=16, depth=1, context=32).build())
    with torch.no_grad():
        for weight in actor.parameters():
            weight += 0.2 * torch.randn_like(weight)
    return actor


def some_experience(actor: ActorCritic, *, seed: int = 0, off: float = 0.0) -> Experience:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 11, (8, 10), generator=generator)
    starts = torch.randint(1, 4, (8,), generator=generator)
    lengths = torch.randint(1, 6, (8,), generator=generator)
    column = torch.arange(10)
    mask = (column >= starts[:, None]) & (column < (starts + lengths)[:, None])
    with torch.no_grad():
        judged = actor(ids, mask)
    noise = torch.randn(4, *judged.values.shape, generator=generator)
    return Experience(
        ids,
        mask,
        noise[0],
        judged.logprobs + off * noise[1],
        None,
        judged.values + off * noise[2],
        judged.values + noise[3],
    )


def test_the_value_head_begins_at_zero_and_sees_no_later_token() -> None:
    policy = ModelConfig(vocab_size=11, width=16, depth=1, context=32).build(seed=0)
    seen = torch.tensor([[False, True, True, True]])
    assert ActorCritic(policy)(torch.arange(4)[None], seen).values.abs().max() == 0
    actor = tiny()
    with torch.no_grad():
        values = actor(torch.tensor([[1, 2, 3, 4]]), seen).values
        changed = actor(torch.tensor([[1, 2, 3, 9]]), seen).values
    torch.testing.assert_close(values, changed, rtol=0, atol=1e-6)
    assert values.shape == (1, 3)


def test_the_policy_loss_in_closed_form() -> None:
    ratio = torch.tensor([1.0, 1.5, 1.5, 0.5, 0.5, 10.0])
    advantages = torch.tensor([2.0, 2.0, -2.0, 2.0, -2.0, -2.0])
    losses, clipped = policy_losses(ratio, advantages, clip_range=(0.8, 1.2), dual_clip=None)
    assert losses.tolist() == pytest.approx([-2.0, -2.4, 3.0, -1.0, 1.6, 20.0])
    assert clipped.tolist() == [False, True, False, False, True, False]
    losses, clipped = policy_losses(ratio, advantages, clip_range=(0.8, 1.2), dual_clip=3.0)
    assert losses.tolist() == pytest.approx([-2.0, -2.4, 3.0, -1.0, 1.6, 6.0])
    assert clipped.tolist() == [False, True, False, False, True, True]


def test_the_clip_may_reach_further_up_than_down() -> None:
    settings = PPOSettings(cliprange=0.2, cliprange_high=0.5)
    ratio, advantages = torch.tensor([1.4, 1.6, 0.7]), torch.tensor([1.0, 1.0, -1.0])
    losses, clipped = policy_losses(ratio, advantages, clip_range=settings.clip_range, dual_clip=None)
    assert losses.tolist() == pytest.approx([-1.4, -1.5, 0.8])
    assert clipped.tolist() == [False, True, True]
    assert PPOSettings(cliprange=0.1).clip_range == pytest.approx((0.9, 1.1))


def every_completion(actor: ActorCritic, *, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Each of 11^length completions of the prompt 0: ids, mask (B, T) and log-probabilities (B, T-1)."""
    ids = torch.tensor([[0, *rest] for rest in itertools.product(range(11), repeat=length)])
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[:, 0] = False
    return ids, mask, token_logprobs(actor.policy, ids)


def gradient_of(actor: ActorCritic, loss: Tensor) -> Tensor:
    gradients = torch.autograd.grad(loss, list(actor.policy.parameters()), allow_unused=True)
    return torch.cat([g.flatten() for g in gradients if g is not None])


def test_the_gradient_over_all_completions_is_that_of_the_expected_reward() -> None:
    """No sampling: each of the 121 completions weighted by its probability gives exactly -∇J, whatever the values."""
    actor = tiny()
    ids, mask, logprobs = every_completion(actor, length=2)
    rewards = torch.rand(len(ids), generator=torch.Generator().manual_seed(2))
    chance = logprobs.sum(1).exp()
    assert chance.sum().item() == pytest.approx(1, abs=1e-5)
    wanted = gradient_of(actor, -(chance * rewards).sum())
    with torch.no_grad():
        values = actor(ids, mask).values
    assert values.abs().max() > 0.1
    paid = token_rewards(rewards, torch.zeros_like(values), mask[:, 1:], kl_coef=0.0)
    advantages, returns = generalized_advantages(paid, values, mask[:, 1:], gamma=1.0, lam=1.0)
    batch = Experience(
        ids, mask, chance.detach()[:, None] * advantages, logprobs.detach(), values=values, returns=returns
    )
    loss = ppo_loss(actor, batch, PPOSettings(vf_coef=0.0), temperature=1.0)
    torch.testing.assert_close(gradient_of(actor, loss.total), wanted, rtol=1e-3, atol=1e-6)


def test_the_entropy_in_the_loss_has_the_gradient_of_the_entropy() -> None:
    actor = tiny()
    ids, mask, logprobs = every_completion(actor, length=1)
    entropy = -(logprobs.exp() * logprobs).sum()
    wanted = gradient_of(actor, -0.3 * entropy)
    nothing = torch.zeros(len(ids), 1)
    batch = Experience(ids, mask, nothing, logprobs.detach(), values=nothing, returns=nothing)
    loss = ppo_loss(actor, batch, PPOSettings(vf_coef=0.0, entropy_coef=0.3), temperature=1.0)
    torch.testing.assert_close(gradient_of(actor, loss.total / loss.count), wanted, rtol=1e-3, atol=1e-6)


def test_the_weight_of_the_value_loss_suits_the_critic_unless_it_is_given() -> None:
    assert PPOSettings(critic=SharedTrunk()).value_weight == 0.1
    assert PPOSettings(critic=SeparateCritic()).value_weight == 1.0
    assert PPOSettings(critic=SeparateCritic(), vf_coef=0.0).value_weight == 0.0


def test_the_value_loss_in_closed_form() -> None:
    values = torch.tensor([1.0, 2.0, 2.0])
    losses, clipped = value_losses(
        values, old=torch.tensor([1.0, 1.0, 1.0]), returns=torch.tensor([3.0, 3.0, 1.0]), cliprange=0.2
    )
    # V = R - 2; V moved by 1 towards R (counts as 0.2); V moved by 1 away from R (counts in full)
    assert losses.tolist() == pytest.approx([2.0, 0.5 * 1.8**2, 0.5])
    assert clipped.tolist() == [False, True, False]


def test_the_first_update_has_ratio_one_and_nothing_clipped() -> None:
    actor = tiny()
    loss = ppo_loss(actor, some_experience(actor), PPOSettings(), temperature=1.0)
    tally = Tally()
    tally.add(loss, None, None)
    figures = tally.figures()
    assert figures["val/ratio"] == pytest.approx(1, abs=1e-4)
    assert figures["policy/approxkl_avg"] == pytest.approx(0, abs=1e-8)
    assert figures["policy/clipfrac_avg"] == figures["val/clipfrac_avg"] == 0.0
    assert loss.count == int(some_experience(actor).mask.sum())


def updated(parts: list[Experience], *, vf_coef: float = 0.3, entropy_coef: float = 0.1) -> Tensor:
    actor = tiny()
    optimizer = torch.optim.SGD(actor.parameters(), lr=1.0)
    settings = PPOSettings(vf_coef=vf_coef, entropy_coef=entropy_coef, dual_clip=3.0)
    train_step(actor, optimizer, parts, lambda m, b: ppo_loss(m, b, settings, temperature=0.7), clip=1e9)  # type: ignore[arg-type]
    return torch.cat([weight.detach().flatten() for weight in actor.parameters()])


def test_micro_batches_row_order_padding_and_junk_change_nothing() -> None:
    batch = some_experience(tiny(), off=0.3)
    whole = updated([batch])
    order = torch.tensor([3, 0, 7, 1, 6, 2, 5, 4])
    junk = torch.where(batch.mask[:, 1:], 0.0, math.nan)
    tensors = batch.tensors()
    ids, mask = tensors.pop("ids"), tensors.pop("mask")
    dirty = Experience(ids, mask, **{name: value + junk for name, value in tensors.items()})
    wider = Experience(**{name: torch.nn.functional.pad(value, (0, 3)) for name, value in batch.tensors().items()})
    for parts in ([batch.take(torch.arange(1)), batch.take(torch.arange(1, 8))], [batch.take(order)], [dirty], [wider]):
        torch.testing.assert_close(updated(parts), whole, rtol=0, atol=2e-6)


def test_the_value_head_learns_only_from_its_own_loss() -> None:
    before = torch.cat([weight.detach().flatten() for weight in tiny().parameters()])
    after = updated([some_experience(tiny(), off=0.3)], vf_coef=0.0)
    head = slice(-17, None)
    assert torch.equal(before[head], after[head])
    assert not torch.equal(before, after)


def test_the_kl_coefficient_moves_towards_its_target() -> None:
    coefficient = KLCoefficient(0.1, target=6.0, horizon=1000.0)
    coefficient.update(6.6, completions=50)
    assert coefficient.value == pytest.approx(0.1 * (1 + 0.1 * 50 / 1000))
    coefficient.value = 0.1
    coefficient.update(60.0, completions=50)  # the error is clipped
    assert coefficient.value == pytest.approx(0.1 * (1 + 0.2 * 50 / 1000))
    coefficient.value = 0.1
    coefficient.update(0.0, completions=50)
    assert coefficient.value == pytest.approx(0.1 * (1 - 0.2 * 50 / 1000))
    fixed = KLCoefficient(0.1)
    fixed.update(100.0, completions=50)
    assert fixed.value == 0.1


def test_a_kl_coefficient_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="greater than 0"):
        PPOSettings(kl_coef=0.0)


def test_running_moments_are_those_of_all_scores() -> None:
    scores = torch.randn(100, generator=torch.Generator().manual_seed(0)) * 3 + 1
    moments = RunningMoments()
    for part in scores.split([1, 30, 0, 69]):
        moments.update(part)
    assert moments.mean == pytest.approx(float(scores.mean()), abs=1e-5)
    assert moments.deviation == pytest.approx(float(scores.std()), abs=1e-5)
    assert RunningMoments(*moments.state()).deviation == moments.deviation


def test_explained_variance() -> None:
    returns = torch.tensor([[1.0, 2.0, 3.0, math.nan]])
    mask = torch.tensor([[True, True, True, False]])
    assert explained_variance(returns, returns, mask) == 1.0
    assert explained_variance(torch.zeros(1, 4), returns, mask) == 0.0
    assert explained_variance(-returns, returns, mask) < 0
    assert explained_variance(returns, torch.ones(1, 4), mask) == 0.0


def test_the_wrapper_names_the_policy_apart_from_the_value_head() -> None:
    actor = tiny()
    assert isinstance(actor.policy, Transformer)
    heads = {name for name, _ in actor.named_parameters() if not name.startswith("policy.")}
    assert heads == {"critic.weight", "critic.bias"}


def separate(seed: int = 0) -> ActorCritic:
    """A small policy and a critic with a trunk of its own."""
    policy = tiny(seed).policy
    actor = ActorCritic(policy, SeparateCritic().build(policy, None))
    with torch.no_grad():
        for weight in actor.critic.parameters():
            weight += 0.2 * torch.randn_like(weight)
    return actor


def test_a_separate_critic_and_the_policy_learn_from_their_own_losses_alone() -> None:
    actor = separate()
    batch = some_experience(actor, off=0.3)
    for settings, moved, still in (
        (PPOSettings(vf_coef=0.0), actor.policy, actor.critic),
        (PPOSettings(vf_coef=1.0), actor.critic, actor.policy),
    ):
        given = batch if settings.vf_coef == 0 else batch._replace(advantages=torch.zeros_like(batch.advantages))
        actor.zero_grad(set_to_none=False)
        ppo_loss(actor, given, settings, temperature=1.0).total.backward()
        assert max(float(w.grad.abs().max()) for w in moved.parameters() if w.grad is not None) > 0
        assert all(w.grad is None or float(w.grad.abs().max()) == 0 for w in still.parameters())


def test_a_separate_critic_begins_by_saying_nothing_and_as_a_reward_model_what_that_says() -> None:
    policy = tiny().policy
    ids, mask = torch.randint(3, 11, (4, 9)), torch.ones(4, 9, dtype=torch.bool)
    mask[:, 0] = False
    assert not bool(ActorCritic(policy, OwnTrunk.of(policy))(ids, mask).values.any())
    reward = policy.config.model_copy(update={"head": "scalar"}).build(seed=3)
    scorer = Scorer(reward, Tokenizer.byte_level(), None, RewardScale(gain=2.0, bias=0.5))  # type: ignore[arg-type]
    with torch.no_grad():
        values = ActorCritic(policy, OwnTrunk.of(scorer))(ids, mask).values
        torch.testing.assert_close(values, 2 * reward(ids)[:, :-1, 0] + 0.5)


def test_a_critic_of_its_own_rate_is_told_apart_and_both_follow_the_schedule() -> None:
    actor = separate()
    optimizer = CriticRate(inner=AdamW(), lr=0.5).build(actor, 0.1)
    set_rate(optimizer, 0.5)
    critics = {id(weight) for weight in actor.critic.parameters()}
    found = [id(weight) for group in optimizer.param_groups for weight in group["params"]]
    assert sorted(found) == sorted(id(weight) for weight in actor.parameters())
    for group in optimizer.param_groups:
        assert all((id(weight) in critics) == (group["lr"] == 0.25) for weight in group["params"])
        assert group["lr"] in (0.25, 0.05)
