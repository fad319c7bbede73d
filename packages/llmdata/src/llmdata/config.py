"""The settings of `llmdata tokenizer`, `tokens` and `records`."""

from typing import Literal

from pydantic import Field

from llmcore.config import Config

RecordsKind = Literal["chats", "preferences", "prompts"]


class TextInputs(Config):
    """Where text comes from; nothing of this is part of an artifact's identity, but the files' hashes are."""

    text: tuple[str, ...] = ()
    """Files, folders and globs of text; none: the standard library of this Python."""
    tokenizer: str | None = None
    """Folder of a tokenizer; none: bytes."""


class RecordsInputs(Config):
    """Where rows come from."""

    records: tuple[str, ...] = ()
    """Files and folders of JSONL or JSON, plain or .gz; none: built-in expressions."""


class TokenizerConfig(Config):
    """Settings of `llmdata tokenizer`."""

    inputs: TextInputs = TextInputs()
    """What to learn from."""
    vocab_size: int = Field(4096, ge=260, le=2**20)
    """Ids at most, the 256 bytes and four control tokens included."""
    map: dict[str, str] = {}
    """Where rows of JSONL keep their text, as text=content."""
    separator: str = ""
    """A string between the documents of one file."""


class TokensConfig(Config):
    """Settings of `llmdata tokens`."""

    inputs: TextInputs = TextInputs()
    """What to encode, and with which tokenizer."""
    valid_fraction: float = Field(0.05, gt=0, lt=1)
    """Share of the text, in whole documents, that is held out for validation."""
    max_dropped: float = Field(0.01, ge=0, le=1)
    """Largest share of the text that may be dropped before it is an error."""
    map: dict[str, str] = {}
    """Where rows of JSONL keep their text, as text=content."""
    separator: str = ""
    """A string between the documents of one file."""


class RecordsConfig(Config):
    """Settings of `llmdata records`."""

    inputs: RecordsInputs = RecordsInputs()
    """What to convert."""
    rows: RecordsKind = "chats"
    """What a row becomes."""
    map: dict[str, str] = {}
    """Our keys and theirs, as prompt=question,completion=answer; other keys are then left out."""
    valid_fraction: float = Field(0.05, gt=0, lt=1)
    """Share of the prompts that is held out for validation."""
    max_dropped: float = Field(0.01, ge=0, le=1)
    """Largest share of rows that may be dropped before it is an error."""
    problems: int = Field(20_000, ge=100)
    """Built-in expressions: distinct problems to train on."""
    valid_problems: int = Field(1_000, ge=10)
    """Built-in expressions: distinct problems held out."""
    levels: tuple[float, float, float] = (0.6, 0.3, 0.1)
    """Built-in expressions: shares of the three levels of difficulty."""
    kinds: tuple[str, ...] = ()
    """Built-in expressions: only these kinds, as kinds=["sorted","split"]; all twelve if none is named."""
    slips: float = Field(0.0, ge=0, lt=1)
    """Built-in chats: share of the answers to train on that are slips, as people's are; held-out ones stay right."""
    seed: int = 0
    """Built-in expressions: which problems are drawn; a held-out problem is held out under every seed."""
