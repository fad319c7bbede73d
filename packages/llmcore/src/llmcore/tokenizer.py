"""Text to token ids and back: byte-level and BPE.

A tokenizer on disk is `tokenizer.json` and `special_tokens.json` (which control token plays which part). Text never
becomes a control token: `<|im_end|>` typed by a person is encoded as ordinary characters.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import ValidationError

from llmcore.config import Config
from llmcore.errors import ArtifactError, ConfigError, DataError
from llmcore.storage import read_regular, write_durably
from llmcore.tokenizer_document import (
    CONTROL_TOKENS,
    byte_level_document,
    is_byte_level,
    open_library,
    parse_document,
    piece_bytes,
    steps_of,
    train_document,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer as LibraryTokenizer

TOKENIZER_FILE = "tokenizer.json"
SPECIAL_TOKENS_FILE = "special_tokens.json"
FILE_LIMIT = 64 * 2**20  # the largest tokenizer.json in use (250,000 ids with merges) has about 30 MB


class SpecialTokens(Config):
    """Which control token plays which part; the strings themselves live in tokenizer.json."""

    bos: str | None = "<|endoftext|>"
    """Begins every conversation; none for families without one."""
    eos: str = "<|endoftext|>"
    """Separates documents."""
    pad: str = "<|pad|>"
    """Fills the right of short rows; never trained on."""
    end_of_turn: str = "<|im_end|>"
    """Ends each turn: what training targets and generation stops on."""
    chat: str = "chatml"
    """The chat format's name in `llmcore.chat_formats.FORMATS`."""


class Tokenizer:
    """Encodes text to ids and decodes ids to text; equal tokenizers have equal `sha256`."""

    def __init__(self, document: bytes, special: SpecialTokens | None = None) -> None:
        """Take the bytes of a tokenizer.json and the parts its control tokens play."""
        self.special = special or SpecialTokens()
        self._document = document
        self._parsed = parse_document(document)
        self._added = {str(t["content"]): int(t["id"]) for t in self._parsed.get("added_tokens") or ()}
        self._control = {int(t["id"]) for t in self._parsed.get("added_tokens") or () if t.get("special")}
        self._is_bytes = is_byte_level(self._parsed)
        vocabulary = self._added if self._is_bytes else self._library.get_vocab(with_added_tokens=True)
        self.vocab_size: int = max(vocabulary.values()) + 1
        self.bos_id: int | None = None if self.special.bos is None else self.token_id(self.special.bos)
        self.eos_id: int = self.token_id(self.special.eos)
        self.pad_id: int = self.token_id(self.special.pad)
        self.end_of_turn_id: int = self.token_id(self.special.end_of_turn)
        self.stop_ids: frozenset[int] = frozenset({self.eos_id, self.end_of_turn_id})
        self.sha256: str = hashlib.sha256(b"\0".join(self.files().values())).hexdigest()

    @classmethod
    def byte_level(cls) -> "Tokenizer":
        """Ids 0..255 are the bytes of UTF-8, then come the control tokens from 256 on."""
        return cls(byte_level_document())

    @classmethod
    def train_bpe(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Learn byte-pair merges from texts; control tokens take the last ids."""
        smallest = 256 + len(CONTROL_TOKENS)
        if vocab_size < smallest:
            raise ConfigError(
                f"vocab_size={vocab_size!r} is below {smallest} (256 bytes and {len(CONTROL_TOKENS)} control tokens)",
                hint=f"choose vocab_size >= {smallest}, or train no tokenizer to use bytes",
            )
        return cls(train_document(texts, vocab_size))

    @classmethod
    def load(cls, folder: Path | str) -> "Tokenizer":
        """Read the two files of a tokenizer from a folder (an artifact, a checkpoint, token shards)."""
        folder = Path(folder)
        document = read_file(folder / TOKENIZER_FILE)
        try:
            special = SpecialTokens.model_validate_json(read_file(folder / SPECIAL_TOKENS_FILE))
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in problem["loc"])
            raise ArtifactError(
                f"{folder / SPECIAL_TOKENS_FILE}: {where + ': ' if where else ''}{problem['msg']}",
                hint="make the tokenizer again with llmdata tokenizer",
            ) from None
        try:
            return cls(document, special)
        except ArtifactError as error:
            raise ArtifactError(f"{folder / TOKENIZER_FILE}: {error.message}", hint=error.hint) from None

    def save(self, folder: Path | str) -> list[str]:
        """Write both files durably and return their names."""
        for name, data in self.files().items():
            write_durably(Path(folder) / name, data)
        return list(self.files())

    def files(self) -> dict[str, bytes]:
        """The content of the files that make up this tokenizer, by name."""
        special = json.dumps(self.special.model_dump(), indent=1, ensure_ascii=False) + "\n"
        return {TOKENIZER_FILE: self._document, SPECIAL_TOKENS_FILE: special.encode()}

    def encode(self, text: str) -> list[int]:
        """Ids of a text; never a control token, whatever the text says."""
        data = utf8(text)
        if self._is_bytes:
            return list(data)
        ids: list[int] = self._library.encode(text, add_special_tokens=False).ids
        return ids

    def encode_part(self, text: str, *, after: Literal["nothing", "control", "text"]) -> list[int]:
        """Ids of a part of a longer text; it begins with the space that some tokenizers add only where the whole would.

        Llama 2 and its like put a space before a text, or before each text between control tokens.
        """
        spaced = self._begins_with_space
        if not text or after == "nothing" or spaced == "never" or (spaced == "always" and after == "control"):
            return self.encode(text)
        lead = self.encode("\n")
        whole = self.encode("\n" + text)
        return whole[len(lead) :] if whole[: len(lead)] == lead else self.encode(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The same as `encode` for each text, on all cores where there is work for them."""
        data = [utf8(text) for text in texts]
        if self._is_bytes:
            return [list(item) for item in data]
        encoded = self._library.encode_batch_fast(list(texts), add_special_tokens=False)
        return [item.ids for item in encoded]

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of ids; bytes that are no valid UTF-8 become the replacement character."""
        if self._is_lossless:
            return self._join(ids, self._pieces if skip_special else self._spelled_pieces).decode("utf-8", "replace")
        text: str = self._library.decode(list(ids), skip_special_tokens=skip_special)
        return text

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of ids, exact also in the middle of a character; control tokens give none."""
        return self._join(ids, self._pieces)

    def token_id(self, special: str) -> int:
        """The id of a control token."""
        if special not in self._added:
            raise ArtifactError(
                f"the tokenizer has no control token {special!r} (it has {', '.join(self._added) or 'none'})",
                hint="use the special_tokens.json that was written with this tokenizer.json",
            )
        return self._added[special]

    @cached_property
    def byte_lengths(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """How many bytes of text each id stands for; control tokens stand for none. (V,)"""
        return np.array([len(piece) for piece in self._pieces], dtype=np.int64)

    @cached_property
    def _library(self) -> "LibraryTokenizer":
        """The library's own tokenizer, told to read control tokens in text as text."""
        return open_library(self._document)

    @cached_property
    def _begins_with_space(self) -> Literal["never", "first", "always"]:
        """Whether a space is put before no text, the very first, or each between control tokens."""
        found = [step for name in ("normalizer", "pre_tokenizer") for step in steps_of(self._parsed.get(name))]
        for step in found:
            default = "always" if step.get("add_prefix_space") else "never"
            spaced = "always" if step.get("type") == "Prepend" else step.get("prepend_scheme", default)
            if spaced != "never":
                return "first" if spaced == "first" else "always"
        return "never"

    @cached_property
    def _is_lossless(self) -> bool:
        """Whether decoding is the concatenation of each id's bytes."""
        decoder = self._parsed.get("decoder") or {}
        return bool(decoder.get("type") == "ByteLevel")

    @cached_property
    def _pieces(self) -> list[bytes]:
        """The bytes of each id; control tokens have none."""
        if self._is_bytes:
            return [bytes([value]) for value in range(256)] + [b""] * (self.vocab_size - 256)
        pieces = [b""] * self.vocab_size
        for token, index in self._library.get_vocab(with_added_tokens=True).items():
            if index in self._control:
                continue
            pieces[index] = token.encode() if token in self._added else piece_bytes(token, self._is_lossless)
        return pieces

    @cached_property
    def _spelled_pieces(self) -> list[bytes]:
        """The bytes of each id, control tokens spelled out."""
        pieces = list(self._pieces)
        for token, index in self._added.items():
            pieces[index] = token.encode()
        return pieces

    def _join(self, ids: Iterable[int], pieces: list[bytes]) -> bytes:
        return b"".join([pieces[index] for index in ids])


def require_same_tokenizer(folder: Path | str, found: Tokenizer, wanted: Tokenizer, *, of: str, hint: str = "") -> None:
    """Refuse what `folder` holds if a token of its is not the same token of `wanted`, which is that `of` something."""
    if found.sha256 != wanted.sha256:
        raise ArtifactError(
            f"{folder} has another tokenizer than {of}: {found.sha256[:16]!r} and {wanted.sha256[:16]!r}",
            hint=hint or f"give one with the tokenizer of {of}, as what was trained from the same base has",
        )


def utf8(text: str) -> bytes:
    """The text's bytes; half of a surrogate pair is no text."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"text holds half of a surrogate pair, {text[error.start]!r} at character {error.start}",
            hint="write the text as valid UTF-8",
        ) from None


def read_file(path: Path) -> bytes:
    """A tokenizer's file, if it is a regular file of a reasonable size."""
    if not path.exists():
        raise ArtifactError(
            f"{path}: no such file",
            hint="give an artifact that has a tokenizer: a model, tokens, or what llmdata tokenizer wrote",
        )
    return read_regular(path, limit=FILE_LIMIT)
