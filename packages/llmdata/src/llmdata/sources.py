"""Where text comes from: the standard library of this Python, files, folders, globs, and rows with a `text`.

A document is one file or one row. Files are found and hashed first, so that a command knows its inputs before it reads
them; documents are then read one after the other. Newlines become `\\n`, and a byte order mark is taken away.
"""

import glob
import gzip
import hashlib
import platform
import sysconfig
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from llmcore.errors import DataError
from llmcore.manifest import Manifest, file_entry
from llmcore.records import rows_error
from llmcore.rows import read_rows

TEXT_SUFFIXES = (".txt", ".text", ".md", ".rst", ".py", ".txt.gz")
ROW_SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz")
LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
FEW_DOCUMENTS = 10
PASSAGES = 100
LARGEST_PASSAGE = 2**16  # characters
TEXT_LIMIT = 2**30


class SourceFile(NamedTuple):
    """A file to read and the name it has in the manifest."""

    path: Path
    name: str


class Source(NamedTuple):
    """The files of an input, described as a parent."""

    files: tuple[SourceFile, ...]
    manifest: Manifest
    optional: bool
    """Whether a file that is not UTF-8 is dropped and counted rather than an error."""


class Document(NamedTuple):
    """A piece of text that stands for itself."""

    name: str
    text: str

    @property
    def digest(self) -> str:
        """What decides on which side of the split it falls: equal texts fall on one side."""
        return hashlib.sha256(self.text.strip().encode("utf-8", "surrogatepass")).hexdigest()


def open_source(paths: Sequence[str]) -> Source:
    """The files that paths name; no path at all names the standard library."""
    if not paths:
        return standard_library()
    files = find_files(paths, TEXT_SUFFIXES + ROW_SUFFIXES)
    manifest = Manifest(kind="file", made_by="", files={file.name: file_entry(file.path) for file in files})
    return Source(files, manifest, optional=False)


def standard_library() -> Source:
    """The `.py` files of this Python's standard library, without its tests and what a machine wrote."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = tuple(
        SourceFile(path, path.relative_to(root).as_posix())
        for path in sorted(root.rglob("*.py"))
        if not LEFT_OUT & set(path.relative_to(root).parts[:-1])
        and not path.name.startswith("_sysconfigdata")
        and not path.relative_to(root).parts[0].startswith("config-")
        and path.is_file()
    )
    manifest = Manifest(
        kind="stdlib",
        made_by="",
        config={"python": platform.python_version()},
        files={file.name: file_entry(file.path) for file in files},
    )
    return Source(files, manifest, optional=True)


def find_files(paths: Sequence[str], suffixes: Sequence[str]) -> tuple[SourceFile, ...]:
    """The files that names, folders and globs stand for, each once, in a fixed order."""
    found: dict[Path, str] = {}
    for given in paths:
        for path, name in expand(given, suffixes):
            unique, number = name, 2
            while unique in found.values() and path not in found:
                unique, number = f"{name}#{number}", number + 1
            found.setdefault(path, unique)
    return tuple(SourceFile(path, name) for path, name in found.items())


def expand(given: str, suffixes: Sequence[str]) -> list[tuple[Path, str]]:
    """(path, name) of the files behind one argument."""
    path = Path(given)
    if path.is_dir():
        inside = [
            item
            for item in sorted(path.rglob("*"))
            if item.name.endswith(tuple(suffixes))
            and item.is_file()
            and not any(part.startswith(".") for part in item.relative_to(path).parts)
        ]
        if not inside:
            raise DataError(f"{given!r} holds no file that ends in {', '.join(suffixes)}", hint="name the files")
        return [(item, item.relative_to(path).as_posix()) for item in inside]
    if path.is_file():
        return [(path, path.name)]
    if not path.exists() and any(character in given for character in "*?["):
        matches = [Path(match) for match in sorted(glob.glob(given, recursive=True))]  # noqa: PTH207 (any root)
        matches = [match for match in matches if match.is_file()]
        if matches:
            return [(match, match.name) for match in matches]
        raise DataError(f"{given!r} matches no file", hint="check the pattern")
    what = "not a regular file" if path.exists() else "no such file or folder"
    raise DataError(f"{given!r}: {what}", hint="give text files, folders, globs, .jsonl or .json")


def read_documents(
    source: Source, *, mapping: Mapping[str, str], separator: str, dropped: Counter[str]
) -> Iterator[Document]:
    """Each document in turn; of very few, each is cut into passages, so that some can be held out."""
    documents = (d for file in source.files for d in file_documents(file, source, mapping, separator, dropped))
    first = []
    for document in documents:
        first.append(document)
        if len(first) == FEW_DOCUMENTS:
            break
    if len(first) < FEW_DOCUMENTS:
        size = max(1, min(LARGEST_PASSAGE, sum(len(document.text) for document in first) // PASSAGES))
        yield from (passage for document in first for passage in cut(document, size))
        return
    yield from first
    yield from documents


def file_documents(
    file: SourceFile, source: Source, mapping: Mapping[str, str], separator: str, dropped: Counter[str]
) -> Iterator[Document]:
    """The documents of one file that are not empty."""
    try:
        texts = list(row_texts(file, mapping) if file.name.endswith(ROW_SUFFIXES) else [read_text(file.path)])
    except UndecodableError as error:
        if not source.optional:
            raise
        dropped["not_utf8"] += error.size
        return
    parts = [part for text in texts for part in (text.split(separator) if separator else [text])]
    for number, part in enumerate(parts):
        if part.strip():
            yield Document(f"{file.name}:{number}", part)


class UndecodableError(DataError):
    """A text file that is not UTF-8."""

    size = 0


def read_text(path: Path) -> str:
    """The text of a file, strictly UTF-8."""
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    try:
        with gzip.open(path, "rb") if zipped else path.open("rb") as file:
            data = file.read(TEXT_LIMIT + 1)
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read: {error}", hint="is the file complete?") from None
    if len(data) > TEXT_LIMIT:
        raise DataError(f"{path}: more than {TEXT_LIMIT:,} bytes of text in one file", hint="split it into several")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        problem = UndecodableError(f"{path}:{line}: not UTF-8 at byte {error.start}", hint="save the file as UTF-8")
        problem.size = len(data)
        raise problem from None
    return plain_newlines(text)


def plain_newlines(text: str) -> str:
    """The text with \\n for every end of a line."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def row_texts(file: SourceFile, mapping: Mapping[str, str]) -> Iterator[str]:
    """The `text` of each row."""
    key = mapping.get("text", "text")
    problems: list[str] = []
    rows = 0
    for where, row, problem in read_rows(file.path):
        rows += 1
        text = row.get(key)
        if not problem and not isinstance(text, str):
            found = ", ".join(list(row)[:12]) or "no keys"
            problem = f"{key}: " + ("expected text" if key in row else f"missing (found {found})")
        if problem:
            problems.append(f"{where}: {problem}")
        elif isinstance(text, str):
            yield plain_newlines(text)
    if problems:
        raise rows_error(file.path, problems, rows, fix="mend them, or say where the text is: --map text=KEY")


def cut(document: Document, size: int) -> Iterator[Document]:
    """Passages of about `size` characters that end at a blank line, else at a line, where there is one."""
    text, start = document.text, 0
    while start < len(text):
        end = start + size
        if end < len(text):
            for mark in ("\n\n", "\n", " "):
                found = text.find(mark, end, end + size)
                if found >= 0:
                    end = found + len(mark)
                    break
        passage = text[start:end]
        if passage.strip():
            yield Document(f"{document.name}@{start}", passage)
        start = end
