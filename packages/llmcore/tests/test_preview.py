"""Texts and conversations as the model reads them."""

import pytest

from llmcore.chat import render_chat
from llmcore.errors import ConfigError, DataError
from llmcore.preview import chat_tokens, conversation, ids_in, text_tokens, token_lines
from llmcore.records import Message
from llmcore.tokenizer import Tokenizer

BYTES = Tokenizer.byte_level()


def test_a_text_token_by_token() -> None:
    shown = text_tokens("aé\n", BYTES)
    assert shown["ids"] == [97, 195, 169, 10]
    assert shown["tokens"] == ["a", "\\xc3", "\\xa9", "\n"]
    assert (shown["count"], shown["bytes"], shown["bytes per token"]) == (4, 4, 1.0)
    assert token_lines(shown) == [" 97  'a'", "195  '\\xc3'", "169  '\\xa9'", " 10  '\\n'"]
    assert text_tokens("", BYTES)["count"] == 0


def test_tokens_of_a_learned_tokenizer_say_the_text_again() -> None:
    tokenizer = Tokenizer.train_bpe(["the cat sat on the mat " * 50], 300)
    text = "the cat on the mat"
    shown = text_tokens(text, tokenizer)
    assert "".join(shown["tokens"]) == text  # type: ignore[arg-type]
    assert len(shown["ids"]) < len(text)  # type: ignore[arg-type]


def test_a_conversation_is_shown_as_it_is_rendered() -> None:
    messages = conversation(["hi", "and?"], ["hello"], system="be kind")
    assert [message.role for message in messages] == ["system", "user", "assistant", "user"]
    shown = chat_tokens(messages, BYTES)
    assert shown["ids"] == render_chat(messages, BYTES, generation_prompt=True).ids
    assert str(shown["text"]).endswith("<|im_start|>assistant\n") and "<|im_end|>" in shown["stops at"]  # type: ignore[operator]
    answered = chat_tokens(conversation(["hi"], ["hello"]), BYTES)
    rendered = render_chat([Message(role="user", content="hi"), Message(role="assistant", content="hello")], BYTES)
    assert (answered["ids"], answered["trained on"]) == (rendered.ids, rendered.mask)


def test_turns_that_do_not_alternate_are_refused() -> None:
    with pytest.raises(ConfigError, match="1 --user and 2 --assistant"):
        conversation(["a"], ["b", "c"])


def test_ids_are_read_with_and_without_commas() -> None:
    assert ids_in("72 105", BYTES) == ids_in("[72, 105]", BYTES) == [72, 105]
    for wrong in ("x", "260", "-1", "²"):
        with pytest.raises(DataError, match=repr(wrong)):
            ids_in(wrong, BYTES)
