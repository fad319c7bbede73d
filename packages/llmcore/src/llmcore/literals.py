"""Python literals as answers: compared by value and type, and never evaluated."""

import ast
from collections.abc import Sequence

LENGTH_LIMIT = 1000  # characters; beyond it a text is no short answer, and parsing it is only work


def same_literal(text: str, answer: str) -> bool:
    """Whether both are Python literals of equal value and type: `'a'` is `"a"`; `1` is neither `1.0` nor `True`."""
    left, right = parse_literal(text), parse_literal(answer)
    return left is not None and right is not None and equal(left[0], right[0])


def parse_literal(text: str) -> tuple[object] | None:
    """The literal that the text spells, alone in a tuple (it may be None); None where it spells none."""
    if len(text) > LENGTH_LIMIT:
        return None
    try:
        return (ast.literal_eval(text.strip()),)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def equal(left: object, right: object) -> bool:
    """Equal in value and type, all the way down."""
    if type(left) is not type(right):
        return False
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return len(left) == len(right) and all(map(equal, left, right))
    if isinstance(left, dict) and isinstance(right, dict):
        return same_items(list(left.items()), list(right.items()))
    if isinstance(left, set) and isinstance(right, set):
        return same_items(sorted(left, key=repr), sorted(right, key=repr))
    return left == right


def same_items(left: Sequence[object], right: Sequence[object]) -> bool:
    return len(left) == len(right) and all(map(equal, left, right))
