"""Token shards on disk: flat arrays of ids behind a header that says what they are.

A split is one or more files `train-00000.bin`, `train-00001.bin`, …; together they are one long sequence of ids in
which each document ends with the tokenizer's eos. Ids take two bytes where the vocabulary allows it, else four.
`tokens.json` lists the files of every split, so that a missing one is noticed.
"""

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from llmcore.config import Config, first_problem
from llmcore.errors import ArtifactError, ConfigError
from llmcore.storage import read_regular
from llmcore.tokenizer import Tokenizer

MAGIC = b"LLMTOKEN"
VERSION = 1
HEADER = struct.Struct("<8sIIQQQQ32s32s")
DATA_OFFSET = 256  # the header is padded, so that the ids begin at an aligned address
SHARD_TOKENS = 2**26
INDEX_FILE = "tokens.json"
INDEX_LIMIT = 16 * 2**20
CHUNK_BYTES = 2**22

Ids = np.ndarray[tuple[int], np.dtype[np.int64]]
IdArray = np.ndarray[Any, np.dtype[np.integer[Any]]]
Windows = np.ndarray[tuple[int, int], np.dtype[np.int64]]


class Split(Config):
    """What `tokens.json` says of one split."""

    files: tuple[str, ...]
    """The split's shards, in order."""
    tokens: int
    """Ids in all shards, document separators included."""
    documents: int
    """How many documents they hold."""
    bytes: int
    """Bytes of text they stand for: what bits per byte divides by."""


class TokensIndex(Config):
    """The content of `tokens.json`."""

    schema_version: int = VERSION
    """Of the shards and of this file."""
    vocab_size: int
    """Every id is below it."""
    tokenizer_sha256: str
    """The tokenizer that made the ids."""
    splits: dict[str, Split]
    """train, valid, …"""


class Header(NamedTuple):
    """The facts at the beginning of a shard."""

    id_bytes: int
    vocab_size: int
    tokens: int
    documents: int
    text_bytes: int
    tokenizer_sha256: str
    data_sha256: str


class ShardWriter:
    """Appends documents to a split's shards in a folder; `close` completes the headers."""

    def __init__(
        self, folder: Path | str, split: str, tokenizer: Tokenizer, *, shard_tokens: int = SHARD_TOKENS
    ) -> None:
        self.folder, self.split, self.tokenizer = Path(folder), split, tokenizer
        self.shard_tokens = shard_tokens
        self.dtype = np.dtype("<u2") if tokenizer.vocab_size <= 2**16 else np.dtype("<u4")
        self.entries: list[tuple[str, Header]] = []
        self._file: IO[bytes] | None = None
        self._begin()

    def add(
        self,
        document_ids: Sequence[int] | IdArray,
        *,
        text_bytes: int | None = None,
    ) -> None:
        """Append a document and the eos that ends it; `text_bytes` where the ids do not tell the text's size."""
        ids = np.asarray(document_ids, dtype=np.int64)
        outside = ids[(ids < 0) | (ids >= self.tokenizer.vocab_size)]
        assert not len(outside), f"id {outside[0]} is outside the vocabulary of {self.tokenizer.vocab_size}"
        self._documents += 1
        self._text_bytes += int(self.tokenizer.byte_lengths[ids].sum()) if text_bytes is None else text_bytes
        rest: IdArray = np.append(ids, self.tokenizer.eos_id).astype(self.dtype)
        while len(rest):
            room = self.shard_tokens - self._tokens
            self._write(rest[:room])
            rest = rest[room:]
            if self._tokens == self.shard_tokens and len(rest):
                self._end()
                self._begin()

    def close(self) -> Split:
        """Write the last header and say what the split holds."""
        self._end()
        headers = [header for _, header in self.entries]
        return Split(
            files=tuple(name for name, _ in self.entries),
            tokens=sum(header.tokens for header in headers),
            documents=sum(header.documents for header in headers),
            bytes=sum(header.text_bytes for header in headers),
        )

    def _begin(self) -> None:
        name = f"{self.split}-{len(self.entries):05d}.bin"
        self._name, self._tokens, self._documents, self._text_bytes = name, 0, 0, 0
        self._digest = hashlib.sha256()
        self._file = (self.folder / name).open("xb")
        self._file.write(b"\0" * DATA_OFFSET)

    def _write(self, ids: IdArray) -> None:
        assert self._file is not None, f"{self._name} is closed"
        data = ids.tobytes()
        self._file.write(data)
        self._digest.update(data)
        self._tokens += len(ids)

    def _end(self) -> None:
        assert self._file is not None, f"{self._name} is closed"
        header = Header(
            id_bytes=self.dtype.itemsize,
            vocab_size=self.tokenizer.vocab_size,
            tokens=self._tokens,
            documents=self._documents,
            text_bytes=self._text_bytes,
            tokenizer_sha256=self.tokenizer.sha256,
            data_sha256=self._digest.hexdigest(),
        )
        self._file.seek(0)
        self._file.write(pack_header(header))
        self._file.close()
        self._file = None
        self.entries.append((self._name, header))


def write_index(folder: Path | str, tokenizer: Tokenizer, splits: Mapping[str, Split]) -> list[str]:
    """Write `tokens.json`, and say which files a tokens artifact now has (without the tokenizer's)."""
    index = TokensIndex(vocab_size=tokenizer.vocab_size, tokenizer_sha256=tokenizer.sha256, splits=dict(splits))
    text = json.dumps(index.model_dump(mode="json"), indent=1) + "\n"
    (Path(folder) / INDEX_FILE).write_text(text, encoding="utf-8")
    return [INDEX_FILE, *(name for split in splits.values() for name in split.files)]


class TokenShards:
    """One split of a tokens folder as a single memory-mapped sequence of ids."""

    def __init__(
        self, folder: Path | str, split: str, *, tokenizer: Tokenizer | None = None, verify: bool = True
    ) -> None:
        """Open and check the split; `verify=False` leaves out reading every id (checksum and range)."""
        folder = Path(folder)
        index = read_index(folder)
        if split not in index.splits:
            known = ", ".join(index.splits)
            raise ConfigError(
                f"{folder / INDEX_FILE} has no split {split!r} (it has {known})", hint="give one of these"
            )
        entry = index.splits[split]
        self.vocab_size = index.vocab_size
        self.tokenizer_sha256 = index.tokenizer_sha256
        self.documents = entry.documents
        self.bytes = entry.bytes
        if tokenizer is not None:
            check_tokenizer(folder, index, tokenizer)
        headers = [read_header(folder / name) for name in entry.files]
        check_totals(folder / INDEX_FILE, entry, headers)
        self._shards = [
            open_shard(folder / name, header, index, verify=verify)
            for name, header in zip(entry.files, headers, strict=True)
        ]
        self._ends = np.cumsum([len(shard) for shard in self._shards])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, start: int, count: int) -> Ids:
        """`count` ids from position `start` on. (count,)"""
        assert start >= 0 and start + count <= len(self), f"{start}+{count} is outside {len(self)} tokens"
        number = int(np.searchsorted(self._ends, start, side="right"))
        begin = start - int(self._ends[number] - len(self._shards[number])) if number < len(self._shards) else 0
        parts = []
        while count > 0:
            part = self._shards[number][begin : begin + count]
            parts.append(part)
            count, number, begin = count - len(part), number + 1, 0
        joined = parts[0] if len(parts) == 1 else np.concatenate(parts or [np.empty(0, np.int64)])
        return joined.astype(np.int64)

    def windows(self, starts: IdArray, length: int) -> Windows:
        """`length` ids from each of the starts on. (B,) -> (B, length)"""
        rows = np.empty((len(starts), length), dtype=np.int64)
        for row, start in enumerate(starts.tolist()):
            rows[row] = self.read(start, length)
        return rows


def read_index(folder: Path) -> TokensIndex:
    """The content of `tokens.json`, checked."""
    path = folder / INDEX_FILE
    if not path.is_file():
        raise ArtifactError(
            f"{folder} holds no token shards ({INDEX_FILE} is missing)", hint="make them with llmdata tokens"
        )
    try:
        index = TokensIndex.model_validate_json(read_regular(path, limit=INDEX_LIMIT))
    except ValueError as error:
        raise broken(path, first_problem(error)) from None
    if index.schema_version != VERSION:
        raise broken(path, f"schema version {index.schema_version} is not {VERSION}")
    for name in (name for split in index.splits.values() for name in split.files):
        if Path(name).name != name:
            raise broken(path, f"{name!r} is not a file name")
    if not all(split.files for split in index.splits.values()):
        raise broken(path, "a split has no file")
    return index


def check_tokenizer(folder: Path, index: TokensIndex, tokenizer: Tokenizer) -> None:
    """Refuse ids that another tokenizer made, also one of the same size."""
    if tokenizer.sha256 != index.tokenizer_sha256:
        raise ArtifactError(
            f"{folder} was made with another tokenizer than the one given: {INDEX_FILE} says "
            f"{index.tokenizer_sha256[:16]!r} with {index.vocab_size} ids, it is {tokenizer.sha256[:16]!r} with "
            f"{tokenizer.vocab_size}",
            hint="make the tokens again with llmdata tokens --tokenizer and the tokenizer you want",
        )


def check_totals(path: Path, entry: Split, headers: Sequence[Header]) -> None:
    """The index and the headers count the same."""
    counted = tuple(sum(column) for column in zip(*(header[2:5] for header in headers), strict=True))
    if counted != (entry.tokens, entry.documents, entry.bytes):
        stated = (entry.tokens, entry.documents, entry.bytes)
        shards = ", ".join(entry.files[:3])
        raise broken(path, f"it counts {stated} tokens, documents and bytes, {shards} {counted}: one of them is wrong")


def open_shard(path: Path, header: Header, index: TokensIndex, *, verify: bool) -> IdArray:
    """Map one shard after comparing its header, its size and (with `verify`) every id."""
    if (header.vocab_size, header.tokenizer_sha256) != (index.vocab_size, index.tokenizer_sha256):
        raise broken(path, "its vocabulary or tokenizer is not the one of tokens.json")
    size = path.stat().st_size
    expected = DATA_OFFSET + header.tokens * header.id_bytes
    if size != expected:
        raise broken(path, f"it has {size} bytes, its header says {expected}")
    if header.tokens == 0:
        return np.empty(0, dtype=np.int64)
    ids: IdArray = np.memmap(path, dtype=f"<u{header.id_bytes}", mode="r", offset=DATA_OFFSET, shape=(header.tokens,))
    if verify:
        verify_ids(path, header, ids)
    return ids


def read_header(path: Path) -> Header:
    """The header of a shard, every field within its bounds."""
    if not path.is_file():
        raise ArtifactError(
            f"{path}: no such shard, though {INDEX_FILE} names it", hint="make the tokens again with llmdata tokens"
        )
    with path.open("rb") as file:
        raw = file.read(DATA_OFFSET)
    if len(raw) < DATA_OFFSET:
        raise broken(path, f"it ends within the header, after {len(raw)} bytes")
    magic, version, *numbers, tokenizer_sha256, data_sha256 = HEADER.unpack_from(raw)
    if magic != MAGIC:
        raise broken(path, f"it begins with {magic!r}, not {MAGIC!r}")
    header = Header._make((*numbers, tokenizer_sha256.hex(), data_sha256.hex()))
    if version != VERSION or raw[HEADER.size :].strip(b"\0"):
        raise broken(path, f"shard version {version} is not {VERSION}")
    if header.id_bytes != (2 if header.vocab_size <= 2**16 else 4):
        raise broken(path, f"{header.id_bytes} bytes an id do not fit a vocabulary of {header.vocab_size}")
    return header


def pack_header(header: Header) -> bytes:
    packed = HEADER.pack(
        MAGIC, VERSION, *header[:5], bytes.fromhex(header.tokenizer_sha256), bytes.fromhex(header.data_sha256)
    )
    return packed.ljust(DATA_OFFSET, b"\0")


def verify_ids(path: Path, header: Header, ids: IdArray) -> None:
    """Compare the checksum and the largest id, piece by piece."""
    digest, largest = hashlib.sha256(), 0
    for start in range(0, len(ids), CHUNK_BYTES):
        chunk = ids[start : start + CHUNK_BYTES]
        digest.update(chunk.tobytes())
        largest = max(largest, int(chunk.max()))
    if digest.hexdigest() != header.data_sha256:
        raise broken(path, "its ids do not have the checksum of its header")
    if largest >= header.vocab_size:
        raise broken(path, f"it holds id {largest}, the vocabulary has {header.vocab_size}")


def broken(path: Path, reason: str) -> ArtifactError:
    return ArtifactError(f"{path}: damaged: {reason}", hint="make the tokens again with llmdata tokens")
