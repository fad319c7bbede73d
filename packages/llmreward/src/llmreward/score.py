"""Rewards of conversations that a person gives."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import JsonValue

from llmcore.errors import DataError
from llmcore.records import Chat, Message, Preference, read_records
from llmcore.scoring import Scorer, scored_row


class Conversation(NamedTuple):
    """A prompt and one answer to it, and where it stands."""

    row: int
    side: str
    prompt: Sequence[Message]
    answer: str


def answers_to(prompt: str, answers: Sequence[str]) -> list[Conversation]:
    """Several answers to one prompt."""
    asked = [Message(role="user", content=prompt)]
    return [Conversation(number, "answer", asked, answer) for number, answer in enumerate(answers, 1)]


def conversations_in(path: Path) -> list[Conversation]:
    """Every conversation of a file of chats (up to the last answer), or both sides of a file of preferences."""
    try:
        chats = read_records(path, Chat)
    except DataError as problem:
        try:
            pairs = read_records(path, Preference)
        except DataError:
            raise problem from None
        return [
            Conversation(number, side, pair.prompt, answer)
            for number, pair in enumerate(pairs, 1)
            for side, answer in (("chosen", pair.chosen), ("rejected", pair.rejected))
        ]
    return [last_answer(number, chat) for number, chat in enumerate(chats, 1)]


def last_answer(number: int, chat: Chat) -> Conversation:
    """A chat up to the assistant's last turn."""
    last = max(i for i, message in enumerate(chat.messages) if message.role == "assistant")
    return Conversation(number, "answer", chat.messages[:last], chat.messages[last].content)


def score_conversations(scorer: Scorer, conversations: Sequence[Conversation]) -> Iterator[dict[str, JsonValue]]:
    """One line for each conversation, in the order given: normalised reward, raw score, and length in tokens."""
    rows = [scored_row(one.prompt, one.answer, scorer.tokenizer) for one in conversations]
    raw = scorer.raw(rows)
    rewards = raw * scorer.scale.gain + scorer.scale.bias
    for one, row, reward, score in zip(conversations, rows, rewards.tolist(), raw.tolist(), strict=True):
        yield {
            "row": one.row,
            "side": one.side,
            "reward": reward,
            "raw": score,
            "tokens": len(row),
            "answer": one.answer,
        }
