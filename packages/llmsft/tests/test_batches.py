import pytest
import torch

from llmcore.chat import render_chat
from llmcore.errors import DataError
from llmcore.losses import next_token_loss
from llmcore.model.config import ModelConfig
from llmcore.records import Chat, Message
from llmcore.tokenizer import Tokenizer
from llmcore.train.config import TrainConfig
from llmsft.batches import ChatBatches, chat_batch, render_rows

TOKENIZER = Tokenizer.byte_level()


def chat(*contents: str) -> Chat:
    roles = ("user", "assistant")
    return Chat(messages=tuple(Message(role=roles[i % 2], content=c) for i, c in enumerate(contents)))


def source(chats: list[Chat], *, max_length: int = 128, max_dropped: float = 0.01, **train: int) -> ChatBatches:
    settings = TrainConfig(**{"batch": 4, **train})
    return ChatBatches(chats, TOKENIZER, max_length=max_length, max_dropped=max_dropped, train=settings)


def test_the_loss_falls_on_the_answer_and_its_end_alone() -> None:
    rows, _ = render_rows([chat("1 + 1", "2", "and 'é'", "'ok'")], TOKENIZER, max_length=128)
    trained = [i for i, m in zip(rows[0].ids, rows[0].mask, strict=True) if m]
    end = TOKENIZER.end_of_turn_id
    assert trained == [*b"2", end, *b"'ok'", end]


def test_the_mask_says_what_is_trained_and_padding_is_not() -> None:
    rows, _ = render_rows([chat("a", "b"), chat("long question", "long answer")], TOKENIZER, max_length=128)
    batch = chat_batch(rows, TOKENIZER.pad_id)
    assert batch.ids.shape == batch.mask.shape
    assert int(batch.mask.sum()) == len("b") + 1 + len("long answer") + 1
    assert not batch.mask[batch.ids == TOKENIZER.pad_id].any()


def test_padding_and_company_do_not_change_the_loss() -> None:
    chats = [chat("a", "b"), chat("a longer question", "with a longer answer")]
    rows, _ = render_rows(chats, TOKENIZER, max_length=128)
    model = ModelConfig(vocab_size=260, width=32, depth=2, context=128).build(seed=0)
    together = next_token_loss(model, chat_batch(rows, TOKENIZER.pad_id))
    alone = [next_token_loss(model, chat_batch([row], TOKENIZER.pad_id)) for row in rows]
    assert together.count == sum(loss.count for loss in alone)
    torch.testing.assert_close(together.total, sum(loss.total for loss in alone), rtol=1e-5, atol=1e-5)


def test_truncation_is_counted_and_rows_without_an_answer_are_dropped() -> None:
    chats = [chat("short", "yes")] * 99 + [chat("x" * 200, "never seen")]
    made = source(chats, max_length=64)
    assert made.counts["truncated"] == 1 and made.counts["dropped: no assistant token"] == 1
    assert len(made.rows) == 99
    with pytest.raises(DataError, match="1 of 2 conversations"):
        source(chats[-2:], max_length=64)
    assert len(source(chats[-2:], max_length=64, max_dropped=0.5).rows) == 1


def test_a_truncated_answer_gets_no_made_up_end() -> None:
    full = render_chat(chat("q", "a" * 50).messages, TOKENIZER)
    rows, _ = render_rows([chat("q", "a" * 50)], TOKENIZER, max_length=len(full.ids) - 20)
    assert rows[0].ids == full.ids[: len(full.ids) - 20]


def test_batches_are_a_function_of_seed_and_step() -> None:
    chats = [chat(str(i), str(i * i)) for i in range(30)]
    one, other = source(chats), source(chats)
    other.micro_batches(20)
    assert all(a.ids.equal(b.ids) for a, b in zip(one.micro_batches(5), other.micro_batches(5), strict=True))
    seen = sorted(tuple(row.tolist()) for step in range(8) for b in one.micro_batches(step) for row in b.ids)
    assert len(seen) == 30 and len(set(seen)) == 30


def test_micro_batches_are_the_batch_in_pieces() -> None:
    chats = [chat(str(i), str(i * i)) for i in range(8)]
    parts = source(chats, batch=8, micro_batch=3).micro_batches(0)
    assert [len(part.ids) for part in parts] == [3, 3, 2]
