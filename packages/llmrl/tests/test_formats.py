"""Patterns are run on what a model says: our own are quick whatever that is, a user's own is ended by its timeout."""

import math
import time

import pytest

from llmcore.records import Message, Prompt
from llmrl.rewards.formats import FORMATS, FormatReward
from llmrl.rewards.reward import Sample
from llmrl.rewards.sums import Rewards, Term

MEGABYTE = 10**6
WORST = {
    "gsm8k": [("", "#", ""), ("#### 1", ",1", "x"), ("#### 1", ",", ".1.1"), ("", "#### 1\n", "")],
    "boxed": [("", "\\boxed", ""), ("\\boxed{", "a", ""), ("", "\\boxed{1}", ""), ("\\boxed{1}", "a", "\\boxed{1}")],
    "think": [("<think>", "<", ""), ("<think>a</think>", " ", "</think>"), ("<think>", "a</think>", "<think>")],
    "think_answer": [("<think>a</think>", " ", "x"), ("<think></think><answer>", "</answer", ""), ("", "<think>", "")],
    "json": [("", "[", ""), ("", '{"a":', ""), ("", "1", ""), ('"', "\\u0041", "")],
}
"""By format: beginning, what is repeated to a megabyte, end; none is what was asked for."""


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_is_looked_for_in_a_megabyte_in_less_than_two_seconds(name: str) -> None:
    for begin, unit, end in WORST[name]:
        text = begin + unit * (MEGABYTE // len(unit)) + end
        began = time.process_time()
        assert not FORMATS[name](text)
        assert time.process_time() - began < 2, (begin, unit, end)


def test_a_pattern_that_never_ends_makes_a_completion_unscorable() -> None:
    reward = FormatReward(pattern="(a+)+$", timeout=0.2)
    samples = [Sample(Prompt(prompt=(Message(role="user", content="?"),)), "a" * 60 + "!", (1,), True)]
    began = time.process_time()
    scores = Rewards([Term("mine", 1.0, reward.build(), reward.timeout)]).score(samples)
    assert math.isnan(scores.total[0]) and scores.failures == {"mine": "timeout"}
    assert time.process_time() - began < 2
