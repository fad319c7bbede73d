"""Two commands in turn, and the ratio of what they measure.

    uv run tools/pair.py "uv run tools/bench.py train" "python my_train_hf.py" --rounds 5

Each command prints a JSON object as its last line. Compared is its number `--key`; without one, that which the first
command's `metric` names. Each round runs both, in the other order than the round before (A B, B A, …), so that what
slows the machine down slows both. The output is one JSON line: the median of the rounds' ratios A / B, their range, all
values, and the largest `other_cpu` that a command told: above 0.2, other work disturbed the measurement.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from typing import Any


def main() -> None:
    """Measure both sides in turn and print one line."""
    options = parse_arguments()
    rounds = [run_round(options, number) for number in range(options.rounds)]
    key = options.key or rounds[0][0].get("metric")
    values = [tuple(number_of(line, key) for line in pair) for pair in rounds]
    ratios = [round(a / b, 3) for a, b in values]
    line = {
        "ratio": round(statistics.median(ratios), 3),
        "range": [min(ratios), max(ratios)],
        "key": key,
        "a": {"command": options.a, "values": [a for a, _ in values]},
        "b": {"command": options.b, "values": [b for _, b in values]},
        "other_cpu_max": max(line.get("other_cpu", 0.0) for pair in rounds for line in pair),
    }
    print(json.dumps(line))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a", metavar="A", help="a command, in quotes")
    parser.add_argument("b", metavar="B", help="the command that it is compared with")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is run; default 3")
    parser.add_argument("--key", help="the figure to compare; default: what A calls its metric")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error(f"--rounds {options.rounds}: one at least")
    return options


def run_round(options: argparse.Namespace, number: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The lines of A and B; odd rounds begin with B."""
    lines = {side: run(getattr(options, side)) for side in ("ba" if number % 2 else "ab")}
    return lines["a"], lines["b"]


def run(command: str) -> dict[str, Any]:
    """What a command prints last."""
    try:
        done = subprocess.run(shlex.split(command), stdout=subprocess.PIPE, text=True, check=False)
    except OSError as error:
        sys.exit(f"error: {command!r} cannot be run: {error}")
    if done.returncode:
        sys.exit(f"error: {command!r} ended with code {done.returncode}: mend what it says above")
    try:
        line = json.loads(done.stdout.strip().rpartition("\n")[2])
    except ValueError:
        line = None
    if not isinstance(line, dict):
        sys.exit(f"error: {command!r} printed no JSON object as its last line: {done.stdout[-200:]!r}")
    return line


def number_of(line: dict[str, Any], key: str | None) -> float:
    """One figure of a line."""
    value = line.get(key or "")
    if not isinstance(value, int | float) or value <= 0:
        sys.exit(f"error: no number {key!r} in {json.dumps(line)[:200]}: give --key")
    return value


if __name__ == "__main__":
    main()
