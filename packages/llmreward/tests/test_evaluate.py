import math

import numpy as np
import pytest

from llmcore.manifest import Manifest
from llmcore.model.attention import GroupedQuery
from llmcore.model.config import ModelConfig
from llmcore.scoring import RewardScale, Scorer
from llmcore.tokenizer import Tokenizer
from llmreward.batches import Pair
from llmreward.evaluate import PairScores, calibration, correlation, evaluate_pairs, invariance, proportion, report


def scored(chosen: list[float], rejected: list[float], lengths: list[tuple[int, int]]) -> PairScores:
    left, right = zip(*lengths, strict=True)
    return PairScores(np.array(chosen), np.array(rejected), np.array(left), np.array(right))


def test_ties_are_wrong() -> None:
    found = report(scored([1.0, 2.0, 3.0, 0.0], [1.0, 1.0, 1.0, 5.0], [(1, 1)] * 4))
    assert found.accuracy.value == 0.5 and found.accuracy.cases == 4


def test_the_length_ruler_counts_equal_lengths_one_half() -> None:
    found = report(scored([1.0] * 4, [0.0] * 4, [(3, 1), (3, 3), (1, 3), (5, 2)]))
    assert found.ruler.value == pytest.approx(2.5 / 4)
    assert {name: accuracy.cases for name, accuracy in found.by_length.items()} == {
        "shorter": 1,
        "as_long": 1,
        "longer": 2,
    }


def test_accuracy_is_told_apart_by_length() -> None:
    found = report(scored([1.0, 1.0, 0.0], [0.0, 0.0, 1.0], [(1, 2), (5, 2), (6, 2)]))
    assert found.by_length["shorter"].value == 1.0
    assert found.by_length["longer"].value == 0.5


def test_loss_and_margin_have_their_closed_forms() -> None:
    found = report(scored([1.0, 0.0], [0.0, 2.0], [(1, 1)] * 2))
    assert found.loss == pytest.approx((math.log1p(math.exp(-1)) + math.log1p(math.exp(2))) / 2)
    assert found.margin == pytest.approx(-0.5)


def test_calibration_error_of_a_hand_made_example() -> None:
    # Two pairs at 0.73 (margin ±1): one right, one wrong. Two at 0.95 (margin 3): both right.
    sure, surer = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(-3))
    error, bins = calibration(np.array([1.0, -1.0, 3.0, 3.0]))
    assert [bar.pairs for bar in bins] == [2, 2]
    assert [bar.accuracy for bar in bins] == [0.5, 1.0]
    assert error == pytest.approx(0.5 * (sure - 0.5) + 0.5 * (1 - surer))


def test_a_tie_is_a_confidence_of_one_half_and_a_certainty_falls_into_the_last_bin() -> None:
    error, bins = calibration(np.array([0.0, 800.0]))
    assert [(bar.confidence, bar.accuracy) for bar in bins] == [(0.5, 0.0), (1.0, 1.0)]
    assert error == pytest.approx(0.25)


def test_a_share_of_nothing_may_be_anything() -> None:
    assert proportion(0, 0) == (0.0, 0.0, 1.0, 0)


def test_correlations_have_the_right_sign_and_survive_constants() -> None:
    assert correlation(np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.0])) == pytest.approx(1.0)
    assert correlation(np.array([1.0, 1.0]), np.array([2.0, 4.0])) == 0.0
    found = report(scored([1.0, 2.0, 3.0], [0.0, 0.0, 0.0], [(3, 2), (3, 1), (4, 1)]))
    assert found.margin_length_correlation == pytest.approx(1.0)


def test_swapping_the_sides_turns_the_margin_and_the_accuracy() -> None:
    model = ModelConfig(vocab_size=260, width=32, depth=1, head="scalar", attention=GroupedQuery(heads=2)).build(seed=1)
    pairs = [Pair([256, n], [256, n + 60, 3], math.nan) for n in range(40)]
    forward = evaluate_pairs(model, pairs, pad_id=259)
    backward = evaluate_pairs(model, [Pair(p.rejected, p.chosen, p.margin) for p in pairs], pad_id=259)
    assert forward.margin == pytest.approx(-backward.margin, abs=1e-6)
    assert forward.accuracy.value == pytest.approx(1 - backward.accuracy.value)
    assert 0 < forward.accuracy.value < 1


def test_rewards_vary_neither_with_padding_nor_order() -> None:
    model = ModelConfig(vocab_size=260, width=32, depth=2, head="scalar", attention=GroupedQuery(heads=2)).build(seed=1)
    scorer = Scorer(model, Tokenizer.byte_level(), Manifest(kind="reward", made_by="test"), RewardScale(gain=50.0))
    found = invariance(scorer, [[256, *range(n)] for n in range(1, 20)])
    assert set(found) == {"padding", "order", "pad_id"}
    assert max(found.values()) < 1e-4
