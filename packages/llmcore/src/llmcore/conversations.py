"""Conversations and what is known about them: a chat, a preference between two answers, a prompt to answer."""

from typing import Annotated, Literal, TypeVar

from pydantic import Field, JsonValue

from llmcore.config import Config


class Message(Config):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    """Who speaks."""
    content: str
    """What is said."""


Messages = Annotated[tuple[Message, ...], Field(min_length=1)]


class Chat(Config):
    """A conversation to learn from: the assistant's turns are trained on."""

    messages: Messages
    """The turns, in order."""
    extra: dict[str, JsonValue] = {}
    """The row's other keys that were asked for, as a curriculum does."""


class Preference(Config):
    """Two answers to one prompt, of which one is better."""

    prompt: Messages
    """The conversation up to the answer."""
    chosen: str
    """The better answer."""
    rejected: str
    """The worse answer."""
    margin: float | None = None
    """By how much, where it is known."""


class Prompt(Config):
    """A prompt to answer, with what a reward function needs to check the answer."""

    prompt: Messages
    """The conversation up to the answer."""
    answer: str = ""
    """The right answer, where there is one."""
    extra: dict[str, JsonValue] = {}
    """The row's other keys, given to reward functions."""


R = TypeVar("R", Chat, Preference, Prompt)
