"""The commands as a person types them; none of them imports torch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from llmcore.records import Chat, Preference, Prompt, load_records
from llmcore.shards import TokenShards

DATA = next(
    (above / "shared" / "data" for above in Path(__file__).resolve().parents if (above / "shared" / "data").is_dir()),
    Path("nowhere"),
)
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the shared data is not here")

PROGRAM = """
import sys
from llmdata.cli import main
try:
    main()
finally:
    assert "torch" not in sys.modules, "torch was imported"
"""


def llmdata(folder: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, words)], cwd=folder, capture_output=True, text=True, check=False
    )


def ok(folder: Path, *words: str | Path) -> str:
    done = llmdata(folder, *words)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_help_answers_without_torch(tmp_path: Path) -> None:
    for words in (["--help"], ["records", "--help"]):
        assert "Usage" in ok(tmp_path, *words)


def test_the_standard_library_becomes_tokens_and_again_is_recognised(tmp_path: Path) -> None:
    assert "made in" in ok(tmp_path, "tokens")
    assert "is already there" in ok(tmp_path, "tokens", "--out", "runs/data/tokens")
    out = tmp_path / "runs" / "data" / "tokens"
    train, valid = TokenShards(out, "train"), TokenShards(out, "valid")
    assert len(train) > 8e6
    assert 0.04 < valid.bytes / (valid.bytes + train.bytes) < 0.07
    text = (out / "manifest.json").read_text()
    assert sys.prefix not in text
    assert str(tmp_path) not in text
    done = llmdata(tmp_path, "tokens", "valid_fraction=0.1")
    assert done.returncode == 2
    assert "holds another run" in done.stderr
    assert "choose another --out" in done.stderr


def test_a_tokenizer_is_learned_and_used(tmp_path: Path) -> None:
    for number in range(30):
        (tmp_path / f"{number}.txt").write_text(f"the stone {number} is the stone " * 20)
    ok(tmp_path, "tokenizer", ".", "--out", "runs/tok", "vocab_size=300")
    manifest = json.loads(ok(tmp_path, "tokens", "*.txt", "--tokenizer", "runs/tok", "--out", "runs/t", "--json"))
    assert manifest["parents"]["tokenizer"]["kind"] == "tokenizer"
    assert manifest["counts"]["train_tokens"] < manifest["counts"]["train_bytes"] / 2
    assert ok(tmp_path, "tokens", "*.txt", "--tokenizer", "runs/tok", "--out", "runs/t", "--quiet") == ""


def test_settings_files_name_inputs_and_options_override_them(tmp_path: Path) -> None:
    for name in ("a", "b"):
        rows = [{"prompt": f"{name}{number}", "completion": "x"} for number in range(50)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "my.toml").write_text('rows = "prompts"\nvalid_fraction = 0.2\n[inputs]\nrecords = ["a.jsonl"]\n')
    manifest = json.loads(ok(tmp_path, "records", "my.toml", "--out", "one", "--json"))
    assert (manifest["kind"], list(manifest["parents"]["records"]["files"])) == ("prompts", ["a.jsonl"])
    manifest = json.loads(ok(tmp_path, "records", "my.toml", "b.jsonl", "--kind", "chats", "--out", "two", "--json"))
    assert (manifest["kind"], list(manifest["parents"]["records"]["files"])) == ("chats", ["b.jsonl"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tokens", "nowhere/"], "no such file or folder"),
        (["tokens", "valid_fracton=0.1"], "did you mean 'valid_fraction'"),
        (["tokens", "--tokenizer", "nowhere"], "nowhere"),
        (["tokenizer", "vocab_size=10"], "vocab_size"),
        (["records", "--kind", "chat"], "chats"),
        (["records", "--map", "prompt"], "OURS=THEIRS"),
        (["records", "bad.jsonl"], "bad.jsonl:1"),
        (["records", "--bogus"], "bogus"),
    ],
)
def test_a_mistake_is_one_sentence_and_writes_nothing(tmp_path: Path, words: list[str], message: str) -> None:
    (tmp_path / "bad.jsonl").write_text('{"prompt": "q"}\n')
    done = llmdata(tmp_path, *words, "--out", "out")
    assert done.returncode == 2, done.stdout
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["bad.jsonl"]


@needs_data
def test_novels_with_marks_and_carriage_returns_become_tokens(tmp_path: Path) -> None:
    novels = DATA / "english_novels" / "large_50mb"
    chosen = [novels / name for name in ("Barclay_Rosary_1909.txt", "Anon_Clara_1864.txt")]
    ok(tmp_path, "tokens", *chosen, "--out", "out")
    shards = TokenShards(tmp_path / "out", "train")
    text = bytes(shards.read(0, len(shards)).clip(max=255).astype("u1"))
    assert b"\r" not in text
    assert b"\xef\xbb\xbf" not in text
    whole = sum(len(path.read_text("utf-8-sig").encode()) for path in chosen)
    assert whole - 100 <= shards.bytes + TokenShards(tmp_path / "out", "valid").bytes <= whole


@needs_data
@pytest.mark.parametrize(
    ("path", "kind", "mapping", "record", "least"),
    [
        ("gsm8k/train.jsonl", "chats", "prompt=question,completion=answer", Chat, 7000),
        ("gsm8k/train.jsonl", "prompts", "prompt=question,answer=answer", Prompt, 7000),
        ("hh_rlhf/harmless-base/test.head.jsonl.gz", "preferences", "", Preference, 1700),
        ("rasbt/instruction-data-with-preference.json", "preferences", "", Preference, 800),
        ("rasbt/instruction-data.json", "chats", "", Chat, 800),
        ("chat_fixtures/conversations.jsonl", "chats", "", Chat, 100),
        ("llamafactory_demo/dpo_en_demo.json", "preferences", "", Preference, 250),
    ],
)
def test_real_rows_are_converted(tmp_path: Path, path: str, kind: str, mapping: str, record: type, least: int) -> None:
    ok(tmp_path, "records", DATA / path, "--kind", kind, "--out", "out", *(["--map", mapping] if mapping else []))
    train, manifest = load_records(tmp_path / "out", record, "train")
    valid, _ = load_records(tmp_path / "out", record, "valid")
    assert len(train) >= least
    assert valid
    assert manifest.kind == kind


@pytest.mark.parametrize(
    ("name", "setting"), [("tokenizer", "vocab_size"), ("tokens", "separator"), ("records", "slips")]
)
def test_the_settings_of_each_command_are_shown(name: str, setting: str, tmp_path: Path) -> None:
    assert setting in json.loads(ok(tmp_path, "config", name, "show"))
    assert setting in json.loads(ok(tmp_path, "config", name, "schema"))["properties"]
    (tmp_path / "all.toml").write_text(ok(tmp_path, "config", name, "init"))
    assert ok(tmp_path, "config", name, "show", "all.toml") == ok(tmp_path, "config", name, "show")
    assert not (tmp_path / "runs").exists()
