"""One call of somebody's reward function: a number or NaN for each completion, whatever it does."""

import contextlib
import math
import signal
import threading
import warnings
from collections.abc import Iterator, Sequence

from llmrl.rewards.reward import RewardFunction, Sample


def call(function: RewardFunction, samples: Sequence[Sample], *, timeout: float) -> tuple[list[float], str]:
    """A number or NaN for each sample, and the first reason for a NaN.

    A call that fails for all is repeated for each alone, so that one bad completion costs no more than itself.
    """
    values, reason = attempt(function, samples, timeout=timeout)
    if values is None and len(samples) > 1 and reason != "timeout":
        pairs = [attempt(function, [sample], timeout=timeout) for sample in samples]
        return [v[0] if v else math.nan for v, _ in pairs], next((r for _, r in pairs if r), "")
    return (values or [math.nan] * len(samples)), reason


def attempt(function: RewardFunction, samples: Sequence[Sample], *, timeout: float) -> tuple[list[float] | None, str]:
    """One call of somebody's function: its numbers (NaN for what is none), or None and why it failed."""
    try:
        with time_limit(timeout), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what parsing a model's text warns of is no news
            found = list(function(samples))
    except (KeyboardInterrupt, MemoryError):
        raise
    except TimeoutError:
        return None, "timeout"
    except Exception as error:  # a user's reward function may raise anything
        return None, f"{type(error).__name__}: {error}"
    if len(found) != len(samples):
        return None, f"{len(found)} rewards for {len(samples)} completions"
    values = [as_number(value) for value in found]
    return values, "no finite number" if any(math.isnan(value) for value in values) else ""


def as_number(value: object) -> float:
    """A finite float, or NaN for anything else."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return math.nan
    return number if math.isfinite(number) else math.nan


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError when the block takes longer; only the main thread can be interrupted so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_number: int, _frame: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
