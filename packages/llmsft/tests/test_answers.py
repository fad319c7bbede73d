import pytest

from llmcore.errors import DataError
from llmcore.model.config import ModelConfig
from llmcore.records import Chat, Message
from llmcore.tokenizer import Tokenizer
from llmsft.answers import answerable, is_right, several_answers

TOKENIZER = Tokenizer.byte_level()
CHATS = [
    Chat(messages=(Message(role="user", content=f"say {n}"), Message(role="assistant", content=f"{n}")))
    for n in range(200)
]


def test_every_sample_of_every_conversation_has_a_seed_of_its_own() -> None:
    """The same prompt in other batches of the engine, and again in the same one."""
    model = ModelConfig(vocab_size=260, width=16, depth=1, context=64).build(seed=0).eval()
    asked = [CHATS[0]] * 200
    found = several_answers(model, asked, TOKENIZER, temperature=1.0, samples=2, max_new_tokens=8)
    assert len({answer for some in found for answer in some}) > 350
    again = several_answers(model, asked[:3], TOKENIZER, temperature=1.0, samples=2, max_new_tokens=8)
    assert again == found[:3]


def test_answers_are_right_by_text_or_as_the_same_literal() -> None:
    assert is_right(" [1,2] ", "[1, 2]") and is_right("hello", "hello")
    assert not is_right("[1, 2", "[1, 2]") and not is_right("1.0", "1")


def test_conversations_are_asked_up_to_their_last_answer() -> None:
    thanks = CHATS[0].model_copy(update={"messages": (*CHATS[0].messages, Message(role="user", content="thanks"))})
    silent = Chat(messages=(Message(role="user", content="hello?"),))
    assert answerable([thanks, silent]) == [CHATS[0]]
    with pytest.raises(DataError, match="none of 1 conversations"):
        answerable([silent])
