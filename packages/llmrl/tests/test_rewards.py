"""Rules, sums of them, and what cannot be scored."""

import math
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from llmcore.config import load_config
from llmcore.errors import ConfigError, ExtensionError, TrainingError
from llmcore.extensions import needs_of
from llmcore.records import Message, Prompt
from llmcore.tokenizer import Tokenizer
from llmrl.config import GRPOConfig
from llmrl.rewards.answers import same_number
from llmrl.rewards.formats import FormatReward
from llmrl.rewards.lengths import LengthReward, OverlongReward
from llmrl.rewards.names import build_rewards, find_reward, parse_expression
from llmrl.rewards.reward import Reward, RewardFunction, Sample
from llmrl.rewards.sums import Rewards, Term, check_scorable


def sample(text: str, answer: str = "", *, tokens: int | None = None, stopped: bool = True) -> Sample:
    prompt = Prompt(prompt=(Message(role="user", content="?"),), answer=answer)
    count = len(text) if tokens is None else tokens
    return Sample(prompt, text, tuple(range(count)), stopped)


def score(expression: str, samples: Sequence[Sample], **named: Reward) -> list[float]:
    return build_rewards(expression, tokenizer=Tokenizer.byte_level(), named=named).score(samples).total.tolist()


def test_expressions() -> None:
    assert parse_expression("literal") == [(1.0, "literal")]
    assert parse_expression("0.7*runs/reward+0.3*literal") == [(0.7, "runs/reward"), (0.3, "literal")]
    assert parse_expression(" runs/a-b  +  -0.5 * length ") == [(1.0, "runs/a-b"), (-0.5, "length")]
    assert parse_expression("runs/reward + 0*literal") == [(1.0, "runs/reward"), (0.0, "literal")]


@pytest.mark.parametrize("expression", ["x*literal", "0.5*", "literal + 2*", "nan*literal", "inf*literal", "0*literal"])
def test_malformed_expressions_are_refused(expression: str) -> None:
    with pytest.raises(ConfigError):
        parse_expression(expression)


@pytest.mark.parametrize("expression", [None, "", "litreal", "no/such/folder", "checkpoint"])
def test_unknown_rewards_are_refused_with_one_sentence(expression: str | None) -> None:
    with pytest.raises(ConfigError) as caught:
        build_rewards(expression, tokenizer=Tokenizer.byte_level())
    assert "reward" in str(caught.value)


def test_rules() -> None:
    assert score("literal", [sample("'a'", '"a"'), sample("1.0", "1"), sample("[1,2]", "[1, 2]")]) == [1.0, 0.0, 1.0]
    assert score("exact", [sample(" 42\n", "42"), sample("4 2", "42")]) == [1.0, 0.0]
    assert score("parses", [sample("x = 1"), sample("x ="), sample(""), sample("'\\d'")]) == [1.0, 0.0, 0.0, 1.0]


def test_numeric_reads_gsm8k_answers() -> None:
    answer = "5 boxes of 6 are 30.\n#### 1,030"
    assert same_number("so it is\n#### 1030", answer) == 1.0
    assert same_number("we get $1,030.00 in all", answer) == 1.0
    assert same_number("1030 minus 1 is 1029", answer) == 0.0
    assert same_number("#### 1030 apples, 12 pears", answer) == 1.0
    assert same_number("none", answer) == 0.0
    assert same_number("-7", "#### -7") == 1.0
    assert same_number("7", "no number here") is None


def test_length_rules() -> None:
    length = LengthReward(target=4).build()
    assert length([sample("", tokens=n + 1) for n in (4, 2, 0, 6, 8, 20)]) == [1.0, 0.5, 0.0, 0.5, 0.0, 0.0]
    assert length([sample("", tokens=4, stopped=False)]) == [1.0]
    overlong = OverlongReward(limit=10, cache=4).build()
    assert overlong([sample("", tokens=n) for n in (6, 8, 10, 30)]) == pytest.approx([0.0, -0.5, -1.0, -1.0])


def test_weighted_sums_and_named_rules() -> None:
    samples = [sample("42", "42"), sample("41", "42")]
    assert score("0.5*exact + 2*short", samples, short=LengthReward(target=2)) == pytest.approx([1.5, 1.0])


def always(value: object) -> RewardFunction:
    return lambda samples: [value] * len(samples)  # type: ignore[list-item]


def test_a_watched_term_moves_nothing_even_if_it_fails() -> None:
    scores = Rewards([Term("a", 1.0, always(2.0)), Term("b", 0.0, always(None))]).score([sample("x")])
    assert scores.total.tolist() == [2.0]
    assert math.isnan(scores.terms["b"][0])


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf, "many"])
def test_what_is_no_number_is_unscorable(value: object) -> None:
    scores = Rewards([Term("odd", 1.0, always(value)), Term("fine", 1.0, always(1.0))]).score([sample("x")])
    assert math.isnan(scores.total[0])
    assert scores.metrics()["unscorable"] == (1.0, 1)
    assert scores.metrics()["reward"] == (0.0, 0)


def test_an_exception_costs_only_its_own_completion() -> None:
    def picky(samples: Sequence[Sample]) -> list[float]:
        return [1 / len(s.text) for s in samples]

    scores = Rewards([Term("picky", 1.0, picky)]).score([sample("ab"), sample(""), sample("a")])
    assert scores.total[[0, 2]].tolist() == [0.5, 1.0]
    assert math.isnan(scores.total[1])
    assert "ZeroDivisionError" in scores.failures["picky"]


def test_a_wrong_number_of_rewards_is_never_shifted() -> None:
    scores = Rewards([Term("short", 1.0, lambda _: [1.0])]).score([sample("a"), sample("b")])
    assert scores.total.tolist() == [1.0, 1.0]  # asked for each alone, it answers for each
    scores = Rewards([Term("long", 1.0, lambda _: [1.0] * 3)]).score([sample("a"), sample("b")])
    assert bool(scores.total.isnan().all())


def test_a_timeout_is_unscorable() -> None:
    def slow(samples: Sequence[Sample]) -> list[float]:
        time.sleep(5)
        return [1.0] * len(samples)

    started_at = time.perf_counter()
    scores = Rewards([Term("slow", 1.0, slow, timeout=0.05)]).score([sample("a"), sample("b")])
    assert bool(scores.total.isnan().all())
    assert scores.failures == {"slow": "timeout"}
    assert time.perf_counter() - started_at < 2


def test_too_many_unscorable_stop_the_run() -> None:
    scores = Rewards([Term("none", 1.0, always(None))]).score([sample("a")])
    with pytest.raises(TrainingError, match="could not be scored"):
        check_scorable(scores, 0.5)
    check_scorable(scores, 1.0)


def test_formats_by_name() -> None:
    texts = ["5 + 6\n#### 11", "11", "#### 11 apples", "#### 1\n#### 2"]
    assert score("gsm8k", [sample(text) for text in texts]) == [1.0, 0.0, 0.0, 0.0]
    assert score("boxed", [sample(r"so \boxed{7}."), sample("7"), sample(r"\boxed{7} \boxed{8}")]) == [1.0, 0.0, 0.0]
    texts = ["<think>a</think>b", "<think>a</think>", "<think><think>a</think>b", "a<think>b</think>c"]
    assert score("think", [sample(text) for text in texts]) == [1.0, 0.0, 0.0, 0.0]
    texts = ["<think>a</think>\n<answer>b</answer>", "<think>a</think>b", "<answer>b</answer>"]
    assert score("think_answer", [sample(text) for text in texts]) == [1.0, 0.0, 0.0]
    assert score("json", [sample('{"a": [1]}'), sample("{a}"), sample("")]) == [1.0, 0.0, 0.0]


def test_a_pattern_of_ones_own_matches_the_whole_completion() -> None:
    reward = FormatReward(pattern="Answer: [0-9]+")
    assert score("mine", [sample("Answer: 12\n"), sample("The Answer: 12")], mine=reward) == [1.0, 0.0]
    with pytest.raises(ValueError, match="no regular expression"):
        FormatReward(pattern="(")


FILE = """
def lengths(samples):
    return [float(len(sample.text)) for sample in samples]

def right(completions, answer, **kwargs):
    return [float(text == wanted) for text, wanted in zip(completions, answer)]

def levels(level, completions):
    return level
"""


def test_a_function_of_ones_own_by_path(tmp_path: Path) -> None:
    """Called with samples, or by column as TRL calls its reward functions."""
    file = tmp_path / "mine.py"
    file.write_text(FILE)
    samples = [sample("ab", "ab"), sample("c", "d")]
    assert score(f"{file}:lengths + 10*{file}:right", samples) == [12.0, 1.0]
    rewards = build_rewards(f"0.5*{file}:right", tokenizer=Tokenizer.byte_level())
    assert [term.name for term in rewards.terms] == ["right"]
    record = Prompt(prompt=(Message(role="user", content="?"),), extra={"level": 3})
    assert score(f"{file}:levels", [Sample(record, "x"), Sample(record, "y")]) == [3.0, 3.0]


@pytest.mark.parametrize("path", ["no.py:f", "{file}:missing", "{file}:", "{broken}:f"])
def test_a_function_that_is_not_there_is_refused(path: str, tmp_path: Path) -> None:
    file, broken = tmp_path / "mine.py", tmp_path / "broken.py"
    file.write_text(FILE)
    broken.write_text("import no_such_module")
    with pytest.raises(ConfigError, match=r"no file|no function|cannot be imported"):
        build_rewards(path.format(file=file, broken=broken), tokenizer=Tokenizer.byte_level())


OUTSIDE = """
from typing import Literal

from llmcore.extensions import Part
from llmrl.rewards.reward import Reward, RewardFunction


class Polite(Reward):
    kind: Literal["polite"] = "polite"

    def build(self) -> RewardFunction:
        return lambda samples: [float("please" in s.text) for s in samples]


class Loud(Part):
    kind: Literal["loud"] = "loud"

    def build(self):
        return lambda samples: [float(s.text.isupper()) for s in samples]


class Nothing(Part):
    kind: Literal["nothing"] = "nothing"
"""


def test_ten_lines_of_an_outside_package_are_a_reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package is a folder with a real dist-info, as an installer leaves it."""
    (tmp_path / "llm_polite.py").write_text(OUTSIDE)
    info = tmp_path / "llm_polite-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: llm-polite\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[llmrl.reward]\npolite = llm_polite:Polite\nloud = llm_polite:Loud\nnothing = llm_polite:Nothing\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert score("0.5*polite + exact", [sample("yes please"), sample("no", "no")]) == [0.5, 1.0]
    assert score("loud", [sample("YES"), sample("no")]) == [1.0, 0.0]  # a part that is no Reward of ours serves too
    with pytest.raises(ExtensionError, match="no build"):
        find_reward("nothing", {})
    config = load_config(GRPOConfig, ["rewards.mine.kind=polite"])
    assert score("mine", [sample("please")], **config.rewards) == [1.0]
    assert config.model_dump(mode="json")["rewards"]["mine"]["kind"] == "polite"
    assert needs_of(find_reward("polite", {})) == {"llm-polite": "1.0"}
