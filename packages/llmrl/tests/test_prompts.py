"""Prompts as a function of (seed, number); those that are too long, and those that are not there."""

from collections import Counter
from pathlib import Path

import pytest

from llmcore.errors import DataError
from llmcore.records import Message, Prompt, write_records
from llmcore.tokenizer import Tokenizer
from llmrl.prompts import Prompts, held_out_prompts

TOKENIZER = Tokenizer.byte_level()


def prompt(text: str) -> Prompt:
    return Prompt(prompt=(Message(role="user", content=text),), answer=text)


def test_epochs_are_permutations_and_every_rollout_is_a_function_of_its_number() -> None:
    prompts = Prompts([prompt("x" * (i + 1)) for i in range(7)], TOKENIZER, longest=60)
    drawn = [place for number in range(7) for place in prompts.draw(3, number, 5)]
    assert all(count == 5 for count in Counter(drawn).values())
    assert sorted(drawn[:7]) == sorted(drawn[7:14]) == list(range(7))
    assert drawn[:7] != drawn[7:14]
    assert prompts.draw(3, 4, 5) == drawn[20:25]
    assert len(prompts.draw(0, 0, 40)) == 40
    assert prompts.draw_again(3, 1, 1, 4) == prompts.draw_again(3, 1, 1, 4) != prompts.draw_again(3, 1, 2, 4)


def test_prompts_too_long_for_the_context_are_dropped_and_counted_or_refused() -> None:
    records = [prompt("short"), prompt("y" * 100)]
    kept = Prompts(records, TOKENIZER, longest=40, max_dropped=0.5)
    assert kept.counts == {"prompts": 1, "dropped: too long": 1}
    with pytest.raises(DataError, match="1 of 2 prompts.*\n.*buy a larger one"):
        Prompts(records, TOKENIZER, longest=40, max_dropped=0.4, hint="buy a larger one")
    with pytest.raises(DataError, match="2 of 2 prompts"):
        Prompts(records, TOKENIZER, longest=4, max_dropped=1.0)


def test_a_file_of_one_prompt_has_none_held_out(tmp_path: Path) -> None:
    write_records(tmp_path / "one.jsonl", [prompt("alone")])
    with pytest.raises(DataError, match=r"one\.jsonl' has no held-out prompt\n.*two prompts or more"):
        held_out_prompts(tmp_path / "one.jsonl")
    write_records(tmp_path / "two.jsonl", [prompt("not"), prompt("alone")])
    assert len(held_out_prompts(tmp_path / "two.jsonl")) == 1
