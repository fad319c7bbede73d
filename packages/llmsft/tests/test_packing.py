"""Packed rows: nothing lost, little padding, and the loss and gradient that the same conversations have unpacked."""

import random

import pytest
import torch

from llmcore.chat import Rendered
from llmcore.losses import next_token_loss
from llmcore.model.config import ModelConfig
from llmcore.records import Chat, Message
from llmcore.tokenizer import Tokenizer
from llmcore.train.config import TrainConfig
from llmsft.batches import ChatBatches, numbered_rows
from llmsft.packing import best_fit_decreasing, pack, relative_pair_cost

TOKENIZER = Tokenizer.byte_level()


def some_rows(count: int, *, seed: int = 0, longest: int = 60) -> list[Rendered]:
    rng = random.Random(seed)
    chats = [
        Chat(
            messages=(
                Message(role="user", content="q" * rng.randint(1, longest)),
                Message(role="assistant", content="".join(rng.choices("abcdef", k=rng.randint(1, longest)))),
            )
        )
        for _ in range(count)
    ]
    return numbered_rows(chats, TOKENIZER, max_length=256).rendered


def batches(rows: list[Rendered], *, pair_cost: float | None, **train: int) -> ChatBatches:
    settings = TrainConfig.model_validate({"batch": len(rows), **train})
    return ChatBatches(rows, pad_id=TOKENIZER.pad_id, train=settings, pair_cost=pair_cost, max_length=256)


@pytest.mark.parametrize("attention", [{"backend": "matmul"}, {"backend": "sdpa"}, {"window": 7}, {"kind": "mla"}])
@pytest.mark.parametrize("positions", ["rope", "learned"])
def test_packed_is_unpacked_in_loss_and_gradient(attention: dict[str, object], positions: str) -> None:
    sizes = {"vocab_size": 260, "width": 32, "depth": 2, "context": 256}
    model = ModelConfig.model_validate({**sizes, "attention": attention, "positions": positions}).build(seed=0).double()
    model.activation_dtype = torch.float64
    rows = some_rows(12)
    found = []
    for pair_cost in (None, 1e-3):
        model.zero_grad()
        (batch,) = batches(rows, pair_cost=pair_cost).micro_batches(0)
        loss = next_token_loss(model, batch.plain)
        loss.total.backward()
        grads = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        found.append((loss.total.detach(), loss.count, grads))
    assert found[0][1] == found[1][1]
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found[0][2], found[1][2], rtol=1e-6, atol=1e-9)


def test_every_token_is_there_once_and_no_first_token_is_a_target() -> None:
    rows = some_rows(30)
    (packed,) = batches(rows, pair_cost=1e-3).micro_batches(0)
    (padded,) = batches(rows, pair_cost=None).micro_batches(0)
    assert packed.documents is not None
    assert sorted(packed.ids[packed.documents < 30].tolist()) == sorted(i for row in rows for i in row.ids)
    assert packed.mask.sum() == padded.mask.sum()
    starts = packed.documents[:, 1:] != packed.documents[:, :-1]
    assert not packed.mask[:, 1:][starts].any() and not packed.mask[:, 0].any()
    assert not packed.mask[packed.documents == 30].any()


def test_best_fit_decreasing_puts_each_where_it_leaves_the_least_room() -> None:
    assert best_fit_decreasing([5, 6, 4, 3, 2], 10) == [[1, 2], [0, 3, 4]]
    rng = random.Random(0)
    lengths = [rng.randint(1, 100) for _ in range(500)]
    rows = best_fit_decreasing(lengths, 100)
    loads = [sum(lengths[i] for i in row) for row in rows]
    assert max(loads) <= 100 and sorted(i for row in rows for i in row) == list(range(500))
    assert sum(loads) / (100 * len(rows)) > 0.98


def test_rows_are_long_where_that_is_cheap_and_short_where_pairs_cost() -> None:
    rng = random.Random(1)
    lengths = [rng.randint(20, 200) for _ in range(24)]
    cheap, dear = (pack(lengths, limit=2048, pair_cost=cost) for cost in (0.0, 0.02))
    assert cheap.cells <= dear.cells and dear.width <= cheap.width
    assert sum(lengths) / cheap.cells > 0.97
    assert pack(lengths, limit=100, pair_cost=0.0).width >= max(lengths)


def test_what_a_pair_costs_is_counted_from_the_architecture() -> None:
    config = ModelConfig(vocab_size=260, width=64, depth=3, context=128)
    linear = sum(p.numel() for p in config.build().parameters())
    assert relative_pair_cost(config) == pytest.approx(3 * 2 * 64 / linear)


def test_micro_batches_are_packed_by_themselves() -> None:
    rows = some_rows(10)
    parts = batches(rows, pair_cost=1e-3, micro_batch=4).micro_batches(0)
    assert len(parts) == 3
    assert sum(part.plain.targets for part in parts) == sum(sum(row.mask) for row in rows)
