import math

import numpy as np
import pytest

from llmcore.model.attention import GroupedQuery
from llmcore.model.config import ModelConfig
from llmreward.batches import Comparison, Group
from llmreward.evaluate import PairScores, calibration, correlation, evaluate_groups, proportion, report

MODEL = ModelConfig(vocab_size=260, width=32, depth=1, head="scalar", attention=GroupedQuery(heads=2)).build(seed=1)


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
    assert found.loss.value == pytest.approx((math.log1p(math.exp(-1)) + math.log1p(math.exp(2))) / 2)
    assert found.margin.value == pytest.approx(-0.5)


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
    assert correlation(np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.0])).value == pytest.approx(1.0)
    assert correlation(np.array([1.0, 1.0]), np.array([2.0, 4.0])) == (0.0, -1.0, 1.0)
    found = report(scored([1.0, 2.0, 3.0], [0.0, 0.0, 0.0], [(3, 2), (3, 1), (4, 1)]))
    assert found.margin_length_correlation.value == pytest.approx(1.0)


def test_swapping_the_sides_turns_the_margin_and_the_accuracy() -> None:
    groups = [Group([[256, n], [256, n + 60, 3]], [Comparison(0, 1)]) for n in range(40)]
    turned = [Group(group.rows, [Comparison(1, 0)]) for group in groups]
    forward, backward = (evaluate_groups(MODEL, those, pad_id=259) for those in (groups, turned))
    assert forward.margin.value == pytest.approx(-backward.margin.value, abs=1e-6)
    assert forward.accuracy.value == pytest.approx(1 - backward.accuracy.value)
    assert 0 < forward.accuracy.value < 1


def test_every_comparison_of_a_ranking_is_counted() -> None:
    group = Group([[256, 1], [256, 2], [256, 3]], [Comparison(0, 1), Comparison(0, 2), Comparison(1, 2)])
    found = evaluate_groups(MODEL, [group, Group([[256, 4], [256, 5]], [Comparison(1, 0)])], pad_id=259)
    assert found.accuracy.cases == 4


def test_accuracy_is_told_apart_by_how_much_longer_the_chosen_answer_is() -> None:
    lengths = [(200, 10), (50, 10), (20, 10), (12, 10), (10, 10), (10, 12), (10, 200)]
    found = report(scored([1.0] * 7, [0.0] * 3 + [2.0] * 4, lengths))
    assert list(found.by_difference) == ["-129…", "-1…8", "0", "+1…8", "+9…32", "+33…128", "+129…"]
    assert [share.value for share in found.by_difference.values()] == [0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0]
    assert sum(share.cases for share in found.by_difference.values()) == 7


def test_intervals_have_the_coverage_they_claim() -> None:
    """Of pairs whose model is a calibrated Bradley-Terry, 95 % of the intervals hold what is true."""
    random = np.random.default_rng(0)
    held = []
    for _ in range(300):
        margins = random.normal(0.5, 1.0, 200)
        lengths = np.round(10 * margins + random.normal(0, 10, 200)).astype(int) + 100
        found = report(PairScores(margins, np.zeros(200), lengths, np.full(200, 100)))
        held.append(
            [
                found.margin.low <= 0.5 <= found.margin.high,
                found.margin_length_correlation.low <= math.sqrt(0.5) <= found.margin_length_correlation.high,
            ]
        )
    assert np.all(np.abs(np.mean(held, axis=0) - 0.95) < 0.04)
