"""What PPO carries from one rollout to the next: the weight of the KL, and the moments of the scores so far."""

from torch import Tensor


class KLCoefficient:
    """The weight of the KL: fixed, or moved so that the KL per completion comes to `target` (arXiv:1909.08593).

    `target` is in nats per completion: log policy/reference summed over its tokens, averaged over completions.
    """

    def __init__(self, value: float, *, target: float | None = None, horizon: float = 2000.0) -> None:
        self.value = value
        self.target = target
        self.horizon = horizon

    def update(self, divergence: float, *, completions: int) -> None:
        """Take note of a rollout's KL, in nats per completion."""
        if self.target is not None:
            error = min(0.2, max(-0.2, divergence / self.target - 1))
            self.value *= 1 + error * completions / self.horizon


class RunningMoments:
    """Mean and variance of all scores so far (Chan et al., 1979)."""

    def __init__(self, count: float = 0.0, mean: float = 0.0, squares: float = 0.0) -> None:
        self.count, self.mean, self.squares = count, mean, squares

    def update(self, scores: Tensor) -> None:
        """Add the scores (N,) of a rollout."""
        if not len(scores):
            return
        values = scores.double()
        count, mean = float(len(values)), float(values.mean())
        gap = mean - self.mean
        total = self.count + count
        self.squares += float((values - mean).square().sum()) + gap**2 * self.count * count / total
        self.mean += gap * count / total
        self.count = total

    @property
    def deviation(self) -> float:
        """Standard deviation, ddof 1; 0 before two scores."""
        return (self.squares / (self.count - 1)) ** 0.5 if self.count > 1 else 0.0

    def state(self) -> tuple[float, float, float]:
        """What the constructor takes."""
        return self.count, self.mean, self.squares
