"""95 % intervals of the figures we report: shares, means, ratios of sums, and figures of a whole corpus."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Z_95 = 1.959964
Sums = NDArray[np.float64]
"""(K,) sums over items."""


class Interval(NamedTuple):
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"

    def as_json(self) -> dict[str, float | None]:
        """By name; null for what is infinite or unknown, which JSON has no number for."""
        return {name: value if math.isfinite(value) else None for name, value in self._asdict().items()}


def share(right: float, count: int) -> Interval:
    """A share of `count` with its score interval (Wilson, 1927), which stays inside [0, 1]."""
    value = right / count
    centre = (value + Z_95**2 / (2 * count)) / (1 + Z_95**2 / count)
    half = Z_95 * math.sqrt(value * (1 - value) / count + Z_95**2 / (4 * count**2)) / (1 + Z_95**2 / count)
    return Interval(value, max(centre - half, 0.0), min(centre + half, 1.0))


def mean(values: ArrayLike) -> Interval:
    """The mean of independent values, by the normal approximation; infinite for a single one."""
    array = np.asarray(values, dtype=np.float64)
    centre = float(array.mean())
    half = Z_95 * float(array.std(ddof=1)) / math.sqrt(len(array)) if len(array) > 1 else math.inf
    return Interval(centre, centre - half, centre + half)


def ratio(above: ArrayLike, below: ArrayLike) -> Interval:
    """Σ above / Σ below over independent pairs (delta method; Cochran 1977, §6.4)."""
    numerator, denominator = np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)
    value = float(numerator.sum() / denominator.sum())
    spread = mean(numerator - value * denominator)
    half = (spread.high - spread.value) / float(denominator.mean())
    return Interval(value, value - half, value + half)


def exponential(nats: Interval) -> Interval:
    """A perplexity from its logarithm; what no float can hold is infinite."""
    return Interval(*(math.inf if value > 700 else math.exp(value) for value in nats))


def bootstrap(
    statistics: ArrayLike, figure: Callable[[Sums], float], *, resamples: int = 1000, seed: int = 0
) -> Interval:
    """(N, K) statistics of independent items -> a figure of their sums, by the percentile bootstrap (Efron, 1979).

    For figures of a corpus that are no mean over its items, as BLEU (Koehn, 2004). The paired difference of two systems
    is a figure of the statistics of both side by side.
    """
    array = np.asarray(statistics, dtype=np.float64)
    random = np.random.default_rng(seed)
    count = len(array)
    drawn = [figure(random.multinomial(count, np.full(count, 1 / count)) @ array) for _ in range(resamples)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Interval(figure(array.sum(0)), float(low), float(high))
