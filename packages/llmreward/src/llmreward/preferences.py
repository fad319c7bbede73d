"""Preferences from an artifact, a folder or a plain file, with what the file's rows left out."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from llmcore.manifest import Manifest, describe_file
from llmcore.records import Preference, load_records, rows_error, scan_records, split_records


class Preferences(NamedTuple):
    """Records of one split, where they came from, and how many rows of the file say nothing, by reason."""

    records: list[Preference]
    manifest: Manifest
    unusable: Mapping[str, int]


def load_preferences(path: Path, split: Literal["train", "valid"]) -> Preferences:
    """One split; rows of a plain file that are well formed but say nothing (equal answers) are counted, not refused."""
    if path.is_dir():
        records, manifest = load_records(path, Preference, split)
        return Preferences(records, manifest, {})
    kept: list[Preference] = []
    problems: list[str] = []
    unusable: Counter[str] = Counter()
    for row in scan_records(path, Preference):
        if isinstance(row.record, Preference):
            kept.append(row.record)
        elif row.unusable:
            unusable[f"dropped_{row.unusable}"] += 1
        else:
            problems.append(f"{row.where}: {row.problem}")
    if problems:
        raise rows_error(path, problems, len(kept) + len(problems) + unusable.total())
    train, valid = split_records(kept)
    return Preferences(train if split == "train" else valid, describe_file(path), unusable)
