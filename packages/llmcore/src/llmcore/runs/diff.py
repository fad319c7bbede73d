"""How two runs differ: settings, parents, surroundings, and what they measured."""

from typing import Any, NamedTuple

from llmcore.runs.folder import RunFolder
from llmcore.train.identity import compare, flat, shown

UNTIMELY = ("step", "tokens", "seconds", "tokens_per_s", "mfu", "memory_gib", "lr")


class Difference(NamedTuple):
    """One thing that is not the same."""

    kind: str
    """setting, parent, environment, or metric."""
    name: str
    left: Any
    right: Any


def differences(left: RunFolder, right: RunFolder) -> list[Difference]:
    """All that differs; of metrics the last value of each."""
    found = []
    for name, before, after in compare(flat(left.identity), flat(right.identity)):
        kind = "parent" if name.startswith("parent ") else "setting"
        found.append(Difference(kind, name.removeprefix("parent "), plain(before), plain(after)))
    for name, before, after in compare(left.identity.environment, right.identity.environment):
        found.append(Difference("environment", name, plain(before), plain(after)))
    names = dict.fromkeys(name for run in (left, right) for row in run.rows for name in row if name not in UNTIMELY)
    for name in names:
        before, after = left.last(name), right.last(name)
        if before != after:
            found.append(Difference("metric", name, before, after))
    return found


def plain(value: object) -> object:
    """A value as JSON has it; what is absent is None."""
    return None if shown(value) == "not set" else value
