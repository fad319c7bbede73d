"""Where text comes from: the standard library, files, folders, globs and rows."""

import gzip
import json
import platform
from collections import Counter
from pathlib import Path

import pytest

from llmcore.errors import DataError
from llmdata.sources import Document, Source, open_source, read_documents


def texts(source: Source, *, separator: str = "", mapping: dict[str, str] | None = None) -> list[str]:
    documents = read_documents(source, mapping=mapping or {}, separator=separator, dropped=Counter())
    return [document.text for document in documents]


def write_many(folder: Path, count: int = 12) -> None:
    for number in range(count):
        (folder / f"{number:02}.txt").write_text(f"document {number}\n")


def test_the_standard_library_is_ten_megabytes_without_its_tests() -> None:
    source = open_source([])
    names = [file.name for file in source.files]
    assert sum(entry.bytes for entry in source.manifest.files.values()) > 8e6
    assert "argparse.py" in names
    assert "json/decoder.py" in names
    parts = {part for name in names for part in name.split("/")[:-1]}
    assert not parts & {"test", "tests", "idle_test", "site-packages", "__pycache__"}
    assert not any("sysconfigdata" in name for name in names)
    assert source.manifest.config == {"python": platform.python_version()}
    assert all(len(entry.sha256) == 64 for entry in source.manifest.files.values())


def test_folders_files_and_globs_name_files_once(tmp_path: Path) -> None:
    write_many(tmp_path)
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "00.txt").write_text("inner")
    (tmp_path / ".hidden.txt").write_text("hidden")
    (tmp_path / "image.png").write_bytes(b"\x89PNG")
    source = open_source([str(tmp_path), str(tmp_path / "*.txt"), str(tmp_path / "00.txt")])
    assert len(source.files) == 13
    assert {"00.txt", "inner/00.txt"} <= source.manifest.files.keys()
    assert len(open_source([str(tmp_path / "0*.txt")]).files) == 10


def test_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.txt").write_text(name)
    source = open_source([str(tmp_path / "a" / "x.txt"), str(tmp_path / "b" / "x.txt")])
    assert list(source.manifest.files) == ["x.txt", "x.txt#2"]


def test_a_byte_order_mark_and_carriage_returns_go(tmp_path: Path) -> None:
    write_many(tmp_path)
    (tmp_path / "bom.txt").write_bytes("\ufeffone\r\ntwo\rthree".encode())
    (tmp_path / "zipped.txt.gz").write_bytes(gzip.compress(b"vier\r\n"))
    found = texts(open_source([str(tmp_path)]))
    assert "one\ntwo\nthree" in found
    assert "vier\n" in found


def test_rows_give_their_text(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": f"row {number}"}) + "\n" for number in range(12)))
    assert texts(open_source([str(path)]))[:2] == ["row 0", "row 1"]
    path.write_text("".join(json.dumps({"text": f"a\r\nb\rc {number}"}) + "\n" for number in range(12)))
    assert texts(open_source([str(path)]))[0] == "a\nb\nc 0"
    path.write_text(json.dumps([{"content": f"row {number}"} for number in range(12)]))
    assert texts(open_source([str(path)]), mapping={"text": "content"})[11] == "row 11"
    with pytest.raises(DataError, match=r"row 1: text: missing \(found content\)"):
        texts(open_source([str(path)]))


def test_few_documents_are_cut_at_blank_lines_and_nothing_is_lost(tmp_path: Path) -> None:
    text = "\n\n".join(f"Paragraph {number} of a play.\nIt has two lines." for number in range(400))
    (tmp_path / "play.txt").write_text(text)
    passages = texts(open_source([str(tmp_path / "play.txt")]))
    assert len(passages) > 50
    assert "".join(passages) == text
    assert all(passage.startswith("Paragraph") for passage in passages)


def test_a_separator_divides_a_file(tmp_path: Path) -> None:
    (tmp_path / "stories.txt").write_text("<|endoftext|>".join(f"story {number}\n" for number in range(20)))
    found = texts(open_source([str(tmp_path / "stories.txt")]), separator="<|endoftext|>")
    assert found == [f"story {number}\n" for number in range(20)]


def test_equal_texts_have_equal_digests() -> None:
    assert Document("a", "text\n").digest == Document("b", "text").digest
    assert Document("a", "text").digest != Document("a", "texts").digest


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.txt", "no such file or folder"),
        ("*.nothing", "matches no file"),
        ("empty", "holds no file"),
        ("bad.txt", r"bad\.txt:2: not UTF-8 at byte 4"),
        ("broken.txt.gz", "cannot be read"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.txt").write_bytes(b"one\n\xff")
    (tmp_path / "broken.txt.gz").write_bytes(gzip.compress(b"text" * 100)[:20])
    with pytest.raises(DataError, match=message):
        texts(open_source([str(tmp_path / name)]))
