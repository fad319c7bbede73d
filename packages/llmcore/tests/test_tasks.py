import json
from pathlib import Path
from typing import Any

import pytest

from llmcore.errors import DataError
from llmcore.evaluate.tasks import Item, Kind, Option, read_task

SHAPES: dict[str, tuple[dict[str, Any], Kind, Item]] = {
    "blimp": (
        {"sentence_good": "She ran.", "sentence_bad": "She runned.", "UID": "past"},
        "pair",
        Item((Option("", "She ran."), Option("", "She runned.")), 0, "past"),
    ),
    "lambada": (
        {"context": "I do not care about", "continuation": "signs"},
        "continuation",
        Item((Option("I do not care about", " signs"),), 0),
    ),
    "arithmetic": ({"context": "25-7=", "continuation": "-18"}, "continuation", Item((Option("25-7=", "-18"),), 0)),
    "text": ({"text": "all is well\n"}, "continuation", Item((Option("all is", " well"),), 0)),
    "query": (
        {"query": "He sat and", "choices": [", well, slept", "slept"], "gold": 1},
        "choice",
        Item((Option("He sat and", ", well, slept"), Option("He sat and", " slept")), 1, question="He sat and"),
    ),
    "question without its answer": (
        {"query": "Question: Why?\n", "choices": ["a", "b"], "gold": 0},
        "choice",
        Item((Option("Question: Why?\nAnswer:", " a"), Option("Question: Why?\nAnswer:", " b")), 0,
             question="Question: Why?\n"),
    ),
    "mmlu": (
        {"question": "Why?", "choices": ["a", "b"], "answer": "B", "subject": "reasons"},
        "choice",
        Item((Option("Question: Why?\nAnswer:", " a"), Option("Question: Why?\nAnswer:", " b")), 1, "reasons", "Why?"),
    ),
    "the choice itself": (
        {"question": "Why?", "choices": ["B", "A"], "answer": "A"},
        "choice",
        Item((Option("Question: Why?\nAnswer:", " B"), Option("Question: Why?\nAnswer:", " A")), 1, question="Why?"),
    ),
    "winograd": (
        {"context_options": ["So Jo", "So Al"], "continuation": "ran.", "gold": 1},
        "choice",
        Item((Option("So Jo", " ran."), Option("So Al", " ran.")), 1),
    ),
    "behaviour": (
        {"question": "You?", "answer_matching_behavior": " No", "answer_not_matching_behavior": " Yes"},
        "choice",
        Item((Option("Question: You?\nAnswer:", " No"), Option("Question: You?\nAnswer:", " Yes")), 0, question="You?"),
    ),
}  # fmt: skip


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_is_known_by_its_keys(name: str, tmp_path: Path) -> None:
    row, kind, item = SHAPES[name]
    task = read_task(write(tmp_path / "task.jsonl", row))
    assert (task.kind, task.items) == (kind, [item])


def test_each_line_of_a_text_file_is_a_passage(tmp_path: Path) -> None:
    (tmp_path / "lambada.txt").write_text("one two three\n\nfour five\n")
    task = read_task(tmp_path / "lambada.txt")
    assert [item.options[0] for item in task.items] == [Option("one two", " three"), Option("four", " five")]


def test_a_folder_is_one_task_and_its_files_are_the_sub_tasks(tmp_path: Path) -> None:
    row = {"text": "one two"}
    write(tmp_path / "b.jsonl", row)
    write(tmp_path / "a.jsonl", row, {**row, "category": "named"})
    (tmp_path / "notes.md").write_text("no task")
    assert [item.subtask for item in read_task(tmp_path).items] == ["a", "named", "b"]


def test_rows_that_cannot_be_used_are_named_by_line_with_what_is_wrong(tmp_path: Path) -> None:
    path = write(
        tmp_path / "bad.jsonl",
        {"question": "?", "answer": "x"},
        {"query": "?", "choices": ["a", "b"], "gold": 2},
        {"query": "?", "choices": ["a"], "gold": 0},
        {"text": "one"},
        {"sentence_good": "", "sentence_bad": "a"},
        {"query": "?", "choices": ["a", "b"], "gold": True},
    )
    with pytest.raises(DataError) as error:
        read_task(path)
    for line, words in enumerate(
        ("'answer', 'question'", "found 2", "two texts", "no last word", "found ''", "True"), 1
    ):
        assert any(f"bad.jsonl:{line}:" in said and words in said for said in str(error.value).splitlines()), line


def test_a_file_or_folder_of_several_kinds_is_refused(tmp_path: Path) -> None:
    pair, word = SHAPES["blimp"][0], SHAPES["text"][0]
    with pytest.raises(DataError, match="mixes pair items .*both.jsonl:1.* and continuation items .*both.jsonl:2"):
        read_task(write(tmp_path / "both.jsonl", pair, word))
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder" / "a.jsonl", pair)
    write(tmp_path / "folder" / "b.jsonl", word)
    with pytest.raises(DataError, match="mixes continuation and pair"):
        read_task(tmp_path / "folder")


def test_nothing_to_score_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    for path in (tmp_path / "empty.txt", tmp_path / "absent.jsonl"):
        with pytest.raises(DataError, match="empty|no such file"):
            read_task(path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="no task file"):
        read_task(tmp_path / "folder")
