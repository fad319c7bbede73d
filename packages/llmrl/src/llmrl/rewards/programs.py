"""Whether a completion is Python, and does what its tests want; nothing of it ever runs in this process."""

import ast
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Literal

from pydantic import Field

from llmrl.rewards.reward import Reward, RewardFunction, Sample
from llmrl.rewards.sandbox import Limits, check_sandbox, run_program

FENCED = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)```", re.DOTALL)


class ParsesReward(Reward):
    """1 if the completion is Python that parses, and is not empty."""

    kind: Literal["parses"] = "parses"

    def build(self) -> RewardFunction:
        return lambda samples: [float(parses(s.text)) for s in samples]


class PassesTestsReward(Reward):
    """1 if the completion's code, followed by the row's tests, runs to its end within the limits.

    The code is the last fenced block, or the whole completion. Code that fails, runs too long or asks for too much
    earns 0; a row without tests is unscorable. `llmrl.rewards.sandbox` says what is kept from the code and what is not.
    """

    kind: Literal["passes_tests"] = "passes_tests"
    timeout: float = Field(600.0, gt=0)
    """Seconds that one call, for all completions of a rollout, may take."""
    tests: str = "tests"
    """The row's key with the tests: Python, or a list of assertions; the answer where there is no such key."""
    seconds: float = Field(4.0, gt=0)
    """Wall-clock seconds for each completion."""
    cpu_seconds: int = Field(2, ge=1)
    """Processor seconds for each completion."""
    memory_mib: int = Field(256, ge=64)
    """Address space for each completion."""
    workers: int = Field(2, ge=1)
    """Completions that are run at a time."""

    def build(self) -> RewardFunction:
        check_sandbox()
        limits = Limits(self.seconds, self.cpu_seconds, self.memory_mib)
        score = partial(passes, key=self.tests, limits=limits)

        def function(samples: Sequence[Sample]) -> list[float | None]:
            with ThreadPoolExecutor(self.workers) as pool:
                return list(pool.map(score, samples))

        return function


def parses(text: str) -> bool:
    """Whether a text is a piece of Python."""
    try:
        return bool(ast.parse(text[:10_000]).body)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False


def passes(sample: Sample, *, key: str, limits: Limits) -> float | None:
    """Whether one completion passes its row's tests; None where there are none."""
    tests = sample.prompt.extra.get(key) or sample.prompt.answer
    lines = [str(line) for line in tests] if isinstance(tests, list) else [str(tests)]
    if not "".join(lines).strip():
        return None
    return float(run_program("\n".join([code_of(sample.text), *lines, ""]), limits).passed)


def code_of(text: str) -> str:
    """The last fenced block of a text, or all of it."""
    blocks = FENCED.findall(text)
    return str(blocks[-1]) if blocks else text
