import itertools

import numpy as np
import pytest

from llmreward.ranking import kendall_tau


def test_the_same_and_the_reverse_order() -> None:
    assert kendall_tau([1, 2, 3, 9], [0.1, 0.2, 5, 6]) == 1.0
    assert kendall_tau([1, 2, 3, 9], [6, 5, 0.2, 0.1]) == -1.0
    assert kendall_tau([1, 1, 1], [1, 2, 3]) == 0.0
    assert kendall_tau([], []) == 0.0


def test_it_is_the_count_of_pairs_in_a_naive_loop() -> None:
    random = np.random.default_rng(0)
    left, right = random.integers(0, 9, (2, 30))
    same = untied_left = untied_right = 0
    for i, j in itertools.combinations(range(30), 2):
        a, b = np.sign(left[i] - left[j]), np.sign(right[i] - right[j])
        same += a * b
        untied_left += a != 0
        untied_right += b != 0
    assert kendall_tau(left, right) == pytest.approx(same / (untied_left * untied_right) ** 0.5, abs=1e-15)
