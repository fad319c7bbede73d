"""Rows and built-in problems to records artifacts."""

import json
from pathlib import Path
from typing import Any

import pytest

from llmcore.errors import DataError
from llmcore.records import Chat, Preference, Prompt, load_records, prompt_hash
from llmdata import builtin
from llmdata.config import RecordsConfig, RecordsInputs
from llmdata.convert import make_records


def put(path: Path, rows: list[Any]) -> RecordsInputs:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return RecordsInputs(records=(str(path),))


PAIRS = [{"prompt": f"q{number // 2}", "chosen": f"a{number}", "rejected": "b"} for number in range(400)]


def test_rows_become_an_artifact_split_by_prompt(tmp_path: Path) -> None:
    config = RecordsConfig(inputs=put(tmp_path / "x.jsonl", PAIRS), rows="preferences")
    manifest = make_records(config, tmp_path / "out").manifest
    sides = [load_records(tmp_path / "out", Preference, split)[0] for split in ("train", "valid")]
    assert not {prompt_hash(row) for row in sides[0]} & {prompt_hash(row) for row in sides[1]}
    assert [len(side) for side in sides] == [manifest.counts["train"], manifest.counts["valid"]]
    assert sum(map(len, sides)) == 400
    assert manifest.kind == "preferences"
    assert list(manifest.parents["records"].files) == ["x.jsonl"]


def test_dropped_rows_are_counted_and_too_many_refused(tmp_path: Path) -> None:
    tie = {"prompt": "tie", "chosen": "b", "rejected": "b"}
    config = RecordsConfig(inputs=put(tmp_path / "x.jsonl", [*PAIRS, *[tie] * 4]), rows="preferences")
    assert make_records(config, tmp_path / "out").manifest.counts["dropped_equal_answers"] == 4
    config = RecordsConfig(inputs=put(tmp_path / "x.jsonl", [*PAIRS, *[tie] * 5]), rows="preferences")
    with pytest.raises(DataError, match=r"5 of 405 rows would be dropped \(equal_answers 5\)"):
        make_records(config, tmp_path / "more")
    allowed = config.model_copy(update={"max_dropped": 0.02})
    assert make_records(allowed, tmp_path / "more").manifest.counts["dropped_equal_answers"] == 5


def test_malformed_rows_are_an_error_and_write_nothing(tmp_path: Path) -> None:
    config = RecordsConfig(inputs=put(tmp_path / "x.jsonl", [*PAIRS, {"prompt": "q"}]), rows="preferences")
    with pytest.raises(DataError, match=r"x\.jsonl:401: found the keys prompt"):
        make_records(config, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["x.jsonl"]


def test_a_folder_with_splits_keeps_them_and_takes_shared_prompts_from_train(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    put(folder / "train.jsonl", [{"prompt": f"q{number}", "completion": "a"} for number in range(10)])
    put(folder / "valid.jsonl", [{"prompt": f"q{number}", "completion": "a"} for number in range(8, 12)])
    config = RecordsConfig(inputs=RecordsInputs(records=(str(folder),)))
    counts = make_records(config, tmp_path / "out").manifest.counts
    assert counts == {"train": 8, "valid": 4, "dropped_also_in_valid": 2}


def test_one_prompt_cannot_be_split(tmp_path: Path) -> None:
    config = RecordsConfig(inputs=put(tmp_path / "x.jsonl", [{"prompt": "q", "completion": "a"}] * 3))
    with pytest.raises(DataError, match="one prompt"):
        make_records(config, tmp_path / "out")


def test_the_three_built_in_kinds_hold_out_the_same_problems(tmp_path: Path) -> None:
    sides: dict[str, set[str]] = {"train": set(), "valid": set()}
    made = {"chats": Chat, "preferences": Preference, "prompts": Prompt}
    for kind, record in made.items():
        config = RecordsConfig.model_validate({"rows": kind, "problems": 1200, "valid_problems": 120})
        assert make_records(config, tmp_path / kind).manifest.parents == {}
        for split in sides:
            rows, _ = load_records(tmp_path / kind, record, split)  # type: ignore[arg-type]
            sides[split] |= {prompt_hash(row) for row in rows}
    assert not sides["train"] & sides["valid"]
    prompts, _ = load_records(tmp_path / "prompts", Prompt, "train")
    assert set(prompts[0].extra) == {"kind", "level"}
    assert all(prompt.answer for prompt in prompts)


def test_built_in_artifacts_are_made_once(tmp_path: Path) -> None:
    out = tmp_path / "chats"
    assert builtin.chats(out) == out
    written = (out / "manifest.json").stat().st_mtime_ns
    assert builtin.chats(out) == out
    assert (out / "manifest.json").stat().st_mtime_ns == written
    assert len(load_records(out, Chat, "train")[0]) == 20_000


def test_slips_stand_in_some_answers_to_train_on_and_in_none_that_is_held_out(tmp_path: Path) -> None:
    sides = {}
    for slips in (0.0, 0.3):
        config = RecordsConfig(rows="chats", problems=1000, valid_problems=100, slips=slips)
        make_records(config, tmp_path / str(slips))
        sides[slips] = [load_records(tmp_path / str(slips), Chat, split)[0] for split in ("train", "valid")]
    right, slipped = sides[0.0], sides[0.3]
    assert [row.messages[0] for row in slipped[0]] == [row.messages[0] for row in right[0]]
    changed = sum(left != other for left, other in zip(slipped[0], right[0], strict=True))
    assert 250 < changed < 350 and slipped[1] == right[1]
