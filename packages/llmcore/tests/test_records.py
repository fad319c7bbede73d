"""Records: the shapes people have, one shape inside, and errors that name file and line."""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from llmcore import records
from llmcore.errors import ArtifactError, DataError
from llmcore.manifest import write_manifest
from llmcore.records import (
    Chat,
    Message,
    Preference,
    Prompt,
    load_records,
    load_splits,
    prompt_hash,
    read_records,
    scan_records,
    split_records,
    write_records,
)


def put(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def spoken(messages: tuple[Message, ...]) -> list[str]:
    return [f"{message.role[0]}:{message.content}" for message in messages]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        {"prompt": "q", "completion": "a"},
        {"prompt": "q", "response": "a"},
        {"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}]},
        {"instruction": "q", "output": "a"},
        {"instruction": "q", "input": "", "response": "a"},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"prompt": "\n\nHuman: q\n\nAssistant: a", "completion": "a"},
    ],
)
def test_every_shape_becomes_a_chat(row: dict[str, Any], tmp_path: Path) -> None:
    (chat,) = read_records(put(tmp_path / "x.jsonl", row), Chat)
    assert spoken(chat.messages)[:2] == ["u:q", "a:a"]


def test_instruction_and_input_are_one_turn_and_system_comes_first(tmp_path: Path) -> None:
    row = {"instruction": "Add.", "input": "1 2", "output": "3", "system": "Be exact."}
    (chat,) = read_records(put(tmp_path / "x.jsonl", row), Chat)
    assert spoken(chat.messages) == ["s:Be exact.", "u:Add.\n\n1 2", "a:3"]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": [{"role": "user", "content": "q"}], "chosen": "a", "rejected": "b"},
        {
            "chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
            "rejected": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "b"}],
        },
        {
            "prompt": "q",
            "chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
            "rejected": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "b"}],
        },
        {"instruction": "q", "input": "", "output": "a", "chosen": "a", "rejected": "b"},
        {
            "conversations": [{"from": "human", "value": "q"}],
            "chosen": {"from": "gpt", "value": "a"},
            "rejected": {"from": "gpt", "value": "b"},
        },
        {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
    ],
)
def test_every_shape_becomes_a_preference(row: dict[str, Any], tmp_path: Path) -> None:
    (pair,) = read_records(put(tmp_path / "x.jsonl", row), Preference)
    assert (spoken(pair.prompt), pair.chosen, pair.rejected) == (["u:q"], "a", "b")


def test_transcripts_share_all_but_the_last_answer(tmp_path: Path) -> None:
    start = "\n\nHuman: one\n\nAssistant: two\n\nHuman: three\n\nAssistant:"
    (pair,) = read_records(put(tmp_path / "x.jsonl", {"chosen": f"{start} a", "rejected": f"{start} b"}), Preference)
    assert spoken(pair.prompt) == ["u:one", "a:two", "u:three"]
    early = {"chosen": start + " a", "rejected": "\n\nHuman: one\n\nAssistant: else"}
    (scanned,) = scan_records(put(tmp_path / "y.jsonl", early), Preference)
    assert scanned.record is None
    assert scanned.unusable == "parts_early"


def test_prompts_keep_other_keys_for_rewards(tmp_path: Path) -> None:
    row = {"prompt": "q", "answer": 7, "tests": ["x"], "extra": {"level": 2}}
    (prompt,) = read_records(put(tmp_path / "x.jsonl", row), Prompt)
    assert (spoken(prompt.prompt), prompt.answer, prompt.extra) == (["u:q"], "7", {"tests": ["x"], "level": 2})


def test_other_keys_are_named_by_a_map(tmp_path: Path) -> None:
    path = put(tmp_path / "x.jsonl", {"question": "q", "answer": "a", "id": 1})
    (chat,) = read_records(path, Chat, mapping={"prompt": "question", "completion": "answer"})
    assert spoken(chat.messages) == ["u:q", "a:a"]
    (prompt,) = read_records(path, Prompt, mapping={"prompt": "question", "answer": "answer"})
    assert (prompt.answer, prompt.extra) == ("a", {"id": 1})
    with pytest.raises(DataError, match="q_: missing"):
        read_records(path, Chat, mapping={"prompt": "q_", "completion": "answer"})


def test_arrays_gzip_crlf_and_a_last_line_without_newline_are_read(tmp_path: Path) -> None:
    row = {"prompt": "q\r\n", "completion": "ä"}
    expected = read_records(put(tmp_path / "x.jsonl", row, row), Chat)
    array = tmp_path / "x.json"
    array.write_text(json.dumps([row, row], indent=2))
    lines = tmp_path / "crlf.jsonl"
    lines.write_bytes(json.dumps(row, ensure_ascii=False).encode() + b"\r\n" + json.dumps(row).encode())
    zipped = tmp_path / "x.jsonl.gz"
    zipped.write_bytes(gzip.compress(lines.read_bytes()))
    for path in (array, lines, zipped):
        assert read_records(path, Chat) == expected


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"\n \n", "empty"),
        (b"[]", "empty"),
        (b'\xef\xbb\xbf{"prompt":"q","completion":"a"}', "byte order mark"),
        (b'{"prompt":"\xff","completion":"a"}', r"x\.jsonl:1: not UTF-8 at byte 11"),
        (b'{"prompt":"q","completion":"a"}\n{"prompt"', r"x\.jsonl:2: not JSON"),
        (b'{"prompt":"q"}', r"x\.jsonl:1: found the keys prompt; expected messages"),
        (b'{"prompt":"q","completion":3}', r"x\.jsonl:1: completion: expected a list of messages, found int"),
        (b'{"prompt":"q","completion":"a","label":1}', "label: unknown key"),
        (b'{"messages":[]}', "messages: expected a list of messages, found nothing"),
        (b'{"messages":[{"role":"robot","content":"a"}]}', r"messages\.0\.role: 'robot' is none of"),
        (b'{"messages":[{"role":"user","text":"a"}]}', r"messages\.0\.content: missing"),
        (b'{"messages":[{"role":"user","content":"a"}]}', "no turn of the assistant"),
        (b"[1, 2]", "row 1: expected an object with keys, found int"),
        (b"3", r"x\.jsonl:1: expected an object"),
        (b'{"prompt":"\\ud800","completion":"a"}', "surrogate"),
        (b'{"prompt":NaN,"completion":"a"}', "NaN"),
        (b'{"a":' * 10**5, "not JSON"),
        (b"\x1f\x8b\x08\x00broken", "cannot be read"),
    ],
)
def test_bad_rows_are_named_by_file_line_and_field(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(data)
    with pytest.raises(DataError, match=message):
        read_records(path, Chat)


def test_twenty_errors_are_listed_and_all_are_counted(tmp_path: Path) -> None:
    rows = [{"prompt": "q"}] * 30 + [{"prompt": "q", "completion": "a"}] * 5
    with pytest.raises(DataError, match="30 of 35 rows") as caught:
        read_records(put(tmp_path / "x.jsonl", *rows), Chat)
    lines = str(caught.value).splitlines()
    assert sum("x.jsonl:" in line for line in lines) == 20
    assert "… and 10 more" in lines


def test_an_overlong_line_is_refused_before_it_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"prompt":"' + b"x" * (17 * 2**20), compresslevel=1))
    with pytest.raises(DataError, match="longer than"):
        read_records(path, Chat)


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("pipe", "dangling", "nowhere", "."):
        with pytest.raises(DataError, match=r"no such file|not a regular file"):
            read_records(tmp_path / name, Chat)


def test_written_records_come_back(tmp_path: Path) -> None:
    user = (Message(role="user", content="<|im_end|> ü\n\u2028"),)
    chats = [Chat(messages=(*user, Message(role="assistant", content="a")))]
    pairs = [
        Preference(prompt=user, chosen="a", rejected="b", margin=0.5),
        Preference(prompt=user, chosen="a", rejected=""),
    ]
    prompts = [Prompt(prompt=user, answer="a", extra={"level": [1, None]}), Prompt(prompt=user)]
    write_records(tmp_path / "x.jsonl", chats)
    assert read_records(tmp_path / "x.jsonl", Chat) == chats
    write_records(tmp_path / "x.jsonl", pairs)
    assert read_records(tmp_path / "x.jsonl", Preference) == pairs
    write_records(tmp_path / "x.jsonl", prompts)
    assert read_records(tmp_path / "x.jsonl", Prompt) == prompts


def chat_rows(count: int) -> list[dict[str, str]]:
    return [{"prompt": f"q{number // 2}", "completion": f"a{number}"} for number in range(count)]


def test_a_plain_file_is_split_by_prompt(tmp_path: Path) -> None:
    path = put(tmp_path / "x.jsonl", *chat_rows(2000))
    (train, manifest), (valid, same) = (load_records(path, Chat, split) for split in ("train", "valid"))
    assert not {prompt_hash(row) for row in train} & {prompt_hash(row) for row in valid}
    assert len(train) + len(valid) == 2000
    assert 60 <= len(valid) <= 140
    assert manifest.kind == "file"
    assert manifest.id == same.id
    assert load_records(put(tmp_path / "y.jsonl", *chat_rows(2000)[::-1]), Chat, "valid")[0] == valid[::-1]


def test_small_files_have_both_sides_and_one_prompt_has_one() -> None:
    def rows(*prompts: str) -> list[Prompt]:
        return [Prompt(prompt=(Message(role="user", content=prompt),)) for prompt in prompts]

    for count in (2, 3, 5):
        train, valid = split_records(rows(*map(str, range(count)), "0"))
        assert train
        assert valid
        assert not {prompt_hash(row) for row in train} & {prompt_hash(row) for row in valid}
    assert split_records(rows("q", "q"))[1] == []


def test_a_folder_brings_its_own_split_unless_prompts_are_shared(tmp_path: Path) -> None:
    put(tmp_path / "train.jsonl", {"prompt": "a", "completion": "1"}, {"prompt": "b", "completion": "2"})
    put(tmp_path / "valid.jsonl", {"prompt": "c", "completion": "3"})
    assert len(load_records(tmp_path, Chat, "train")[0]) == 2
    put(tmp_path / "valid.jsonl", {"prompt": "b ", "completion": "3"})
    with pytest.raises(DataError, match="1 prompts are in both"):
        load_records(tmp_path, Chat, "train")


@pytest.mark.parametrize("folder", [True, False])
def test_both_splits_come_from_one_read_of_each_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: bool
) -> None:
    rows = chat_rows(40)
    if folder:
        path = tmp_path
        put(tmp_path / "train.jsonl", *rows[:30])
        put(tmp_path / "valid.jsonl", *rows[30:])
    else:
        path = put(tmp_path / "x.jsonl", *rows)
    wanted = [load_records(path, Chat, split) for split in ("train", "valid")]
    opened: list[str] = []
    read = records.read_rows
    monkeypatch.setattr(records, "read_rows", lambda path: opened.append(path.name) or read(path))
    found = load_splits(path, Chat)
    assert opened == (["train.jsonl", "valid.jsonl"] if folder else ["x.jsonl"])
    assert [found.train, found.valid] == [some for some, _ in wanted] and found.manifest.id == wanted[0][1].id


def test_an_artifact_is_verified_and_its_kind_checked(tmp_path: Path) -> None:
    for split, prompt in (("train", "a"), ("valid", "b")):
        messages = (Message(role="user", content=prompt), Message(role="assistant", content="x"))
        write_records(tmp_path / f"{split}.jsonl", [Chat(messages=messages)])
    write_manifest(tmp_path, kind="chats", made_by="test", config={}, files=["train.jsonl", "valid.jsonl"])
    assert [side[0].messages[0].content for side in load_splits(tmp_path, Chat)[:2]] == ["a", "b"]
    rows, manifest = load_records(tmp_path, Chat, "valid")
    assert rows[0].messages[0].content == "b"
    assert manifest.kind == "chats"
    with pytest.raises(ArtifactError, match="preferences"):
        load_records(tmp_path, Preference, "train")
    path = tmp_path / "train.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"a"', b'"c"'))
    with pytest.raises(ArtifactError, match=r"train\.jsonl"):
        load_records(tmp_path, Chat, "train")


def test_questions_with_answers_are_conversations_and_labels_of_rows_are_no_mistake(tmp_path: Path) -> None:
    rows = [
        {"question": "1 + 1?", "answer": "2", "id": 7},
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "source": "forum"},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second = read_records(path, Chat)
    assert [m.content for m in first.messages] == ["1 + 1?", "2"] and first.extra == {}
    assert [m.content for m in second.messages] == ["q", "a"]


def test_keys_that_are_asked_for_stay_with_their_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "q", "completion": "a", "hardness": 3}) + "\n")
    (row,) = read_records(path, Chat, keep=["hardness"])
    assert row.extra == {"hardness": 3}
    write_records(path, [row])
    assert read_records(path, Chat) == [row]
    write_records(path, [row.model_copy(update={"extra": {}})])
    assert "extra" not in path.read_text()


def test_self_instruct_rows_have_one_instance(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    row = {"id": "1", "name": "n", "instruction": "Say", "instances": [{"input": "it", "output": "it!"}]}
    path.write_text(json.dumps(row) + "\n")
    assert [m.content for m in read_records(path, Chat)[0].messages] == ["Say\n\nit", "it!"]
    path.write_text(json.dumps({**row, "instances": [{"output": "a"}, {"output": "b"}]}) + "\n")
    with pytest.raises(DataError, match="rows.jsonl:1: instances: expected a list of one object"):
        read_records(path, Chat)
