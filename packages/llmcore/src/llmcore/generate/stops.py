"""Stop strings: found in the bytes of a sequence, so that they may begin and end anywhere inside tokens."""

from collections.abc import Sequence

from llmcore.tokenizer import Tokenizer


class StopStrings:
    """Watches one sequence for texts that end it."""

    def __init__(self, tokenizer: Tokenizer, strings: Sequence[str]) -> None:
        self.tokenizer = tokenizer
        self.wanted = [text.encode() for text in strings]
        self.longest = max((len(data) for data in self.wanted), default=0)
        self.tail = b""

    def complete(self, token: int) -> bool:
        """Whether this next token completes one of the strings."""
        recent = self.tail + self.tokenizer.decode_bytes([token])
        self.tail = recent[-self.longest + 1 :] if self.longest > 1 else b""
        return any(data in recent for data in self.wanted)


def cut_at_stop(text: str, strings: Sequence[str]) -> str:
    """The text before the first stop string in it."""
    ends = [text.find(stop) for stop in strings]
    return text[: min((end for end in ends if end >= 0), default=len(text))]


def held_back(text: str, strings: Sequence[str]) -> int:
    """How many characters at the end of the text may be the beginning of a stop string."""
    lengths = (n for stop in strings for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n]))
    return max(lengths, default=0)
