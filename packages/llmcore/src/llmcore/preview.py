"""What a model reads: a text or a conversation as tokens, shown one by one."""

from collections.abc import Sequence

from llmcore.chat import render_chat
from llmcore.errors import ConfigError, DataError
from llmcore.generate.text import printable
from llmcore.records import Message
from llmcore.tokenizer import Tokenizer


def text_tokens(text: str, tokenizer: Tokenizer) -> dict[str, object]:
    """The ids of a text, what each stands for, and how many bytes a token holds on average."""
    ids = tokenizer.encode(text)
    size = len(text.encode("utf-8", "surrogatepass"))
    return {
        "count": len(ids),
        "bytes": size,
        "bytes per token": round(size / len(ids), 3) if ids else 0.0,
        "ids": ids,
        "tokens": pieces(ids, tokenizer),
    }


def chat_tokens(messages: Sequence[Message], tokenizer: Tokenizer) -> dict[str, object]:
    """How a conversation is written for this model, ready for an answer unless it ends with one."""
    asks = messages[-1].role != "assistant"
    rendered = render_chat(messages, tokenizer, generation_prompt=asks)
    return {
        "format": tokenizer.special.chat,
        "count": len(rendered.ids),
        "text": tokenizer.decode(rendered.ids, skip_special=False),
        "stops at": [tokenizer.decode([token], skip_special=False) for token in sorted(tokenizer.stop_ids)],
        "ids": rendered.ids,
        "tokens": pieces(rendered.ids, tokenizer),
        "trained on": rendered.mask,
    }


def conversation(user: Sequence[str], assistant: Sequence[str], *, system: str = "") -> list[Message]:
    """Turns in order: the user begins, each answer follows its question, and the last may be missing."""
    if len(user) - len(assistant) not in (0, 1):
        raise ConfigError(
            f"{len(user)} --user and {len(assistant)} --assistant are no conversation",
            hint="give as many of both, or one --user more",
        )
    messages = [Message(role="system", content=system)] if system else []
    for number, said in enumerate(user):
        messages.append(Message(role="user", content=said))
        messages += [Message(role="assistant", content=answered) for answered in assistant[number : number + 1]]
    return messages


def ids_in(text: str, tokenizer: Tokenizer) -> list[int]:
    """The token ids in `72 105` or `[72, 105]`."""
    words = text.replace(",", " ").strip().strip("[]").split()
    for word in words:
        if not (word.isascii() and word.isdigit() and int(word) < tokenizer.vocab_size):
            raise DataError(f"{word!r} is no token id below {tokenizer.vocab_size}", hint="give ids such as '72 105'")
    return [int(word) for word in words]


def pieces(ids: Sequence[int], tokenizer: Tokenizer) -> list[str]:
    """The text of each token alone; bytes that are no whole character as `\\xe2`."""
    raw = [tokenizer.decode_bytes([token]) for token in ids]
    return [
        part.decode("utf-8", "backslashreplace") if part else tokenizer.decode([token], skip_special=False)
        for part, token in zip(raw, ids, strict=True)
    ]


def token_lines(shown: dict[str, object]) -> list[str]:
    """`  1234  'Hello'` for each token."""
    ids, tokens = shown["ids"], shown["tokens"]
    assert isinstance(ids, list) and isinstance(tokens, list)
    width = max((len(str(token)) for token in ids), default=0)
    return [f"{token:>{width}}  {quoted(text)}" for token, text in zip(ids, tokens, strict=True)]


def quoted(text: str) -> str:
    """As Python writes it, but for bytes, which are escaped already."""
    return repr(printable(text)).replace("\\\\x", "\\x")
