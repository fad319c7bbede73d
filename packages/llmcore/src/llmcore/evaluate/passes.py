"""pass@k: the chance that one of k samples is right."""

import math


def pass_at(right: int, samples: int, k: int) -> float:
    """1 - C(n-c, k)/C(n, k) for c right ones of n samples, n >= k: the unbiased estimator of arXiv:2107.03374."""
    return 1 - math.comb(samples - right, k) / math.comb(samples, k)


def powers(samples: int) -> list[int]:
    """1, 2, 4, …: the k for which pass@k is told."""
    return [1 << i for i in range(samples.bit_length())]
