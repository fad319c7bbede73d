"""Small Python expressions whose answer Python gives: *be a Python prompt*.

The user's turn is an expression, the assistant's is the `repr` of its value, which comes from the real functions and
methods (nothing is evaluated from text). Twelve kinds, three levels. Whether a problem is held out is decided by a hash
of its text alone: a problem held out here is held out in chats, preferences and prompts, under every seed.
"""

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib.resources import files
from typing import NamedTuple

from llmcore.errors import ConfigError

HELD_OUT = 0.06  # of all problems
PATIENCE = 3000  # draws in a row without a new problem, after which a level counts as exhausted


class Problem(NamedTuple):
    """An expression, the `repr` of its value, and of what it might be mistaken for."""

    kind: str
    level: int
    prompt: str
    answer: str
    others: tuple[str, ...]


class Drawn(NamedTuple):
    """An expression before it is a problem: its text, its value, the values of related operations."""

    prompt: str
    value: object
    others: tuple[object, ...]


Maker = Callable[[random.Random, int], Drawn]


def draw_problems(
    seed: str, *, train: int, valid: int, levels: Sequence[float], kinds: Sequence[str] = ()
) -> tuple[list[Problem], list[Problem]]:
    """(train, valid): distinct problems, as many of each of some kinds (of all if none is named), in random order.

    A level that has too few distinct problems of a kind leaves the rest to the next one that has a share.
    """
    total = sum(levels)
    if min(levels) < 0 or total <= 0:
        raise ConfigError(f"levels={tuple(levels)!r} are no shares", hint="give three numbers, as levels=[0.6,0.3,0.1]")
    chosen = check_kinds(kinds)
    sides: tuple[list[Problem], list[Problem]] = ([], [])
    for number, kind in enumerate(chosen):
        seen: set[str] = set()
        wanted = [quota(total_rows, number, len(chosen)) for total_rows in (train, valid)]
        owed = [0.0, 0.0]
        for level in (1, 2, 3):
            owed = [rest + want * levels[level - 1] / total for rest, want in zip(owed, wanted, strict=True)]
            counts = [round(rest) if levels[level - 1] else 0 for rest in owed]
            drawn = list(draw(f"{seed}/{kind}/{level}", kind, level=level, counts=counts, seen=seen))
            for problem in drawn:
                sides[is_held_out(problem.prompt)].append(problem)
                owed[is_held_out(problem.prompt)] -= 1
        if max(owed) >= 1:
            raise ConfigError(
                f"there are too few different expressions of kind {kind!r} for {train} and {valid} problems",
                hint="lower problems or valid_problems, or give level 3 a share",
            )
    for side in sides:
        random.Random(f"{seed}/order").shuffle(side)
    return sides


def check_kinds(kinds: Sequence[str]) -> list[str]:
    """The kinds that are asked for, in our order."""
    for kind in kinds:
        if kind not in MAKERS:
            raise ConfigError(f"kinds: there is no kind {kind!r} of expressions", hint=f"there are {', '.join(MAKERS)}")
    return [kind for kind in MAKERS if not kinds or kind in kinds]


def quota(total: int, number: int, kinds: int) -> int:
    """How many of `total` fall to the kind of a number."""
    return total // kinds + (number < total % kinds)


def draw(seed: str, kind: str, *, level: int, counts: Sequence[int], seen: set[str]) -> Iterator[Problem]:
    """New problems of a kind and level until there are `counts` (train, valid) or there are no more."""
    generator = random.Random(seed)
    left = list(counts)
    idle = 0
    while any(left) and idle < PATIENCE:
        drawn = MAKERS[kind](generator, level)
        side = is_held_out(drawn.prompt)
        idle += 1
        if left[side] <= 0 or drawn.prompt in seen:
            continue
        seen.add(drawn.prompt)
        left[side] -= 1
        idle = 0
        answer = repr(drawn.value)
        others = tuple(dict.fromkeys(repr(other) for other in drawn.others))
        yield Problem(kind, level, drawn.prompt, answer, tuple(other for other in others if other != answer))


def is_held_out(prompt: str) -> bool:
    """Whether a problem belongs to the held-out side, for every seed and every kind of record."""
    return int(hashlib.sha256(prompt.encode()).hexdigest()[:8], 16) < HELD_OUT * 2**32


def add(generator: random.Random, level: int) -> Drawn:
    """`7 + 5`, `63 - 18`, `12 + 7 - 3`."""
    low, high = ((0, 20), (10, 99), (10, 99))[level - 1]
    a, b, c = (generator.randint(low, high) for _ in range(3))
    if level == 1 or (level == 2 and generator.random() < 0.5):
        return Drawn(f"{a} + {b}", a + b, (a - b, b - a, a * b))
    if level == 2:
        return Drawn(f"{a} - {b}", a - b, (a + b, b - a))
    return Drawn(f"{a} + {b} - {c}", a + b - c, (a + b + c, a - b + c, a + b))


def total(generator: random.Random, level: int) -> Drawn:
    """`sum([4, 5, 2])`."""
    values = numbers(generator, (3, 4, 5)[level - 1], 9 if level < 3 else 20)
    return Drawn(f"sum({values})", sum(values), (max(values), len(values), sum(values[1:])))


def extreme(generator: random.Random, level: int) -> Drawn:
    """`max([31, 8, 47])`, `min([5, 2, 9])`."""
    values = numbers(generator, (2, 3, 5)[level - 1], 99)
    others = (values[0], values[-1], sum(values))
    if generator.random() < 0.5:
        return Drawn(f"max({values})", max(values), (min(values), *others))
    return Drawn(f"min({values})", min(values), (max(values), *others))


def length(generator: random.Random, level: int) -> Drawn:
    """`len('stone')`, `len([3, 1, 2])`."""
    if generator.random() < 0.4:
        values = numbers(generator, generator.randint(*((0, 4), (2, 6), (4, 9))[level - 1]), 9)
        return Drawn(f"len({values})", len(values), (sum(values), *values[:1]))
    text = name(generator, level)
    return Drawn(f"len({text!r})", len(text), (text, text.count(text[0])))


def count(generator: random.Random, level: int) -> Drawn:
    """`'abbab'.count('b')`."""
    letters = generator.sample("abcdefgh", 2 if level == 1 else 3)
    text = "".join(generator.choices(letters, k=generator.randint(*((3, 6), (6, 8), (8, 11))[level - 1])))
    letter = generator.choice(letters)
    return Drawn(f"{text!r}.count({letter!r})", text.count(letter), (len(text), len(text) - text.count(letter)))


def ordered(generator: random.Random, level: int) -> Drawn:
    """`sorted([3, 1, 2])`."""
    values = numbers(generator, (3, 4, 5)[level - 1], 9 if level < 3 else 99)
    return Drawn(f"sorted({values})", sorted(values), (values, values[::-1], sorted(values, reverse=True)))


def part(generator: random.Random, level: int) -> Drawn:
    """`[1, 2, 3][1:]`, `[4, 5, 6, 7][1:3]`."""
    values = numbers(generator, (3, 4, 6)[level - 1], 9 if level < 3 else 20)
    at = generator.randint(1, len(values) - 1)
    others = (values, values[:at], values[at:], values[at], values[1:])
    form = generator.randrange(2 if level == 1 else 3)
    if form == 0:
        return Drawn(f"{values}[{at}:]", values[at:], others)
    if form == 1:
        return Drawn(f"{values}[:{at}]", values[:at], others)
    begin = generator.randint(0, at - 1)
    return Drawn(f"{values}[{begin}:{at}]", values[begin:at], others)


def divided(generator: random.Random, level: int) -> Drawn:
    """`'a-b'.split('-')`."""
    mark = generator.choice("-,/:")
    pieces = [word(generator, 3 if level == 1 else 4) for _ in range((2, 3, 3)[level - 1])]
    if level == 1:
        pieces = [piece[: generator.randint(1, 3)] for piece in pieces]
    text = mark.join(pieces)
    return Drawn(f"{text!r}.split({mark!r})", text.split(mark), ([text], list(reversed(pieces)), text.split(" ")))


def backwards(generator: random.Random, level: int) -> Drawn:
    """`'stone'[::-1]`."""
    text = name(generator, level)
    return Drawn(f"{text!r}[::-1]", text[::-1], (text, text.upper(), text[1:]))


def cased(generator: random.Random, level: int) -> Drawn:
    """`'stone'.upper()`, `'stone'.title()`."""
    text = name(generator, level)
    others = (text, text.upper(), text.title(), text.capitalize(), text[::-1])
    if generator.random() < 0.6:
        return Drawn(f"{text!r}.upper()", text.upper(), others)
    return Drawn(f"{text!r}.title()", text.title(), others)


def joined(generator: random.Random, level: int) -> Drawn:
    """`'ab' + 'cd'`, `'ab' * 2`."""
    left, right = (word(generator, (3, 5, 8)[level - 1]) for _ in range(2))
    if generator.random() < 0.3:
        times = generator.randint(2, 3) if level > 1 else 2
        return Drawn(f"{left!r} * {times}", left * times, (left, left * (times + 1)))
    return Drawn(f"{left!r} + {right!r}", left + right, (right + left, left, f"{left} {right}"))


def letter(generator: random.Random, level: int) -> Drawn:
    """`'stone'[2]`, `'stone'[1:3]`."""
    text = name(generator, level)
    at = generator.randrange(len(text) if level > 1 else min(3, len(text)))
    if generator.random() < 0.6:
        begin = generator.randrange(len(text) - 1)
        end = generator.randint(begin + 1, min(len(text), begin + 4))
        return Drawn(f"{text!r}[{begin}:{end}]", text[begin:end], (text[:end], text[begin:], text[begin:][: end + 1]))
    return Drawn(f"{text!r}[{at}]", text[at], (text[at - 1], text[: at + 1], text))


def numbers(generator: random.Random, size: int, largest: int) -> list[int]:
    return [generator.randint(0, largest) for _ in range(size)]


@cache
def words() -> tuple[str, ...]:
    """Common words of three to six letters, one list for every version."""
    return tuple(files("llmdata").joinpath("words.txt").read_text(encoding="utf-8").split())


def word(generator: random.Random, longest: int) -> str:
    """A common word, cut at `longest` letters."""
    return generator.choice(words())[:longest]


def name(generator: random.Random, level: int) -> str:
    """A word; with the level, two words joined as in an identifier."""
    if level == 1:
        return generator.choice(words())
    return f"{word(generator, 3 if level == 2 else 5)}_{word(generator, 4 if level == 2 else 6)}"


MAKERS: dict[str, Maker] = {
    "add": add,
    "sum": total,
    "max": extreme,
    "len": length,
    "count": count,
    "sorted": ordered,
    "slice": part,
    "split": divided,
    "reverse": backwards,
    "case": cased,
    "join": joined,
    "index": letter,
}
