"""Whether a completion is the right answer: as a Python literal, as text, or as a number."""

import re
from decimal import Decimal, InvalidOperation
from typing import Literal

from llmcore.literals import same_literal
from llmrl.rewards.reward import Reward, RewardFunction

NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?")


class LiteralReward(Reward):
    """1 if the completion is the Python literal that the answer is, however it is written."""

    kind: Literal["literal"] = "literal"

    def build(self) -> RewardFunction:
        return lambda samples: [float(same_literal(s.text, s.prompt.answer)) for s in samples]


class ExactReward(Reward):
    """1 if the completion is the answer, spaces around both aside."""

    kind: Literal["exact"] = "exact"

    def build(self) -> RewardFunction:
        return lambda samples: [float(s.text.strip() == s.prompt.answer.strip()) for s in samples]


class NumericReward(Reward):
    r"""1 if the number after the last `####`, else in the last \boxed{}, else the last number, is the answer's."""

    kind: Literal["numeric"] = "numeric"

    def build(self) -> RewardFunction:
        return lambda samples: [same_number(s.text, s.prompt.answer) for s in samples]


def same_number(text: str, answer: str) -> float | None:
    """Whether two texts end in the same number; None if the answer has none."""
    wanted = final_number(answer)
    if wanted is None:
        return None
    return float(final_number(text) == wanted)


def final_number(text: str) -> Decimal | None:
    r"""The first number after the last `####` (GSM8K), or else after the last `\boxed{`, or else the last of a text."""
    for mark in ("####", "\\boxed{"):
        _, marked, tail = text.rpartition(mark)
        if marked:
            return as_decimal(NUMBER.search(tail))
    found = list(NUMBER.finditer(text[-1000:]))
    return as_decimal(found[-1]) if found else None


def as_decimal(found: re.Match[str] | None) -> Decimal | None:
    try:
        return Decimal(found[0].replace(",", "").replace("$", "")) if found else None
    except InvalidOperation:
        return None
