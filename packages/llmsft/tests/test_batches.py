import pytest
import torch

from llmcore.chat import render_chat
from llmcore.errors import DataError
from llmcore.losses import next_token_loss
from llmcore.model.config import ModelConfig
from llmcore.records import Chat, Message
from llmcore.tokenizer import Tokenizer
from llmcore.train.config import TrainConfig
from llmsft.batches import ChatBatches, check_dropped, numbered_rows, padded_batch

TOKENIZER = Tokenizer.byte_level()


def chat(*contents: str) -> Chat:
    roles = ("user", "assistant")
    return Chat(messages=tuple(Message(role=roles[i % 2], content=c) for i, c in enumerate(contents)))


def source(chats: list[Chat], *, pair_cost: float | None = None, **train: int) -> ChatBatches:
    rows = numbered_rows(chats, TOKENIZER, max_length=128).rendered
    settings = TrainConfig(**{"batch": 4, **train})
    return ChatBatches(rows, pad_id=TOKENIZER.pad_id, train=settings, pair_cost=pair_cost, max_length=128)


def test_the_loss_falls_on_the_answer_and_its_end_alone() -> None:
    rows = numbered_rows([chat("1 + 1", "2", "and 'é'", "'ok'")], TOKENIZER, max_length=128).rendered
    trained = [i for i, m in zip(rows[0].ids, rows[0].mask, strict=True) if m]
    end = TOKENIZER.end_of_turn_id
    assert trained == [*b"2", end, *b"'ok'", end]


def test_the_mask_says_what_is_trained_and_padding_is_not() -> None:
    rows = numbered_rows([chat("a", "b"), chat("long question", "long answer")], TOKENIZER, max_length=128).rendered
    batch = padded_batch(rows, TOKENIZER.pad_id)
    assert batch.ids.shape == batch.mask.shape
    assert int(batch.mask.sum()) == len("b") + 1 + len("long answer") + 1
    assert not batch.mask[batch.ids == TOKENIZER.pad_id].any()


def test_padding_and_company_do_not_change_the_loss() -> None:
    chats = [chat("a", "b"), chat("a longer question", "with a longer answer")]
    rows = numbered_rows(chats, TOKENIZER, max_length=128).rendered
    model = ModelConfig(vocab_size=260, width=32, depth=2, context=128).build(seed=0)
    together = next_token_loss(model, padded_batch(rows, TOKENIZER.pad_id).plain)
    alone = [next_token_loss(model, padded_batch([row], TOKENIZER.pad_id).plain) for row in rows]
    assert together.count == sum(loss.count for loss in alone)
    torch.testing.assert_close(together.total, sum(loss.total for loss in alone), rtol=1e-5, atol=1e-5)


def test_truncation_is_counted_and_rows_without_an_answer_are_dropped() -> None:
    chats = [chat("short", "yes")] * 99 + [chat("x" * 200, "never seen")]
    made = numbered_rows(chats, TOKENIZER, max_length=64)
    assert made.counts["dropped: the answer begins beyond max_length"] == 1
    assert len(made.rendered) == 99 and made.numbers == list(range(99))
    check_dropped(made, allowed=0.01, max_length=64)
    half, none = (numbered_rows(some, TOKENIZER, max_length=64) for some in (chats[-2:], chats[-1:]))
    with pytest.raises(DataError, match="1 of 2 conversations"):
        check_dropped(half, allowed=0.01, max_length=64)
    check_dropped(half, allowed=0.5, max_length=64)
    with pytest.raises(DataError, match="1 of 1 conversations"):
        check_dropped(none, allowed=1.0, max_length=64)


def test_truncation_says_what_was_lost() -> None:
    whole, cut = chat("q", "a"), chat("q", "a" * 60)
    aside = chat("q", "a", "never answered" * 10)
    asked = Chat(messages=(Message(role="assistant", content=""), Message(role="user", content="q")))
    counts = numbered_rows([whole, whole, cut, aside, chat("q" * 90, "a"), asked], TOKENIZER, max_length=40).counts
    assert counts["rows"] == 6 and "whole" not in counts
    assert counts["truncated: an answer was cut"] == 1
    assert counts["truncated: behind the last answer"] == 1
    assert counts["dropped: the answer begins beyond max_length"] == 1


def test_the_last_turn_alone_can_be_trained_on() -> None:
    chats = [chat("1 + 1", "2", "and 'é'", "'ok'")]
    rows, _, counts = numbered_rows(chats, TOKENIZER, max_length=128, completion_only_loss=True)
    trained = [i for i, m in zip(rows[0].ids, rows[0].mask, strict=True) if m]
    assert trained == [*b"'ok'", TOKENIZER.end_of_turn_id] and counts["trained tokens"] == 5


def test_a_truncated_answer_gets_no_made_up_end() -> None:
    full = render_chat(chat("q", "a" * 50).messages, TOKENIZER)
    rows = numbered_rows([chat("q", "a" * 50)], TOKENIZER, max_length=len(full.ids) - 20).rendered
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


def test_lengths_are_those_of_conversations_whether_padded_or_packed() -> None:
    chats = [chat("a" * n, "b") for n in (3, 30, 9, 14)]
    for pair_cost in (None, 1e-3):
        made = source(chats, pair_cost=pair_cost)
        (batch,) = made.micro_batches(0)
        real = batch.ids != TOKENIZER.pad_id
        wanted = {len(row.ids) for row in made.rows}
        assert set(batch.lengths[real].tolist()) == wanted and batch.lengths.shape == batch.ids.shape
