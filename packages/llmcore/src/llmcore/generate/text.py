"""Tokens to text while they arrive: half a character, and what may become a stop string, wait."""

import codecs
from collections.abc import Iterable, Iterator, Sequence

from llmcore.generate.stops import cut_at_stop, held_back
from llmcore.tokenizer import Tokenizer


def stream_text(tokens: Iterable[int], tokenizer: Tokenizer, *, stop: Sequence[str] = ()) -> Iterator[str]:
    """Pieces of valid text, which end before the first stop string; control tokens have no text.

    A character's bytes wait until they are complete; what can never be completed becomes the replacement character.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    waiting = ""
    for token in tokens:
        waiting += decoder.decode(tokenizer.decode_bytes([token]))
        whole = cut_at_stop(waiting, stop)
        if whole != waiting:
            yield from [whole] if whole else []
            return
        ready = len(waiting) - held_back(waiting, stop)
        if ready:
            yield waiting[:ready]
            waiting = waiting[ready:]
    rest = cut_at_stop(waiting + decoder.decode(b"", final=True), stop)
    yield from [rest] if rest else []


def printable(text: str) -> str:
    """The text without control characters, with which a model's output could steer the terminal."""
    return "".join(c for c in text if c in "\n\t" or not (ord(c) < 32 or 127 <= ord(c) < 160))
