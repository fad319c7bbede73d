"""Rows of any common shape, or built-in problems, to a records artifact: train.jsonl and valid.jsonl."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from llmcore.errors import DataError
from llmcore.manifest import Manifest, file_entry
from llmcore.records import (
    Chat,
    Message,
    Preference,
    Prompt,
    prompt_hash,
    rows_error,
    scan_records,
    split_records,
    write_records,
)
from llmdata.artifact import Content, Made, make_artifact, refuse_losses
from llmdata.config import RecordsConfig, RecordsKind
from llmdata.expressions import Problem, draw_problems
from llmdata.preferences import wrong_answer
from llmdata.sources import ROW_SUFFIXES, SourceFile, find_files

Record = Chat | Preference | Prompt
KINDS: dict[RecordsKind, type[Record]] = {"chats": Chat, "preferences": Preference, "prompts": Prompt}


def make_records(config: RecordsConfig, out: Path) -> Made:
    """Convert rows, or write built-in expressions where no input is named, to `out`."""
    files = find_files(config.inputs.records, ROW_SUFFIXES) if config.inputs.records else ()
    entries = {file.name: file_entry(file.path) for file in files}
    parents = {"records": Manifest(kind="file", made_by="", files=entries)} if files else {}

    def write(folder: Path) -> Content:
        train, valid, counts = convert(files, config) if files else build(config)
        if not train or not valid:
            raise DataError(
                f"{len(train) + len(valid)} rows with one prompt leave nothing to train on or to hold out",
                hint="give rows with at least two different prompts",
            )
        write_records(folder / "train.jsonl", train)
        write_records(folder / "valid.jsonl", valid)
        counts = {"train": len(train), "valid": len(valid), **counts}
        return Content(["train.jsonl", "valid.jsonl"], counts)

    return make_artifact(out, write, kind=config.rows, made_by="llmdata records", config=config, parents=parents)


def convert(files: Sequence[SourceFile], config: RecordsConfig) -> tuple[list[Record], list[Record], dict[str, int]]:
    """Read every file, count what is dropped by reason, and split by prompt unless the files are splits."""
    dropped: Counter[str] = Counter()
    read = {file.name: read_file(file, config, dropped) for file in files}
    rows = [row for part in read.values() for row in part]
    refuse_losses(dropped, len(rows) + sum(dropped.values()), config.max_dropped, "rows")
    counts = {f"dropped_{name}": count for name, count in dropped.items()}
    if set(read) == {"train.jsonl", "valid.jsonl"}:
        valid = read["valid.jsonl"]
        held_out = {prompt_hash(row) for row in valid}
        train = [row for row in read["train.jsonl"] if prompt_hash(row) not in held_out]
        return train, valid, {**counts, "dropped_also_in_valid": len(read["train.jsonl"]) - len(train)}
    train, valid = split_records(cast(list[Any], rows), fraction=config.valid_fraction)
    return train, valid, counts


def read_file(file: SourceFile, config: RecordsConfig, dropped: Counter[str]) -> list[Record]:
    """The records of one file; rows that teach nothing are counted, malformed ones are an error."""
    rows: list[Record] = []
    problems: list[str] = []
    unusable = 0
    for scanned in scan_records(file.path, cast(Any, KINDS[config.rows]), mapping=config.map):
        if scanned.record is not None:
            rows.append(scanned.record)
        elif scanned.unusable:
            dropped[scanned.unusable] += 1
            unusable += 1
        else:
            problems.append(f"{scanned.where}: {scanned.problem}")
    if problems:
        fix = (
            f"mend them, or name the keys that matter: --map prompt=question,completion=answer; rows become "
            f"{config.rows}: --kind says otherwise"
        )
        raise rows_error(file.path, problems, len(rows) + len(problems) + unusable, fix=fix)
    return rows


def build(config: RecordsConfig) -> tuple[list[Record], list[Record], dict[str, int]]:
    """Built-in expressions as records of the wanted kind."""
    drawn = draw_problems(
        f"{config.seed}/{config.rows}",
        train=config.problems,
        valid=config.valid_problems,
        levels=config.levels,
        kinds=config.kinds,
    )
    train = [to_record(problem, config, slips=config.slips) for problem in drawn[0]]
    valid = [to_record(problem, config) for problem in drawn[1]]
    kinds = Counter(problem.kind for side in drawn for problem in side)
    return train, valid, {f"kind_{kind}": count for kind, count in sorted(kinds.items())}


def to_record(problem: Problem, config: RecordsConfig, *, slips: float = 0.0) -> Record:
    """One problem as a chat, a preference or a prompt; a share of the chats has a slip for an answer."""
    prompt = (Message(role="user", content=problem.prompt),)
    if config.rows == "prompts":
        return Prompt(prompt=prompt, answer=problem.answer, extra={"kind": problem.kind, "level": problem.level})
    seed = hashlib.sha256(f"{config.seed}/{problem.prompt}".encode()).hexdigest()
    if config.rows == "preferences":
        return Preference(prompt=prompt, chosen=problem.answer, rejected=wrong_answer(problem, seed))
    slipped = int(seed[:8], 16) < slips * 2**32
    answer = wrong_answer(problem, seed) if slipped else problem.answer
    return Chat(messages=(*prompt, Message(role="assistant", content=answer)))
