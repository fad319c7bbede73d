"""Whether a completion is written as asked for: formats by name, or a pattern of one's own.

--reward "numeric + 0.1*gsm8k"            a name of a format is a name of a reward
rewards.mine = { kind = "format", pattern = "Answer: [0-9]+" }
"""

import json
import re
from collections.abc import Callable
from typing import Literal

from pydantic import Field, field_validator

from llmrl.rewards.reward import Reward, RewardFunction

FormatName = Literal["gsm8k", "boxed", "think", "think_answer", "json"]


class FormatReward(Reward):
    """1 if the completion has the format."""

    kind: Literal["format"] = "format"
    name: FormatName = "gsm8k"
    """gsm8k: ends in `#### NUMBER`. boxed: one \\boxed{…}. think: <think>…</think>, then text; think_answer: then only
    <answer>…</answer>. json: a JSON value and nothing else."""
    pattern: str | None = Field(None, min_length=1)
    """A regular expression that the whole completion must match instead; `.` matches line breaks too."""

    @field_validator("pattern")
    @classmethod
    def check_pattern(cls, value: str | None) -> str | None:
        """A pattern that is none is found before the run."""
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"{value!r} is no regular expression: {error}") from None
        return value

    def build(self) -> RewardFunction:
        test = FORMATS[self.name] if self.pattern is None else whole(self.pattern)
        return lambda samples: [float(test(sample.text)) for sample in samples]


def whole(pattern: str) -> Callable[[str], bool]:
    """Whether all of a text, spaces around it aside, matches."""
    compiled = re.compile(pattern, re.DOTALL)
    return lambda text: compiled.fullmatch(text.strip()) is not None


def is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


THOUGHT = r"<think>(?:(?!</?think>).)*</think>"
FORMATS: dict[str, Callable[[str], bool]] = {
    "gsm8k": whole(r"(?:(?!####).)*#### -?\$?\d[\d,]*(?:\.\d+)?"),
    "boxed": whole(r"(?:(?!\\boxed\{).)*\\boxed\{[^{}]+\}(?:(?!\\boxed\{).)*"),
    "think": whole(THOUGHT + r"(?:(?!</?think>).)*\S"),
    "think_answer": whole(THOUGHT + r"\s*<answer>(?:(?!</?answer>).)+</answer>"),
    "json": is_json,
}
