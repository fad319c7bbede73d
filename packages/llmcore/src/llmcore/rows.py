"""Rows of files: JSONL or one JSON array, plain or gzipped, read strictly, each with where it stands."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from llmcore.errors import DataError

LINE_LIMIT = 16 * 2**20
ARRAY_LIMIT = 64 * 2**20
PIECE = 2**20
Row = dict[str, Any]


def read_rows(path: Path) -> Iterator[tuple[str, Row, str]]:
    """(where, row, problem) for each row of a JSONL file or JSON array, plain or gzipped."""
    if not path.is_file():
        what = "not a regular file" if path.exists() else "no such file"
        raise DataError(f"{str(path)!r}: {what}", hint="give a .jsonl or .json file, plain or .gz")
    empty = True
    try:
        with open_plain_or_gzip(path) as file:
            first = file.peek(64)[:64] if hasattr(file, "peek") else b""
            if first.startswith(b"\xef\xbb\xbf"):
                raise DataError(
                    f"{path}:1: the file begins with a byte order mark", hint="save it as UTF-8 without a BOM"
                )
            rows = array_rows(path, file) if first.lstrip()[:1] == b"[" else line_rows(path, file)
            for item in rows:
                empty = False
                yield item
    except (EOFError, gzip.BadGzipFile, OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}", hint="is the file complete?") from None
    if empty:
        raise DataError(f"{path}: the file is empty", hint="give a file with at least one row")


def open_plain_or_gzip(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    return cast(IO[bytes], gzip.open(path, "rb")) if zipped else path.open("rb")


def line_rows(path: Path, file: IO[bytes]) -> Iterator[tuple[str, Row, str]]:
    """The rows of JSONL; blank lines are none."""
    number = 0
    while line := file.readline(LINE_LIMIT + 2):
        number += 1
        where = f"{path}:{number}"
        if len(line) > LINE_LIMIT + 1:
            raise DataError(f"{where}: the line is longer than {LINE_LIMIT} bytes", hint="one object a line")
        if line.strip():
            yield where, *parse_row(line)


def array_rows(path: Path, file: IO[bytes]) -> Iterator[tuple[str, Row, str]]:
    """The rows of one JSON array; a file of lines that are arrays is not one, and its rows say so."""
    data = read_whole(path, file)
    values, problem = parse_json(data)
    if problem:
        raise DataError(f"{path}: {problem}", hint="give one JSON array of objects, or one object a line")
    for number, value in enumerate(cast(list[object], values), 1):
        where = f"{path}: row {number}"
        yield (where, value, "") if isinstance(value, dict) else (where, {}, not_an_object(value))


def read_whole(path: Path, file: IO[bytes]) -> bytearray:
    """All of a file, in pieces, so that one that unpacks to more than the limit is refused in little memory."""
    data = bytearray()
    if path.stat().st_size <= ARRAY_LIMIT:
        while piece := file.read(PIECE):
            data += piece
            if len(data) > ARRAY_LIMIT:
                break
        else:
            return data
    raise DataError(f"{path}: a JSON array of more than {ARRAY_LIMIT:,} bytes", hint="write it as JSONL: jq -c .[]")


def parse_row(line: bytes) -> tuple[Row, str]:
    value, problem = parse_json(line)
    if not problem and not isinstance(value, dict):
        problem = not_an_object(value)
    return (cast(Row, value), "") if not problem else ({}, problem)


def not_an_object(value: object) -> str:
    return f"expected an object with keys, found {type(value).__name__}"


def parse_json(data: bytes | bytearray) -> tuple[object, str]:
    """(value, what is wrong with it): strict UTF-8, no NaN, no halves of surrogate pairs."""
    try:
        text = data.decode("utf-8")
        value = json.loads(text, parse_constant=refuse_constant)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        return None, f"not UTF-8 at byte {error.start}"
    except UnicodeEncodeError:
        return None, "holds half of a surrogate pair"
    except json.JSONDecodeError as error:
        return None, f"not JSON: {error.msg} at character {error.pos}"
    except (ValueError, RecursionError) as error:
        return None, f"not JSON: {error}"
    return value, ""


def refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")
