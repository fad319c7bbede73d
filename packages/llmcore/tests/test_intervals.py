import math

import numpy as np
import pytest

from llmcore.intervals import Interval, bootstrap, exponential, mean, ratio, share


def test_share_against_known_values() -> None:
    found = share(8, 10)  # R: binom.confint(8, 10, method="wilson")
    assert (round(found.low, 4), round(found.high, 4)) == (0.4902, 0.9433)


def test_share_stays_inside_its_bounds() -> None:
    assert share(0, 10).low == 0.0 and share(10, 10).high == pytest.approx(1.0) and share(10, 10).high <= 1.0


def test_mean_of_one_value_is_infinitely_uncertain() -> None:
    assert mean([3.0]) == (3.0, -math.inf, math.inf)


def test_ratio_is_the_mean_for_equal_denominators() -> None:
    values = np.random.default_rng(0).normal(3, 1, size=400)
    assert ratio(values * 2, np.full(400, 2.0)) == pytest.approx(mean(values))


@pytest.mark.parametrize("kind", ["mean", "ratio", "share"])
def test_intervals_cover_the_truth_as_often_as_they_say(kind: str) -> None:
    random = np.random.default_rng(1)
    covered = 0
    for _ in range(500):
        below = random.uniform(5, 15, size=80)
        noisy = 2 * below + random.normal(0, 3, size=80)
        found, truth = {
            "mean": lambda noisy=noisy: (mean(noisy), 20.0),
            "ratio": lambda noisy=noisy, below=below: (ratio(noisy, below), 2.0),
            "share": lambda: (share(int(random.binomial(80, 0.3)), 80), 0.3),
        }[kind]()
        covered += found.low <= truth <= found.high
    assert 0.92 <= covered / 500 <= 0.98


def test_the_bootstrap_of_a_mean_is_nearly_its_normal_interval_and_always_the_same() -> None:
    values = np.random.default_rng(0).normal(3, 1, size=300)
    found = bootstrap(np.stack([values, np.ones(300)], 1), lambda sums: float(sums[0] / sums[1]))
    assert found.value == pytest.approx(float(values.mean()))
    assert found == pytest.approx(mean(values), abs=0.02)
    assert found == bootstrap(np.stack([values, np.ones(300)], 1), lambda sums: float(sums[0] / sums[1]))


def test_what_is_infinite_is_null_in_json() -> None:
    assert exponential(Interval(0.0, -math.inf, 800.0)) == (1.0, 0.0, math.inf)
    assert mean([3.0]).as_json() == {"value": 3.0, "low": None, "high": None}
