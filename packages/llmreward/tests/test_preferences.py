import json
from pathlib import Path

import pytest

from llmcore.errors import DataError
from llmcore.rows import read_rows
from llmreward import preferences
from llmreward.preferences import load_held_out, load_preferences, scan_file


def written(path: Path, *rows: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def sides(path: Path) -> list[tuple[str, str]]:
    return [(record.chosen, record.rejected) for record in scan_file(path)[0]]


def test_a_ranking_stands_for_all_its_pairs(tmp_path: Path) -> None:
    path = written(
        tmp_path / "a.jsonl",
        {"prompt": "p", "ranked": ["a", "b", "c"]},
        {"prompt": "q", "chosen": "x", "rejected": "y"},
    )
    assert sides(path) == [("a", "b"), ("a", "c"), ("b", "c"), ("x", "y")]
    assert {record.prompt[0].content for record in scan_file(path)[0][:3]} == {"p"}


def test_scored_completions_are_ranked_and_equal_scores_say_nothing(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", {"prompt": "p", "completions": ["a", "b", "c"], "scores": [1, 3.5, 1]})
    assert sides(path) == [("b", "a"), ("b", "c")]
    records, unusable = scan_file(written(path, {"prompt": "p", "completions": ["a", "b"], "scores": [2, 2]}))
    assert records == [] and unusable == {"dropped_equal_scores": 1}


def test_equal_answers_in_a_ranking_are_counted(tmp_path: Path) -> None:
    records, unusable = scan_file(written(tmp_path / "a.jsonl", {"prompt": "p", "ranked": ["a", "a", "b"]}))
    assert len(records) == 2 and unusable == {"dropped_equal_answers": 1}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p", "ranked": ["a"]}, r"a.jsonl:1: ranked: expected a list of two answers or more"),
        ({"prompt": "p", "ranked": "ab"}, "ranked: expected a list"),
        ({"prompt": "p", "completions": ["a", "b"], "scores": [1]}, "scores: expected 2 numbers"),
        ({"prompt": "p", "completions": ["a", "b"], "scores": [1, "x"]}, "scores: expected 2 numbers"),
        ({"prompt": "p", "ranked": ["a", "b"], "who": "me"}, "who: unknown key"),
    ],
)
def test_a_wrong_ranking_is_named_by_line(tmp_path: Path, row: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        scan_file(written(tmp_path / "a.jsonl", row))


def test_a_folder_may_hold_rankings_and_must_not_share_prompts(tmp_path: Path) -> None:
    written(tmp_path / "train.jsonl", {"prompt": "p", "ranked": ["a", "b", "c"]})
    written(tmp_path / "valid.jsonl", {"prompt": "q", "ranked": ["a", "b"]})
    assert [len(split.records) for split in load_preferences(tmp_path)] == [3, 1]
    assert load_held_out(tmp_path) == load_preferences(tmp_path).valid
    written(tmp_path / "valid.jsonl", {"prompt": "p", "ranked": ["d", "e"]})
    with pytest.raises(DataError, match="1 prompts are in both"):
        load_preferences(tmp_path)


def test_both_splits_of_a_file_come_from_one_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"prompt": str(n), "chosen": "a", "rejected": "a" if n == 3 else "b"} for n in range(40)]
    path = written(tmp_path / "a.jsonl", *rows)
    opened: list[Path] = []
    monkeypatch.setattr(preferences, "read_rows", lambda path: opened.append(path) or read_rows(path))
    train, valid = load_preferences(path)
    assert opened == [path] and len(train.records) + len(valid.records) == 39 and valid.records
    assert train.unusable == valid.unusable == {"dropped_equal_answers": 1} and train.manifest == valid.manifest
