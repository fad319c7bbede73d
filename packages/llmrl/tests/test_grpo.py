"""GRPO: the loss against naive code, enumeration and the invariants of the first step."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from llmcore.losses import Loss, token_logprobs
from llmcore.model.config import ModelConfig
from llmcore.model.transformer import Transformer
from llmcore.train.loop import train_step
from llmcore.train.tally import Tally
from llmrl.advantages import group_advantages
from llmrl.config import GRPOSettings
from llmrl.experience import Experience, Experiences
from llmrl.grpo import aggregate, grpo_loss, probability_ratio, token_losses

LONGEST = 6
LOSS_TYPES = ["grpo", "bnpo", "dapo", "dr_grpo"]


def tiny(vocabulary: int = 11, seed: int = 0) -> Transformer:
    """A small model whose distributions are far from uniform."""
    torch.manual_seed(seed)
    model = ModelConfig(vocab_size=vocabulary, width=16, depth=1, context=32).build()
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.2 * torch.randn_like(weight)
    return model


def some_experience(
    model: Transformer, *, rows: int = 8, columns: int = 10, seed: int = 0, off: float = 0.0
) -> Experience:
    """Random rows with completions of different lengths; `off` is how far the sampling policy was from this one."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 11, (rows, columns), generator=generator)
    starts = torch.randint(1, 4, (rows,), generator=generator)
    lengths = torch.randint(1, LONGEST + 1, (rows,), generator=generator)
    column = torch.arange(columns)
    mask = (column >= starts[:, None]) & (column < (starts + lengths)[:, None])
    with torch.no_grad():
        exact = token_logprobs(model, ids)
    noise = torch.randn(2, *exact.shape, generator=generator)
    advantages = torch.randn(rows, 1, generator=generator) * mask[:, 1:]
    return Experience(ids, mask, advantages, exact + off * noise[0], exact + 0.3 * noise[1])


def loss_of(model: Transformer, batch: Experience, **settings: object) -> Tensor:
    loss = grpo_loss(model, batch, GRPOSettings.model_validate(settings), temperature=1.0, longest=LONGEST)
    return loss.total / loss.count


def values_of(loss: Loss) -> dict[str, float]:
    """The loss's figures, as one step reports them."""
    tally = Tally()
    tally.add(loss, None, None)
    return tally.figures()


def gradient_of(model: Transformer, loss: Tensor) -> Tensor:
    gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return torch.cat([g.flatten() for g in gradients if g is not None])


def naive_loss(
    model: Transformer, batch: Experience, loss_type: str, *, epsilon: float, high: float, beta: float
) -> float:
    """One completion, one token at a time, from the model's own forward."""
    assert batch.old_logprobs is not None and batch.reference_logprobs is not None
    per_row = []
    for b in range(len(batch.ids)):
        logprobs = model(batch.ids[b : b + 1])[0].detach().log_softmax(-1)
        terms = []
        for t in range(1, batch.ids.shape[1]):
            if batch.mask[b, t]:
                now = float(logprobs[t - 1, batch.ids[b, t]])
                ratio = math.exp(now - float(batch.old_logprobs[b, t - 1]))
                advantage = float(batch.advantages[b, t - 1])
                gap = float(batch.reference_logprobs[b, t - 1]) - now
                objective = min(ratio * advantage, min(max(ratio, 1 - epsilon), 1 + high) * advantage)
                terms.append(-objective + beta * (math.exp(gap) - gap - 1))
        per_row.append(terms)
    total = sum(sum(terms) for terms in per_row)
    if loss_type == "grpo":
        return sum(sum(terms) / len(terms) for terms in per_row) / len(per_row)
    if loss_type == "dr_grpo":
        return total / (len(per_row) * LONGEST)
    return total / sum(len(terms) for terms in per_row)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_each_loss_type_matches_naive_code(loss_type: str) -> None:
    model = tiny()
    batch = some_experience(model, off=0.4)
    found = loss_of(model, batch, loss_type=loss_type, epsilon=0.1, epsilon_high=0.3, beta=0.5)
    wanted = naive_loss(model, batch, loss_type, epsilon=0.1, high=0.3, beta=0.5)
    assert found.item() == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo", "cispo"])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_micro_batches_row_order_and_padding_change_nothing(loss_type: str, level: str) -> None:
    batch = some_experience(tiny(), off=0.3)
    settings = GRPOSettings.model_validate(
        {"loss_type": loss_type, "importance_sampling_level": level, "beta": 0.1, "entropy_coef": 0.1}
    )
    wider = Experience(*(torch.nn.functional.pad(value, (0, 3)) for value in batch.tensors().values()))
    order = torch.tensor([3, 0, 7, 1, 6, 2, 5, 4])

    def updated(parts: list[Experience]) -> Tensor:
        model = tiny()
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        train_step(
            model,
            optimizer,
            parts,
            lambda m, b: grpo_loss(m, b, settings, temperature=1.0, longest=LONGEST),  # type: ignore[arg-type]
            clip=1e9,
        )
        return torch.cat([weight.detach().flatten() for weight in model.parameters()])

    whole = updated([batch])
    assert (whole - torch.cat([w.detach().flatten() for w in tiny().parameters()])).abs().max() > 1e-3
    for parts in (
        [batch.take(torch.arange(1)), batch.take(torch.arange(1, 8))],
        [batch.take(order)],
        [wider],
        [batch.take(order[:5]), batch.take(order[5:])],
    ):
        torch.testing.assert_close(updated(parts), whole, rtol=0, atol=2e-6)


@pytest.mark.parametrize("loss_type", [*LOSS_TYPES, "cispo"])
def test_nan_in_masked_slots_changes_nothing(loss_type: str) -> None:
    model = tiny()
    batch = some_experience(model, off=0.3)
    junk = torch.where(batch.mask[:, 1:], 0.0, math.nan)
    assert batch.old_logprobs is not None and batch.reference_logprobs is not None
    dirty = batch._replace(
        advantages=batch.advantages + junk,
        old_logprobs=batch.old_logprobs + junk,
        reference_logprobs=batch.reference_logprobs + junk,
    )
    clean_loss, dirty_loss = (loss_of(model, b, loss_type=loss_type, beta=0.2) for b in (batch, dirty))
    assert clean_loss.item() == dirty_loss.item()
    assert torch.equal(gradient_of(model, clean_loss), gradient_of(model, dirty_loss))


def test_the_first_step_has_no_kl_no_clip_no_loss_but_a_gradient() -> None:
    model = tiny()
    batch = some_experience(model, rows=8)
    rewards = torch.rand(8, generator=torch.Generator().manual_seed(1))
    advantages = group_advantages(rewards, samples=4).advantages
    batch = batch._replace(
        advantages=advantages[:, None] * batch.mask[:, 1:], old_logprobs=None, reference_logprobs=batch.old_logprobs
    )
    loss = grpo_loss(model, batch, GRPOSettings(loss_type="grpo", beta=0.1), temperature=1.0, longest=LONGEST)
    figures = values_of(loss)
    assert abs(loss.total.item()) < 1e-5
    assert abs(figures["kl"]) < 1e-6 and abs(figures["objective/kl"]) < 1e-5
    assert figures["ratio/mean"] == 1.0
    assert figures["clip_ratio/region_mean"] == figures["clip_ratio/low_mean"] == figures["clip_ratio/high_mean"] == 0.0
    assert gradient_of(model, loss.total).norm() > 1e-2


def test_several_updates_with_the_same_policy_have_the_gradient_of_one() -> None:
    model = tiny()
    batch = some_experience(model)
    once, again = (loss_of(model, batch._replace(old_logprobs=old)) for old in (None, batch.old_logprobs))
    torch.testing.assert_close(gradient_of(model, once), gradient_of(model, again), rtol=1e-4, atol=1e-6)


def test_a_completion_without_counting_tokens_gives_no_nan() -> None:
    model = tiny()
    batch = some_experience(model)
    masked = batch.mask.clone()
    masked[0] = False
    for loss_type in LOSS_TYPES:
        value = loss_of(model, batch._replace(mask=masked), loss_type=loss_type)
        assert bool(torch.isfinite(gradient_of(model, value)).all())
    total, count = aggregate(torch.ones(2, 3), torch.zeros(2, 3, dtype=torch.bool), "grpo", longest=3)
    assert (float(total), count) == (0.0, 2)


def test_the_clip_takes_the_gradient_away_on_one_side_only() -> None:
    mask = torch.ones(1, 1, dtype=torch.bool)
    for shift, advantage, flows in ((0.5, 1.0, False), (0.5, -1.0, True), (-0.5, 1.0, True), (-0.5, -1.0, False)):
        logprob = torch.tensor([[shift]], requires_grad=True)
        ratio = probability_ratio(logprob, torch.zeros(1, 1), mask, level="token")
        loss = -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).sum()
        loss.backward()
        assert (float(logprob.grad.abs()) > 0) is flows  # type: ignore[union-attr]


def test_delta_takes_the_gradient_of_a_bad_token_that_became_likely() -> None:
    settings = GRPOSettings(delta=3.0)
    for shift, advantage, flows in ((1.5, -1.0, False), (1.0, -1.0, True), (1.5, 1.0, False), (-0.5, 1.0, True)):
        logprob = torch.tensor([[shift]], requires_grad=True)
        ratio = probability_ratio(logprob, torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool), level="token")
        loss = token_losses(logprob, ratio, torch.full((1, 1), advantage), settings)
        loss.sum().backward()
        assert (float(logprob.grad.abs()) > 0) is flows  # type: ignore[union-attr]
        up, clipped = min(math.exp(shift), 3.0), min(max(math.exp(shift), 0.8), 1.2)
        assert loss.item() == pytest.approx(-min(up * advantage, clipped * advantage))


def test_the_entropy_in_the_loss_has_the_gradient_of_the_entropy() -> None:
    """Each of the five rows has the distribution of the first token, and no advantage."""
    model = tiny(vocabulary=5)
    ids = enumerated(5, 1)
    mask = torch.tensor([[False, True]]).expand(5, 2)
    logprobs = token_logprobs(model, ids)[:, 0]  # of all five: one distribution
    entropy = -(logprobs.exp() * logprobs).sum()
    batch = Experience(ids, mask, torch.zeros(5, 1))
    settings = GRPOSettings(beta=0, entropy_coef=0.3)
    loss = grpo_loss(model, batch, settings, temperature=1.0, longest=1)
    assert loss.total.item() / loss.count == pytest.approx(-0.3 * entropy.item(), rel=1e-5)
    assert values_of(loss)["entropy"] == pytest.approx(entropy.item(), rel=1e-5)
    wanted = gradient_of(model, -0.3 * entropy)
    torch.testing.assert_close(gradient_of(model, loss.total / loss.count), wanted, rtol=1e-3, atol=1e-6)


def test_the_sequence_ratio_is_the_geometric_mean() -> None:
    logprobs = torch.tensor([[0.1, 0.3, 9.0]])
    mask = torch.tensor([[True, True, False]])
    ratio = probability_ratio(logprobs, torch.zeros(1, 3), mask, level="sequence")
    assert ratio[0, :2].tolist() == pytest.approx([math.exp(0.2)] * 2)


def enumerated(vocabulary: int, length: int) -> Tensor:
    """Every completion of `length` tokens after the prompt token 0."""
    return torch.tensor([[0, *rest] for rest in itertools.product(range(vocabulary), repeat=length)])


def test_the_gradient_over_all_completions_is_that_of_the_expected_reward() -> None:
    """No sampling: each of the 64 completions weighted by its probability gives exactly -∇J."""
    model = tiny(vocabulary=4)
    ids = enumerated(4, 3)
    rewards = torch.rand(len(ids), generator=torch.Generator().manual_seed(2))
    logprobs = token_logprobs(model, ids)
    chance = logprobs.sum(1).exp()
    assert chance.sum().item() == pytest.approx(1, abs=1e-5)
    wanted = gradient_of(model, -(chance * rewards).sum())
    baseline = 0.37  # any constant
    advantages = (chance.detach() * (rewards - baseline))[:, None].expand(-1, 3)
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[:, 0] = False
    batch = Experience(ids, mask, advantages)
    loss = grpo_loss(model, batch, GRPOSettings(beta=0, loss_type="dapo"), temperature=1.0, longest=3)
    torch.testing.assert_close(gradient_of(model, loss.total), wanted, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("estimator", "swapped"), [("k2", False), ("k3", True)])
def test_the_kl_in_the_loss_has_the_gradient_it_is_said_to_have(estimator: str, swapped: bool) -> None:
    """k2: ∇KL(policy‖reference). k3: ∇KL(reference‖policy). One token, all of the vocabulary, exact."""
    model, other = tiny(vocabulary=5), tiny(vocabulary=5, seed=9)
    ids = enumerated(5, 1)
    mask = torch.tensor([[False, True]]).expand(5, 2)
    logprobs = token_logprobs(model, ids)
    with torch.no_grad():
        reference = token_logprobs(other, ids)
    if swapped:
        wanted = gradient_of(model, (reference.exp() * (reference - logprobs)).sum())
    else:
        wanted = gradient_of(model, (logprobs.exp() * (logprobs - reference)).sum())
    found = torch.zeros_like(wanted)
    for i in range(5):
        batch = Experience(ids[i : i + 1], mask[i : i + 1], torch.zeros(1, 1), None, reference[i : i + 1])
        loss = grpo_loss(
            model,
            batch,
            GRPOSettings.model_validate({"beta": 1.0, "kl_estimator": estimator}),
            temperature=1.0,
            longest=1,
        )
        found += logprobs[i].exp().item() * gradient_of(model, loss.total)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)


def test_temperature_is_that_of_the_sampling() -> None:
    model = tiny()
    batch = some_experience(model)
    with torch.no_grad():
        cooler = token_logprobs(model, batch.ids, temperature=0.5)
    loss = grpo_loss(model, batch._replace(old_logprobs=cooler), GRPOSettings(), temperature=0.5, longest=LONGEST)
    total, count = loss.metrics["ratio/mean"]
    assert total / count == pytest.approx(1, abs=1e-5)


class Counting:
    """A maker whose rollouts tell which one they are."""

    def __init__(self) -> None:
        self.made: list[tuple[int, int]] = []
        self.stop = False

    def experience(self, number: int, *, step: int) -> Experience:
        self.made.append((number, step))
        ids = torch.arange(6)[:, None].expand(6, 4) + 100 * number
        mask = torch.tensor([[False, True, True, True]]).expand(6, 4)
        return Experience(ids, mask, torch.zeros(6, 3), metrics={"reward": (float(number), 1)})

    def begin(self) -> None: ...

    def enough(self) -> bool:
        return self.stop

    def controllers(self) -> dict:  # type: ignore[type-arg]
        return {}

    def restore(self, controllers: object) -> None:
        pass


def rows_of(step: list[Experience]) -> list[int]:
    return [int(row) for part in step for row in part.ids[:, 0]]


def test_each_epoch_sees_every_row_once_and_a_resumed_source_goes_on_alike() -> None:
    def source() -> Experiences:
        return Experiences(Counting(), seed=3, epochs=2, mini_batches=3, micro_batch=2)

    whole = source()
    steps = whole.steps_from(0)
    seen, states = [], []
    for _ in range(9):
        seen.append(next(steps))
        states.append(whole.state())
    rows = [rows_of(list(step)) for step in seen]
    assert sorted(rows[0] + rows[1] + rows[2]) == list(range(6)) == sorted(rows[3] + rows[4] + rows[5])
    assert rows[:3] != rows[3:6], "a fresh order in each epoch"
    assert all(100 <= row < 106 for step in rows[6:] for row in step)
    for start in range(1, 9):
        resumed = source()
        again = list(itertools.islice(resumed.steps_from(start, states[start - 1]), 9 - start))
        assert [rows_of(list(step)) for step in again] == rows[start:]
        assert [part.metrics for step in again for part in step] == [p.metrics for step in seen[start:] for p in step]


def test_leaving_updates_out_starts_the_next_rollout_also_after_a_resume() -> None:
    maker = Counting()
    source = Experiences(maker, seed=0, epochs=4)
    steps = source.steps_from(0)
    next(steps)
    maker.stop = True
    state = source.state()
    maker.stop = False
    resumed = Experiences(Counting(), seed=0, epochs=4)
    assert rows_of(list(next(resumed.steps_from(1, state))))[0] == 100
    next(steps)
    assert maker.made == [(0, 0)]
    maker.stop = True
    next(steps)
    assert maker.made == [(0, 0), (1, 2)]
