"""Instruction data: right answers, balanced kinds, distinct problems, nothing shared between the splits."""

import subprocess
import sys
from collections import Counter

import pytest

from llmcore.errors import ConfigError
from llmcore.literals import parse_literal, same_literal
from llmdata.expressions import MAKERS, Problem, draw_problems, is_held_out

LEVELS = (0.6, 0.3, 0.1)


@pytest.fixture(scope="module")
def drawn() -> tuple[list[Problem], list[Problem]]:
    return draw_problems("0/chats", train=20_000, valid=1_000, levels=LEVELS)


def test_there_are_as_many_distinct_problems_as_asked(drawn: tuple[list[Problem], list[Problem]]) -> None:
    train, valid = drawn
    assert (len(train), len(valid)) == (20_000, 1_000)
    assert len({problem.prompt for problem in [*train, *valid]}) == 21_000


def test_answers_are_what_python_itself_says(drawn: tuple[list[Problem], list[Problem]]) -> None:
    problems = [*drawn[0][::20], *drawn[1]]
    program = "".join(f"print(repr({problem.prompt}))\n" for problem in problems)
    done = subprocess.run([sys.executable, "-"], input=program, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [problem.answer for problem in problems]


def test_a_held_out_problem_is_held_out_under_every_seed(drawn: tuple[list[Problem], list[Problem]]) -> None:
    for seed in ("0/prompts", "7/chats"):
        train, valid = draw_problems(seed, train=3_000, valid=300, levels=LEVELS)
        assert not {problem.prompt for problem in train} & {problem.prompt for problem in drawn[1]}
        assert not {problem.prompt for problem in valid} & {problem.prompt for problem in drawn[0]}
        assert all(is_held_out(problem.prompt) for problem in valid)


def test_kinds_are_balanced_and_levels_have_their_shares(drawn: tuple[list[Problem], list[Problem]]) -> None:
    for side in drawn:
        kinds = Counter(problem.kind for problem in side)
        assert set(kinds) == set(MAKERS)
        assert max(kinds.values()) - min(kinds.values()) <= 1
        levels = Counter(problem.level for problem in side)
        assert 0.5 < levels[1] / len(side) < 0.62
        assert 0.08 < levels[3] / len(side) < 0.12


def test_no_constant_answer_is_worth_giving(drawn: tuple[list[Problem], list[Problem]]) -> None:
    for side in drawn:
        assert Counter(problem.answer for problem in side).most_common(1)[0][1] < 0.05 * len(side)


def test_the_ladder_begins_short_and_grows(drawn: tuple[list[Problem], list[Problem]]) -> None:
    sizes = [[len(p.prompt) + len(p.answer) for p in drawn[0] if p.level == level] for level in (1, 2, 3)]
    means = [sum(size) / len(size) for size in sizes]
    assert means == sorted(means)
    assert max(len(problem.prompt) for problem in drawn[0]) <= 40
    assert max(len(problem.answer) for problem in drawn[0] if problem.level == 1) <= 16


def test_the_same_seed_draws_the_same_problems() -> None:
    once = draw_problems("3", train=200, valid=20, levels=LEVELS)
    assert once == draw_problems("3", train=200, valid=20, levels=LEVELS)
    assert once != draw_problems("4", train=200, valid=20, levels=LEVELS)


def test_mistaken_answers_are_literals_of_other_values(drawn: tuple[list[Problem], list[Problem]]) -> None:
    for problem in drawn[1]:
        assert problem.others
        for other in problem.others:
            assert parse_literal(other) is not None
            assert not same_literal(other, problem.answer)


def test_more_problems_than_there_are_is_an_error() -> None:
    with pytest.raises(ConfigError, match="too few different expressions of kind 'add'"):
        draw_problems("0", train=9_000, valid=10, levels=(1, 0, 0))
    with pytest.raises(ConfigError, match="levels"):
        draw_problems("0", train=100, valid=10, levels=(0, 0, 0))


def test_only_the_named_kinds_are_drawn() -> None:
    train, valid = draw_problems("0", train=200, valid=20, levels=LEVELS, kinds=("split", "sorted"))
    for side, count in ((train, 200), (valid, 20)):
        assert Counter(problem.kind for problem in side) == {"sorted": count // 2, "split": count // 2}
    with pytest.raises(ConfigError, match="no kind 'sorting'"):
        draw_problems("0", train=200, valid=20, levels=LEVELS, kinds=("sorting",))
