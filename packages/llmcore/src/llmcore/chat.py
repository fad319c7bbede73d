"""Conversations to token ids and loss mask: the one place that renders a conversation.

Training and generation both come here, so that they agree on every id. A format is a Python function by name (no
templates from files, see `llmcore.chat_formats`); only what it marks as control can become a control token.
"""

import difflib
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from llmcore.chat_formats import FORMATS, Format, Piece
from llmcore.errors import ConfigError
from llmcore.records import Message
from llmcore.tokenizer import Tokenizer


class Rendered(NamedTuple):
    """A conversation as ids; `mask[i]` says that token i is trained on."""

    ids: list[int]
    mask: list[bool]


def render_chat(messages: Sequence[Message], tokenizer: Tokenizer, *, generation_prompt: bool = False) -> Rendered:
    """Render messages in the tokenizer's chat format, ready for an answer if `generation_prompt`.

    Trained on are the assistant's words and the end-of-turn token after them, and nothing else. A prompt rendered for
    generation is a prefix of the same conversation rendered with its answer.
    """
    rendered = Rendered([], [])
    if tokenizer.bos_id is not None:
        rendered.ids.append(tokenizer.bos_id)
        rendered.mask.append(False)
    form = find_format(tokenizer.special.chat)
    after: Literal["nothing", "control", "text"] = "control" if rendered.ids else "nothing"
    for piece in join_texts(form(messages, tokenizer.special, generation_prompt)):
        if piece.control:
            ids = [tokenizer.token_id(piece.text)]
        else:
            ids = tokenizer.encode_part(piece.text, after=after)
        rendered.ids.extend(ids)
        rendered.mask.extend([piece.trained] * len(ids))
        after = "control" if piece.control else "text"
    return rendered


def join_texts(pieces: Iterator[Piece]) -> Iterator[Piece]:
    """The same with neighbouring texts made one, as tokens may reach across; never across the start of an answer."""
    held: Piece | None = None
    for piece in pieces:
        if held is not None and not piece.control and held.trained == piece.trained:
            held = held._replace(text=held.text + piece.text)
            continue
        if held is not None:
            yield held
        held = None if piece.control else piece
        if piece.control:
            yield piece
    if held is not None:
        yield held


def find_format(name: str) -> Format:
    """The chat format of a name."""
    if name not in FORMATS:
        near = difflib.get_close_matches(name, FORMATS, 1)
        advice = f" — did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"unknown chat format {name!r}{advice}", hint=f"choose one of {', '.join(FORMATS)}")
    return FORMATS[name]
