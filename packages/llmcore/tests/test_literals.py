"""Literals as answers."""

import pytest

from llmcore.literals import same_literal


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("'a'", '"a"'),
        ("[1,2]", "[1, 2]"),
        (" 7\n", "7"),
        ("None", "None"),
        ("{'a': [1]}", "{'a': [1]}"),
        ("{1, 2}", "{2, 1}"),
        ("-3", "-3"),
    ],
)
def test_equal_values_of_equal_types_are_the_same(text: str, answer: str) -> None:
    assert same_literal(text, answer)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("1", "1.0"),
        ("1", "True"),
        ("[1]", "[True]"),
        ("[1]", "(1,)"),
        ("{'a': 1}", "{'a': 1.0}"),
        ("{1}", "{True}"),
        ("'1'", "1"),
        ("a", "'a'"),
        ("'ab", "'ab'"),
        ("", "''"),
        ("1 + 1", "2"),
        ("print('x')", "'x'"),
        ("1\0", "1"),
        ("{[]: 1}", "1"),
    ],
)
def test_another_value_type_or_no_literal_is_not(text: str, answer: str) -> None:
    assert not same_literal(text, answer)


@pytest.mark.parametrize("text", ["(" * 900, "[" * 450 + "]" * 450, "-" * 999, "9" * 10**6, "1e999999" * 100])
def test_hostile_text_is_only_wrong(text: str) -> None:
    assert not same_literal(text, "1")
