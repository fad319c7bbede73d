"""The artifacts that a stage without data asks for, through the entry-point group `llmcore.builtin_data`."""

from pathlib import Path

from llmdata.config import RecordsConfig, RecordsKind, TokensConfig
from llmdata.convert import make_records
from llmdata.tokenize import make_tokens


def tokens(out: Path) -> Path:
    """The standard library as bytes."""
    if not (out / "manifest.json").exists():
        make_tokens(TokensConfig(), out)
    return out


def chats(out: Path) -> Path:
    """Expressions and their values, as conversations."""
    return records(out, "chats")


def preferences(out: Path) -> Path:
    """Expressions with a right and a wrong value."""
    return records(out, "preferences")


def prompts(out: Path) -> Path:
    """Expressions with the value to check an answer against."""
    return records(out, "prompts")


def records(out: Path, kind: RecordsKind) -> Path:
    if not (out / "manifest.json").exists():
        make_records(RecordsConfig(rows=kind), out)
    return out
