"""Rows of conversations: Chat, Preference and Prompt, read from the shapes people have and written in one.

A records artifact is a folder with train.jsonl, valid.jsonl and manifest.json. Outside files, JSONL or one JSON array,
plain or gzipped, are read as they are; which of the common shapes a row has is seen from its keys.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Generic, Literal, NamedTuple, cast

from pydantic import JsonValue

from llmcore.config import Config
from llmcore.conversations import Chat, Message, Preference, Prompt, R
from llmcore.errors import DataError
from llmcore.manifest import Manifest, describe_file, verify_artifact
from llmcore.rows import read_rows
from llmcore.shapes import Scanned, scan_row
from llmcore.storage import write_durably

__all__ = [
    "Chat",
    "Message",
    "Preference",
    "Prompt",
    "Scanned",
    "Splits",
    "canonical",
    "is_artifact",
    "load_records",
    "load_splits",
    "prompt_hash",
    "read_records",
    "refuse_shared_prompts",
    "rows_error",
    "scan_records",
    "split_records",
    "write_records",
]

SHOWN_ERRORS = 20
VALID_FRACTION = 0.05
USE_LLMDATA = (
    "mend them, or use llmdata records: it drops and counts rows that teach nothing, and takes other keys by "
    "--map prompt=question,completion=answer"
)
KINDS: dict[type[Config], str] = {Chat: "chats", Preference: "preferences", Prompt: "prompts"}


def read_records(
    path: Path | str, kind: type[R], *, mapping: Mapping[str, str] | None = None, keep: Collection[str] = ()
) -> list[R]:
    """Every row of a file as `kind`; all mistakes are reported together, with file and line.

    The keys `keep` of a row go to the record's `extra`.
    """
    records: list[R] = []
    problems: list[str] = []
    for scanned in scan_records(path, kind, mapping=mapping, keep=keep):
        if scanned.record is None:
            problems.append(f"{scanned.where}: {scanned.problem}")
        else:
            records.append(cast(R, scanned.record))
    if problems:
        raise rows_error(path, problems, len(problems) + len(records))
    return records


def rows_error(path: Path | str, problems: Sequence[str], rows: int, *, fix: str = "") -> DataError:
    """One error for all bad rows: the first twenty, and how many there are."""
    more = len(problems) - SHOWN_ERRORS
    lines = [*problems[:SHOWN_ERRORS], *([f"… and {more} more"] if more > 0 else [])]
    return DataError(
        "\n".join([f"{len(problems)} of {rows} rows of {str(path)!r} cannot be used:", *lines]),
        hint=fix or USE_LLMDATA,
    )


def scan_records(
    path: Path | str, kind: type[R], *, mapping: Mapping[str, str] | None = None, keep: Collection[str] = ()
) -> Iterator[Scanned]:
    """Each row of a file, good or bad; only a file that cannot be read at all raises."""
    for where, row, problem in read_rows(Path(path)):
        if problem:
            yield Scanned(where, None, problem)
            continue
        kept = {key: row[key] for key in keep if key in row}
        rest = {key: value for key, value in row.items() if key not in kept} if kept else row
        scanned = scan_row(where, rest, kind, mapping or {})
        yield with_extra(scanned, kept) if kept else scanned


def with_extra(scanned: Scanned, kept: Mapping[str, JsonValue]) -> Scanned:
    """The same with more in its record's `extra`."""
    if not isinstance(scanned.record, Chat | Prompt):
        return scanned
    record = scanned.record.model_copy(update={"extra": {**scanned.record.extra, **kept}})
    return scanned._replace(record=record)


def write_records(path: Path | str, rows: Iterable[Chat | Preference | Prompt]) -> None:
    """Write rows as canonical JSONL, durably."""
    write_durably(Path(path), "".join(canonical(row) + "\n" for row in rows).encode())


def canonical(row: Chat | Preference | Prompt) -> str:
    """A row as one line of JSON, always spelled the same."""
    absent = {"margin"} if isinstance(row, Preference) and row.margin is None else set()
    absent |= {"extra"} if isinstance(row, Chat) and not row.extra else set()
    return json.dumps(row.model_dump(mode="json", exclude=absent), ensure_ascii=False, separators=(",", ":"))


class Splits(NamedTuple, Generic[R]):
    """Rows to train on, rows held out, and where they came from."""

    train: list[R]
    valid: list[R]
    manifest: Manifest
    """Of the artifact or the file; of a plain folder, that of its train.jsonl."""


def load_splits(path: Path | str, kind: type[R], *, keep: Collection[str] = ()) -> Splits[R]:
    """Both splits of a records artifact, of a folder with train.jsonl and valid.jsonl, or of a plain file, read once.

    Of a plain file, the split is decided by a hash of each row's prompt. Train and valid never share a prompt.
    """
    path = Path(path)
    if not path.is_dir():
        return Splits(*split_records(read_records(path, kind, keep=keep)), describe_file(path))
    manifest = verify_artifact(path, expect=KINDS[kind]) if is_artifact(path) else None
    train, valid = (read_records(path / f"{name}.jsonl", kind, keep=keep) for name in ("train", "valid"))
    if manifest is None:
        refuse_shared_prompts(path, train, valid)
    return Splits(train, valid, manifest or describe_file(path / "train.jsonl"))


def load_records(
    path: Path | str, kind: type[R], split: Literal["train", "valid"], *, keep: Collection[str] = ()
) -> tuple[list[R], Manifest]:
    """One split alone, and where it came from: of an artifact, the other file is not read."""
    path = Path(path)
    if is_artifact(path):
        manifest = verify_artifact(path, expect=KINDS[kind])
        return read_records(path / f"{split}.jsonl", kind, keep=keep), manifest
    splits = load_splits(path, kind, keep=keep)
    return (splits.train if split == "train" else splits.valid), splits.manifest


def is_artifact(path: Path) -> bool:
    """Whether a folder has a manifest, and is read as that says."""
    return (path / "manifest.json").exists()


def split_records(rows: Sequence[R], *, fraction: float = VALID_FRACTION) -> tuple[list[R], list[R]]:
    """(train, valid): rows with equal prompts fall on one side; with two or more prompts, neither side is empty."""
    hashes = [prompt_hash(row) for row in rows]
    distinct = sorted(set(hashes))
    chosen = {value for value in distinct if int(value[:16], 16) < fraction * 2**64}
    if len(distinct) >= 2 and len(chosen) in (0, len(distinct)):
        chosen = {distinct[0]}
    if len(distinct) < 2:
        chosen = set()
    train = [row for row, value in zip(rows, hashes, strict=True) if value not in chosen]
    valid = [row for row, value in zip(rows, hashes, strict=True) if value in chosen]
    return train, valid


def prompt_hash(row: Chat | Preference | Prompt) -> str:
    """A hash of what is asked: the turns up to the first answer."""
    turns = row.messages if isinstance(row, Chat) else row.prompt
    asked: list[list[str]] = []
    for turn in turns:
        if turn.role == "assistant":
            break
        asked.append([turn.role, turn.content.strip()])
    if not asked:
        asked = [[turn.role, turn.content.strip()] for turn in turns]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def refuse_shared_prompts(path: Path, train: Sequence[R], valid: Sequence[R]) -> None:
    shared = {prompt_hash(row) for row in train} & {prompt_hash(row) for row in valid}
    if shared:
        raise DataError(
            f"{path}: {len(shared)} prompts are in both train.jsonl and valid.jsonl",
            hint="remove them from one, or give a single file, which is split by prompt",
        )
