"""Kendall's tau-b: how far two rankings of the same things agree, ties allowed for (Kendall, 1945)."""

import numpy as np
from numpy.typing import ArrayLike


def kendall_tau(left: ArrayLike, right: ArrayLike) -> float:
    """(pairs in the same order - pairs in the other) / √(pairs untied left · pairs untied right); 0 where all is tied.

    1: the same order, -1: the reverse. Time and memory grow with the square of the number of things.
    """
    a, b = np.asarray(left, dtype=np.float64), np.asarray(right, dtype=np.float64)
    above = np.triu_indices(len(a), 1)
    order_a, order_b = (np.sign(values[above[0]] - values[above[1]]).astype(np.int8) for values in (a, b))
    untied = float(np.count_nonzero(order_a)) * float(np.count_nonzero(order_b))
    return float(np.sum(order_a * order_b, dtype=np.int64)) / untied**0.5 if untied else 0.0
