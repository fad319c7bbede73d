import math

import pytest
import torch

from llmcore.errors import DataError
from llmcore.records import Message, Preference
from llmcore.tokenizer import Tokenizer
from llmcore.train.config import TrainConfig
from llmreward.batches import PreferenceBatches, check_dropped, cut_pair, tokenize_pairs
from llmreward.config import RewardData

TOKENIZER = Tokenizer.byte_level()


def preference(prompt: str, chosen: str, rejected: str, margin: float | None = None) -> Preference:
    return Preference(prompt=(Message(role="user", content=prompt),), chosen=chosen, rejected=rejected, margin=margin)


def many(count: int) -> list[Preference]:
    return [preference(f"{n}", "y" * (1 + n % 7), "z" * (1 + n % 5)) for n in range(count)]


def batches(count: int, **settings: object) -> PreferenceBatches:
    pairs = tokenize_pairs(many(count), TOKENIZER, data=RewardData(), context=100).kept
    train = TrainConfig.model_validate({"batch": 4, "seed": 5, **settings})
    return PreferenceBatches(pairs, pad_id=TOKENIZER.pad_id, context=100, train=train)


def test_both_sides_share_the_prompt_and_end_with_the_end_of_turn() -> None:
    pair = tokenize_pairs([preference("1+1", "2", "11")], TOKENIZER, data=RewardData(), context=100).kept[0]
    assert pair.chosen[-1] == pair.rejected[-1] == TOKENIZER.end_of_turn_id
    assert pair.chosen[:-2] == pair.rejected[:-3]
    assert TOKENIZER.decode(pair.chosen[-2:-1]) == "2"
    assert math.isnan(pair.margin)


def test_a_batch_holds_both_sides_padded_on_the_right() -> None:
    records = [preference("a", "xx", "y", 1.5), preference("b", "u", "vvv")]
    pairs = tokenize_pairs(records, TOKENIZER, data=RewardData(), context=100).kept
    source = PreferenceBatches(pairs, pad_id=TOKENIZER.pad_id, context=100, train=TrainConfig(batch=2))
    (batch,) = source.micro_batches(0)
    assert batch.ids.shape[0] == 4 and batch.lengths.shape == (4,) and batch.margins.shape == (2,)
    rows = {tuple(row[:length].tolist()) for row, length in zip(batch.ids, batch.lengths, strict=True)}
    assert rows == {tuple(side) for pair in pairs for side in (pair.chosen, pair.rejected)}
    for row, length in zip(batch.ids, batch.lengths, strict=True):
        assert (row[length:] == TOKENIZER.pad_id).all()
    assert sorted(batch.margins.isnan().tolist()) == [False, True]


def test_each_pair_comes_once_an_epoch_in_another_order() -> None:
    source = batches(30)
    orders = [
        [tuple(row[:length].tolist()) for step in epoch for row, length in rows_of(source, step)]
        for epoch in (range(8), range(8, 16))
    ]
    assert sorted(orders[0]) == sorted(orders[1]) and len(orders[0]) == 60
    assert orders[0] != orders[1]


def rows_of(source: PreferenceBatches, step: int) -> list[tuple[torch.Tensor, int]]:
    return [
        (row, int(n)) for batch in source.micro_batches(step) for row, n in zip(batch.ids, batch.lengths, strict=True)
    ]


def test_a_step_is_a_function_of_seed_and_number() -> None:
    first, again, other = batches(30), batches(30), batches(30, seed=6)
    (batch,) = next(again.steps_from(11, None))
    assert torch.equal(batch.ids, first.micro_batches(11)[0].ids)
    assert not all(same(first, other, step) for step in range(8))


def same(left: PreferenceBatches, right: PreferenceBatches, step: int) -> bool:
    a, b = left.micro_batches(step)[0].ids, right.micro_batches(step)[0].ids
    return a.shape == b.shape and torch.equal(a, b)


def test_micro_batches_are_the_same_pairs_in_parts() -> None:
    whole, parts = batches(30).micro_batches(2), batches(30, micro_batch=3).micro_batches(2)
    assert [len(batch.margins) for batch in parts] == [3, 1]
    assert sum(int(batch.lengths.sum()) for batch in parts) == int(whole[0].lengths.sum())


def test_batches_gather_similar_lengths() -> None:
    source = batches(200)
    steps = range(source.buckets.steps_per_epoch)
    cells = sum(batch.ids.numel() for step in steps for batch in source.micro_batches(step))
    tokens = sum(int(batch.lengths.sum()) for step in steps for batch in source.micro_batches(step))
    assert tokens / cells > 0.75


def test_a_long_pair_loses_the_prompts_start_and_the_answers_ends_alike() -> None:
    shared = list(range(100, 140))
    chosen, rejected = [256, *shared, 1, 2, 3, 258], [256, *shared, 7, 258]
    left, right = cut_pair(chosen, rejected, limit=20, keep_first=True)
    assert left == [256, *shared[-15:], 1, 2, 3, 258]
    assert right == [256, *shared[-15:], 7, 258]


def test_long_answers_keep_a_quarter_for_the_prompt() -> None:
    shared = list(range(100, 140))
    left, right = cut_pair([256, *shared, *[1] * 50], [256, *shared, *[2] * 9], limit=20, keep_first=True)
    assert left == [256, *shared[-4:], *[1] * 15]
    assert right == [256, *shared[-4:], *[2] * 9]


def test_short_prompts_leave_their_room_to_the_answers() -> None:
    left, right = cut_pair([256, 50, *[1] * 50], [256, 50, *[2] * 50], limit=20, keep_first=True)
    assert left == [256, 50, *[1] * 18] and right == [256, 50, *[2] * 18]


@pytest.mark.parametrize("limit", [8, 13, 30, 64])
def test_no_cut_row_is_longer_than_the_limit_or_equal_to_the_other(limit: int) -> None:
    records = [preference("p" * n, "a" * n + "b", "a" * (60 - n) + "c") for n in range(60)]
    pairs = tokenize_pairs(records, TOKENIZER, data=RewardData(max_length=limit), context=100)
    assert len(pairs.kept) == 60 and pairs.counts["cut"] > 30
    for pair in pairs.kept:
        assert max(len(pair.chosen), len(pair.rejected)) <= limit
        assert pair.chosen != pair.rejected


def test_what_cannot_be_used_is_counted_by_reason() -> None:
    records = [preference("a", "x", "x"), preference("b", "x" * 90, "y"), preference("c", "1", "2")]
    pairs = tokenize_pairs(records, TOKENIZER, data=RewardData(long="drop", max_length=50), context=100)
    assert pairs.counts == {"dropped_equal": 1, "dropped_too_long": 1, "pairs": 1}
    assert pairs.sources == [2]
    with pytest.raises(DataError, match=r"2 of 3 pairs would be dropped \(1 equal, 1 too_long\)"):
        check_dropped(pairs.counts, allowed=0.5)
    check_dropped(pairs.counts, allowed=0.7)


def test_data_without_any_usable_pair_is_refused() -> None:
    with pytest.raises(DataError, match=r"no pair of 4 can be learned from \(4 equal\)"):
        check_dropped({"pairs": 0, "dropped_equal": 4}, allowed=1.0)
