import math

import pytest
import torch

from llmcore.losses import next_token_loss
from llmcore.model.config import ModelConfig
from llmcore.records import Chat, Message
from llmcore.tokenizer import Tokenizer
from llmcore.train.loop import train_step
from llmcore.train.optim import AdamW
from llmsft.batches import chat_batch, render_rows
from llmsft.evaluate import answers, chat_loss, evaluate_chats, is_right

TOKENIZER = Tokenizer.byte_level()
CHATS = [
    Chat(messages=(Message(role="user", content=question), Message(role="assistant", content=answer)))
    for question, answer in [("a", "'x'"), ("b", "[1, 2]"), ("c", "7")]
]


def memorised() -> torch.nn.Module:
    """A model that has learned three chats by heart."""
    model = ModelConfig(vocab_size=260, width=64, depth=2, context=64).build(seed=0)
    rows, _ = render_rows(CHATS, TOKENIZER, max_length=64)
    batch = chat_batch(rows, TOKENIZER.pad_id)
    optimizer = AdamW().build(model, 3e-3)
    for _ in range(120):
        result = train_step(model, optimizer, [batch], next_token_loss, clip=1.0)
    assert result.loss < 0.01
    return model.eval()


def test_an_overfitted_model_answers_by_heart_and_stops() -> None:
    model = memorised()
    assert answers(model, CHATS, TOKENIZER, temperature=0.0) == ["'x'", "[1, 2]", "7"]
    scores = evaluate_chats(model, CHATS, TOKENIZER)
    assert scores.greedy.value == 1.0 and scores.asked == 3
    assert scores.loss < 0.01 and scores.perplexity == pytest.approx(math.exp(scores.loss))


def test_loss_is_a_mean_over_tokens_not_over_batches() -> None:
    model = ModelConfig(vocab_size=260, width=16, depth=1, context=64).build(seed=0)
    torch.nn.init.zeros_(model.embedding.weight)
    assert chat_loss(model, CHATS, TOKENIZER) == pytest.approx(math.log(260), rel=1e-5)


def test_answers_are_right_by_text_or_as_the_same_literal() -> None:
    assert is_right(" [1,2] ", "[1, 2]") and is_right("hello", "hello")
    assert not is_right("[1, 2", "[1, 2]") and not is_right("1.0", "1")
