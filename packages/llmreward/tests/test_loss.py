import itertools
import math

import pytest
import torch

from llmcore.config import Config
from llmcore.errors import ConfigError
from llmcore.model.attention import GroupedQuery
from llmcore.model.config import ModelConfig
from llmreward.batches import Comparison, Group, preference_batch
from llmreward.loss import AnyPreferenceLoss, BradleyTerry, MarginRanking, PreferenceBatch, reward_loss

NONE = float("nan")
MODEL = ModelConfig(vocab_size=260, width=32, depth=1, head="scalar", attention=GroupedQuery(heads=2)).build(seed=1)


def scores(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def test_equal_scores_cost_ln_2_and_pull_apart_with_half_a_unit() -> None:
    chosen, rejected = scores(1.5), scores(1.5)
    loss = BradleyTerry().build()(chosen, rejected, scores(NONE))
    loss.sum().backward()
    assert loss.item() == pytest.approx(math.log(2), abs=1e-12)
    assert chosen.grad is not None and chosen.grad.item() == pytest.approx(-0.5)
    assert rejected.grad is not None and rejected.grad.item() == pytest.approx(0.5)


def test_bradley_terry_is_minus_the_log_of_the_logistic() -> None:
    chosen, rejected = scores(0.3, -2.0, 4.0), scores(1.0, -2.5, -1.0)
    expected = [
        -math.log(1 / (1 + math.exp(-(c - r)))) for c, r in zip(chosen.tolist(), rejected.tolist(), strict=True)
    ]
    loss = BradleyTerry().build()(chosen, rejected, scores(NONE, NONE, NONE))
    assert loss.tolist() == pytest.approx(expected, abs=1e-12)


def test_gradient_is_one_minus_the_probability_of_the_choice() -> None:
    chosen, rejected = scores(0.7), scores(-0.4)
    BradleyTerry().build()(chosen, rejected, scores(NONE)).sum().backward()
    assert chosen.grad is not None
    assert chosen.grad.item() == pytest.approx(-(1 - 1 / (1 + math.exp(-1.1))), abs=1e-12)


def test_extreme_differences_stay_finite() -> None:
    chosen, rejected = scores(2000.0, -2000.0), scores(-2000.0, 2000.0)
    loss = BradleyTerry(label_smoothing=0.1).build()(chosen, rejected, scores(NONE, NONE))
    loss.sum().backward()
    assert loss.isfinite().all() and chosen.grad is not None and chosen.grad.isfinite().all()


def test_a_margin_of_the_data_shifts_the_difference_and_stands_before_the_setting() -> None:
    chosen, rejected = scores(1.0, 1.0), scores(0.0, 0.0)
    loss = BradleyTerry(margin=0.25).build()(chosen, rejected, scores(2.0, NONE))
    assert loss.tolist() == pytest.approx([math.log1p(math.exp(1.0)), math.log1p(math.exp(-0.75))], abs=1e-12)


def test_label_smoothing_mixes_both_labels() -> None:
    difference, share = 1.3, 0.2
    loss = BradleyTerry(label_smoothing=share).build()(scores(difference), scores(0.0), scores(NONE))
    right, wrong = math.log1p(math.exp(-difference)), math.log1p(math.exp(difference))
    assert loss.item() == pytest.approx((1 - share) * right + share * wrong, abs=1e-12)


def test_label_smoothing_is_least_where_the_model_is_as_sure_as_the_labels() -> None:
    share = 0.2
    difference = scores(math.log((1 - share) / share))
    BradleyTerry(label_smoothing=share).build()(difference, scores(0.0), scores(NONE)).sum().backward()
    assert difference.grad is not None and difference.grad.item() == pytest.approx(0.0, abs=1e-12)


def test_centering_adds_the_squared_sum() -> None:
    plain = BradleyTerry().build()(scores(2.0), scores(1.0), scores(NONE))
    centred = BradleyTerry(centering=0.01).build()(scores(2.0), scores(1.0), scores(NONE))
    assert (centred - plain).item() == pytest.approx(0.01 * 9.0, abs=1e-12)


def test_the_hinge_is_the_margin_ranking_loss_of_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    chosen, rejected = torch.randn(2, 50, dtype=torch.float64, generator=generator)
    ours = MarginRanking(margin=0.7).build()(chosen, rejected, torch.full_like(chosen, NONE))
    theirs = torch.nn.functional.margin_ranking_loss(
        chosen, rejected, torch.ones_like(chosen), margin=0.7, reduction="none"
    )
    assert torch.allclose(ours, theirs, atol=1e-15)
    assert (ours == 0).any() and (ours > 0).any()


def test_shapes_that_would_broadcast_are_refused() -> None:
    column = torch.zeros(3, 1)
    for loss in (BradleyTerry().build(), MarginRanking().build()):
        with pytest.raises(AssertionError, match="have shapes"):
            loss(torch.zeros(3), torch.zeros(3), column)
        with pytest.raises(AssertionError, match="have shapes"):
            loss(column, column, torch.zeros(3))


def batch_of(*pairs: tuple[list[int], list[int]]) -> PreferenceBatch:
    return preference_batch([Group(list(pair), [Comparison(0, 1)]) for pair in pairs], pad_id=259)


def test_a_batch_of_pairs_gives_sums_and_counts_ties_as_wrong() -> None:
    chosen, rejected, same = [256, 1, 2], [256, 3, 4], [256, 9, 9]
    result = reward_loss(BradleyTerry().build())(MODEL, batch_of((chosen, rejected), (same, same)))
    first, second, tie = MODEL(torch.tensor([chosen, rejected, same]))[:, -1, 0].tolist()
    assert result.count == 2
    assert result.total.item() == pytest.approx(math.log1p(math.exp(second - first)) + math.log(2), abs=1e-6)
    assert result.metrics["accuracy"] == (float(first > second), 2)
    assert result.metrics["margin"][0] == pytest.approx(first - second, abs=1e-6)
    assert result.metrics["chosen_reward"][0] == pytest.approx(first + tie, abs=1e-6)
    assert result.metrics["mean_reward"] == (pytest.approx(first + second + 2 * tie, abs=1e-6), 4)
    assert result.metrics["min_reward"] == (pytest.approx(min(first, second, tie), abs=1e-6), "min")
    assert result.metrics["max_reward"] == (pytest.approx(max(first, second, tie), abs=1e-6), "max")
    assert result.total.requires_grad


def test_a_ranking_costs_the_mean_over_all_its_pairs() -> None:
    """Equation 1 of Ouyang et al. (2022): each of K answers is read once, each prompt weighs one."""
    answers = [[256, 7, 8, 9, n, 259] for n in (11, 12, 13, 14)]
    pairs = list(itertools.combinations(range(4), 2))
    ranked = Group(answers, [Comparison(*pair) for pair in pairs])
    other = Group([[256, 5, 1], [256, 5, 2, 3]], [Comparison(0, 1)])
    batch = preference_batch([ranked, other], pad_id=259)
    found = reward_loss(BradleyTerry().build())(MODEL, batch)
    scores = [float(MODEL(torch.tensor([row]))[0, -1, 0].detach()) for row in [*answers, *other.rows]]
    costs = [math.log1p(math.exp(scores[worse] - scores[better])) for better, worse in pairs]
    expected = sum(costs) / 6 + math.log1p(math.exp(scores[5] - scores[4]))
    assert found.total.item() == pytest.approx(expected, abs=1e-6)
    assert found.count == 2 and found.metrics["accuracy"][1] == 7
    assert int((batch.layout.trees > 0).sum()) == 4 + 4 * 2 + 2 + 1 + 2


def test_rankings_in_micro_batches_have_the_gradient_of_one_batch() -> None:
    groups = [
        Group(
            [[256, 7, 8, n, 259] for n in range(k)], [Comparison(*pair) for pair in itertools.combinations(range(k), 2)]
        )
        for k in (2, 4, 3)
    ]
    gradients = []
    for parts in ([groups], [groups[:1], groups[1:]], [groups[2:], groups[:2]]):
        MODEL.zero_grad()
        for part in parts:
            reward_loss(BradleyTerry().build())(MODEL, preference_batch(part, pad_id=259)).total.backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in MODEL.parameters()]))
    assert torch.allclose(gradients[0], gradients[1], atol=1e-6)
    assert torch.allclose(gradients[0], gradients[2], atol=1e-6)
    assert gradients[0].abs().max() > 0.01


def test_a_share_of_the_loss_is_taken_at_every_token_from_where_the_answers_part() -> None:
    rows = [[256, 7, 1, 2, 3], [256, 7, 9, 2], [256, 5, 6], [256, 4, 6, 8, 8, 8]]
    scores = [MODEL(torch.tensor([row]))[0, :, 0].tolist() for row in rows]

    def cost(chosen: int, rejected: int, place: int, other_place: int) -> float:
        return math.log1p(math.exp(scores[rejected][other_place] - scores[chosen][place]))

    first = 0.6 * cost(0, 1, 4, 3) + 0.4 * (cost(0, 1, 2, 2) + cost(0, 1, 3, 3)) / 2
    second = 0.6 * cost(2, 3, 2, 5) + 0.4 * (cost(2, 3, 1, 1) + cost(2, 3, 2, 2)) / 2
    batch = batch_of((rows[0], rows[1]), (rows[2], rows[3]))
    found = reward_loss(BradleyTerry().build(), token_share=0.4)(MODEL, batch)
    assert found.total.item() == pytest.approx(first + second, abs=1e-6)
    assert found.count == 2


def test_junk_in_padding_changes_neither_loss_nor_gradient() -> None:
    batch = batch_of(([256, 7, 1, 2], [256, 7, 9]), ([256, 1, 2, 3, 4, 5, 6], [256, 9]))
    assert (batch.layout.trees == 0).any()
    junk = torch.where(batch.layout.trees == 0, 77, batch.ids)
    found = []
    for ids in (batch.ids, junk):
        MODEL.zero_grad()
        dirty = batch._replace(layout=batch.layout._replace(ids=ids))
        loss = reward_loss(BradleyTerry().build(), token_share=0.5)(MODEL, dirty).total
        loss.backward()
        found.append((loss.item(), [parameter.grad.clone() for parameter in MODEL.blocks.parameters()]))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-7)
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(found[0][1], found[1][1], strict=True))


def test_settings_choose_the_loss_and_refuse_what_makes_no_sense() -> None:
    class Holder(Config):
        loss: AnyPreferenceLoss = BradleyTerry()

    assert Holder.model_validate({"loss": {"kind": "margin_ranking", "margin": 2}}).loss == MarginRanking(margin=2)
    for bad in ({"kind": "margin_ranking", "margin": 0}, {"label_smoothing": 0.5}, {"centering": -1}):
        with pytest.raises(ValueError):
            Holder.model_validate({"loss": bad})
    with pytest.raises(ConfigError, match="did you mean 'bradley_terry'"):
        Holder.model_validate({"loss": {"kind": "bradley_tery"}})
