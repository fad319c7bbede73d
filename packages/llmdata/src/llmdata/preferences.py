"""A right answer against a wrong one: a slip, a wrong type, or another operation's answer.

Wrong answers come out longer as often as shorter, so that "the longer one wins" is right about half of the time.
"""

import ast
import random
from collections.abc import Iterator
from typing import TypeVar

from llmcore.literals import same_literal
from llmdata.expressions import Problem

Item = TypeVar("Item")


def wrong_answer(problem: Problem, seed: str) -> str:
    """An answer that is not the problem's, decided by the seed."""
    generator = random.Random(seed)
    right = problem.answer
    wrong = sorted({slip for slip in [*corrupt(right, generator), *problem.others] if slip and slip != right})
    while same_literal(slip := choose(wrong, len(right), generator), right):
        wrong.remove(slip)
    return slip


def choose(wrong: list[str], size: int, generator: random.Random) -> str:
    """A shorter, a longer or an equally long one, each as often; only where there are both, a shorter or longer one."""
    shorter = [slip for slip in wrong if len(slip) < size]
    longer = [slip for slip in wrong if len(slip) > size]
    equal = [slip for slip in wrong if len(slip) == size]
    buckets = [bucket for bucket in (shorter, longer, equal) if bucket]
    if equal and not (shorter and longer):
        buckets = [equal]
    return generator.choice(generator.choice(buckets))


def corrupt(right: str, generator: random.Random) -> Iterator[str]:
    """Slips of the right answer's text and value; some may happen to be right again."""
    value = ast.literal_eval(right)
    if isinstance(value, int):
        yield from wrong_number(value, generator)
    elif isinstance(value, str):
        yield from wrong_text(value, generator)
    else:
        yield from wrong_list(list(value), generator)


def wrong_number(value: int, generator: random.Random) -> Iterator[str]:
    """Off by one or ten, swapped, dropped or doubled digits, text instead of a number."""
    yield from (repr(value + step) for step in (1, -1, 2, 10, -10))
    digits = str(abs(value))
    at = generator.randrange(len(digits))
    yield digits[::-1].lstrip("0")
    yield digits[:at] + digits[at + 1 :]
    yield digits[: at + 1] + digits[at:]
    yield repr(digits)


def wrong_text(value: str, generator: random.Random) -> Iterator[str]:
    """Swapped neighbours, a dropped or doubled character, another case, no quotes."""
    if value:
        at = generator.randrange(len(value))
        yield repr(value[:at] + value[at + 1 :])
        yield repr(value[: at + 1] + value[at:])
        yield repr(value.swapcase())
        yield repr("".join(swap_neighbours(list(value), generator)))
    yield value
    yield f"[{value!r}]"


def wrong_list(value: list[object], generator: random.Random) -> Iterator[str]:
    """Swapped neighbours, a dropped, doubled or changed item, text instead of numbers, no brackets."""
    if value:
        at = generator.randrange(len(value))
        item = value[at]
        yield repr(value[:at] + value[at + 1 :])
        yield repr(value[: at + 1] + value[at:])
        yield repr(swap_neighbours(value, generator))
        changed: object = item + generator.choice((-1, 1)) if isinstance(item, int) else str(item)[::-1]
        yield repr([*value[:at], changed, *value[at + 1 :]])
        yield repr([str(item) for item in value])
    yield repr(value)[1:-1]


def swap_neighbours(items: list[Item], generator: random.Random) -> list[Item]:
    """Two neighbours change places, such as differ where there are any."""
    places = [at for at in range(len(items) - 1) if items[at] != items[at + 1]]
    if not places:
        return items
    at = generator.choice(places)
    return [*items[:at], items[at + 1], items[at], *items[at + 2 :]]
