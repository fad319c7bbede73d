"""Preferences from an artifact, a folder or a plain file, with what the file's rows left out.

Beside the rows that `llmcore.records` knows, a row may rank more than two answers to its prompt, and stands for all the
pairs that follow:

    {"prompt": "…", "ranked": ["the best", "the second", "the worst"]}
    {"prompt": "…", "completions": ["one", "another", "a third"], "scores": [3, 1, 3]}      equal scores say nothing
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from llmcore.manifest import Manifest, describe_file
from llmcore.records import (
    Preference,
    Scanned,
    is_artifact,
    load_records,
    load_splits,
    refuse_shared_prompts,
    rows_error,
    split_records,
)
from llmcore.rows import read_rows
from llmcore.shapes import scan_row


class Preferences(NamedTuple):
    """Records of one split, where they came from, and how many rows of the file say nothing, by reason."""

    records: list[Preference]
    manifest: Manifest
    unusable: Mapping[str, int]


class PreferenceSplits(NamedTuple):
    """What is trained on, and what is held out."""

    train: Preferences
    valid: Preferences


def load_preferences(path: Path) -> PreferenceSplits:
    """Both splits, of files read once; well-formed rows that say nothing (equal answers) are counted, not refused."""
    if is_artifact(path):
        train, valid, manifest = load_splits(path, Preference)
        return PreferenceSplits(Preferences(train, manifest, {}), Preferences(valid, manifest, {}))
    if path.is_dir():
        files = [path / f"{name}.jsonl" for name in PreferenceSplits._fields]
        splits = PreferenceSplits(*map(read_file, files))
        refuse_shared_prompts(path, splits.train.records, splits.valid.records)
        return splits
    whole = read_file(path)
    return PreferenceSplits(*(whole._replace(records=side) for side in split_records(whole.records)))


def load_held_out(path: Path) -> Preferences:
    """What is held out alone: of an artifact, the other file is not read."""
    if is_artifact(path):
        return Preferences(*load_records(path, Preference, "valid"), {})
    return load_preferences(path).valid


def read_file(path: Path) -> Preferences:
    """One file, which is a split of its own."""
    records, unusable = scan_file(path)
    return Preferences(records, describe_file(path), unusable)


def scan_file(path: Path) -> tuple[list[Preference], Mapping[str, int]]:
    """The pairs of one file, and how many say nothing, by reason; all mistakes are reported together."""
    kept: list[Preference] = []
    problems: list[str] = []
    unusable: Counter[str] = Counter()
    for row in scan_pairs(path):
        if isinstance(row.record, Preference):
            kept.append(row.record)
        elif row.unusable:
            unusable[f"dropped_{row.unusable}"] += 1
        else:
            problems.append(f"{row.where}: {row.problem}")
    if problems:
        raise rows_error(path, problems, len(kept) + len(problems) + unusable.total())
    return kept, unusable


def scan_pairs(path: Path) -> Iterator[Scanned]:
    """Each pair of a file, good or bad; a ranking gives all of its pairs."""
    for where, row, problem in read_rows(path):
        if problem:
            yield Scanned(where, None, problem)
        elif "ranked" in row or "completions" in row:
            yield from scan_ranking(where, row)
        else:
            yield scan_row(where, row, Preference, {})


def scan_ranking(where: str, row: Mapping[str, Any]) -> Iterator[Scanned]:
    """The pairs of a ranked row: every answer is better than each that stands, or scores, below it."""
    name = "ranked" if "ranked" in row else "completions"
    answers = row[name]
    if not isinstance(answers, list) or len(answers) < 2:
        yield Scanned(where, None, f"{name}: expected a list of two answers or more")
        return
    scores = list(range(len(answers), 0, -1)) if name == "ranked" else row.get("scores")
    if not isinstance(scores, list) or len(scores) != len(answers) or not all(map(is_number, scores)):
        yield Scanned(where, None, f"scores: expected {len(answers)} numbers, one for each completion")
        return
    used = {"ranked"} if name == "ranked" else {"completions", "scores"}
    rest = {key: value for key, value in row.items() if key not in used}
    order = sorted(range(len(answers)), key=lambda n: -scores[n])
    pairs = [(i, j) for i, j in combinations(order, 2) if scores[i] > scores[j]]
    if not pairs:
        yield Scanned(where, None, "scores: all the same", "equal_scores")
    for i, j in pairs:
        yield scan_row(where, {**rest, "chosen": answers[i], "rejected": answers[j]}, Preference, {})


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
