"""Preference pairs: the wrong side is wrong, and length does not give it away."""

from collections import Counter

import pytest

from llmcore.literals import parse_literal, same_literal
from llmdata.expressions import Problem, draw_problems
from llmdata.preferences import wrong_answer


@pytest.fixture(scope="module")
def pairs() -> list[tuple[Problem, str]]:
    train, valid = draw_problems("0/preferences", train=8_000, valid=400, levels=(0.6, 0.3, 0.1))
    return [(problem, wrong_answer(problem, problem.prompt)) for problem in [*train, *valid]]


def test_the_wrong_answer_is_wrong(pairs: list[tuple[Problem, str]]) -> None:
    for problem, wrong in pairs:
        assert wrong
        assert not same_literal(wrong, problem.answer)


def test_the_longer_answer_is_right_about_half_of_the_time(pairs: list[tuple[Problem, str]]) -> None:
    longer = sum(len(problem.answer) > len(wrong) for problem, wrong in pairs)
    shorter = sum(len(problem.answer) < len(wrong) for problem, wrong in pairs)
    assert 0.46 < longer / (longer + shorter) < 0.54
    assert longer + shorter > 0.4 * len(pairs)
    ties = len(pairs) - longer - shorter
    assert 0.45 < (longer + ties / 2) / len(pairs) < 0.55


def test_there_are_slips_wrong_types_and_other_operations(pairs: list[tuple[Problem, str]]) -> None:
    found: Counter[str] = Counter()
    for problem, wrong in pairs:
        literal, right = parse_literal(wrong), parse_literal(problem.answer)
        assert right is not None
        found["other operation"] += wrong in problem.others
        found["no literal"] += literal is None
        found["wrong type"] += literal is not None and type(literal[0]) is not type(right[0])
        found["slip"] += literal is not None and type(literal[0]) is type(right[0]) and wrong not in problem.others
    assert min(found.values()) > 0.02 * len(pairs)
    assert len(found) == 4


def test_the_seed_decides() -> None:
    problem = Problem("sum", 1, "sum([4, 5, 2])", "11", ("5", "3"))
    assert wrong_answer(problem, "a") == wrong_answer(problem, "a")
    assert len({wrong_answer(problem, str(seed)) for seed in range(50)}) > 4
