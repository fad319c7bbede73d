"""Conversations to token ids and loss mask: the one place that renders a conversation.

Training and generation both come here, so that they agree on every id. A format is a Python function by name (no
templates from files); it yields pieces, and only a piece marked as control can become a control token.
"""

import difflib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from llmcore.errors import ConfigError
from llmcore.records import Message
from llmcore.tokenizer import SpecialTokens, Tokenizer


class Rendered(NamedTuple):
    """A conversation as ids; `mask[i]` says that token i is trained on."""

    ids: list[int]
    mask: list[bool]


class Piece(NamedTuple):
    """A part of a rendered conversation: one control token, or text that is encoded on its own."""

    text: str
    control: bool = False
    trained: bool = False


Format = Callable[[Sequence[Message], SpecialTokens, bool], Iterator[Piece]]


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
    for piece in form(messages, tokenizer.special, generation_prompt):
        ids = [tokenizer.token_id(piece.text)] if piece.control else tokenizer.encode(piece.text)
        rendered.ids.extend(ids)
        rendered.mask.extend([piece.trained] * len(ids))
    return rendered


def find_format(name: str) -> Format:
    """The chat format of a name."""
    if name not in FORMATS:
        near = difflib.get_close_matches(name, FORMATS, 1)
        advice = f" — did you mean {near[0]!r}?" if near else f" (known: {', '.join(FORMATS)})"
        raise ConfigError(f"unknown chat format {name!r}{advice}")
    return FORMATS[name]


def chatml(messages: Sequence[Message], special: SpecialTokens, generation_prompt: bool) -> Iterator[Piece]:
    """`<|im_start|>role⏎content<|im_end|>⏎` for each message."""
    start = Piece("<|im_start|>", control=True)
    for message in messages:
        yield start
        if message.role == "assistant":
            # The header stands alone, as it does before an answer that is still to be generated.
            yield Piece("assistant\n")
            yield Piece(message.content, trained=True)
            yield Piece(special.end_of_turn, control=True, trained=True)
        else:
            yield Piece(f"{message.role}\n{message.content}")
            yield Piece(special.end_of_turn, control=True)
        yield Piece("\n")
    if generation_prompt:
        yield start
        yield Piece("assistant\n")


def plain(messages: Sequence[Message], special: SpecialTokens, _generation_prompt: bool) -> Iterator[Piece]:
    """The bare contents, a newline after each: prompt and completion without any roles."""
    for message in messages:
        trained = message.role == "assistant"
        yield Piece(message.content, trained=trained)
        if trained:
            yield Piece(special.end_of_turn, control=True, trained=True)
        yield Piece("\n")


FORMATS: dict[str, Format] = {"chatml": chatml, "plain": plain}
