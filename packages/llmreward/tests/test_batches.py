import math

import pytest
import torch

from llmcore.branches import plain_rows
from llmcore.errors import DataError
from llmcore.records import Message, Preference
from llmcore.tokenizer import Tokenizer
from llmcore.train.config import TrainConfig
from llmreward.batches import (
    PreferenceBatches,
    check_dropped,
    check_margins,
    cut_rows,
    preference_batch,
    tokenize_groups,
)
from llmreward.config import RewardData
from llmreward.loss import PreferenceBatch

TOKENIZER = Tokenizer.byte_level()


def preference(prompt: str, chosen: str, rejected: str, margin: float | None = None) -> Preference:
    return Preference(prompt=(Message(role="user", content=prompt),), chosen=chosen, rejected=rejected, margin=margin)


def many(count: int) -> list[Preference]:
    return [preference(f"{n}", "y" * (1 + n % 7), "z" * (1 + n % 5)) for n in range(count)]


def batches(count: int, **settings: object) -> PreferenceBatches:
    groups = tokenize_groups(many(count), TOKENIZER, data=RewardData(), context=100).kept
    train = TrainConfig.model_validate({"batch": 4, "seed": 5, **settings})
    return PreferenceBatches(groups, pad_id=TOKENIZER.pad_id, share=True, train=train)


def rows_of(batch: PreferenceBatch) -> list[tuple[int, ...]]:
    ids, inside = plain_rows(batch.layout)
    return [tuple(row[here].tolist()) for row, here in zip(ids, inside, strict=True)]


def test_both_sides_share_the_prompt_and_end_with_the_end_of_turn() -> None:
    group = tokenize_groups([preference("1+1", "2", "11")], TOKENIZER, data=RewardData(), context=100).kept[0]
    chosen, rejected = group.rows
    assert chosen[-1] == rejected[-1] == TOKENIZER.end_of_turn_id
    assert chosen[:-2] == rejected[:-3]
    assert TOKENIZER.decode(chosen[-2:-1]) == "2"
    [comparison] = group.comparisons
    assert comparison[:2] == (0, 1) and math.isnan(comparison.margin)


def test_a_batch_holds_each_answer_once_and_reads_each_prompt_once() -> None:
    records = [preference("a" * 30, "xx", "y", 1.5), preference("b", "u", "vvv")]
    groups = tokenize_groups(records, TOKENIZER, data=RewardData(), context=100).kept
    batch = preference_batch(groups, pad_id=TOKENIZER.pad_id)
    assert rows_of(batch) == [tuple(row) for group in groups for row in group.rows]
    assert batch.better.tolist() == [0, 2] and batch.worse.tolist() == [1, 3]
    assert batch.margins[0] == 1.5 and batch.margins[1].isnan()
    assert batch.weights.tolist() == [1.0, 1.0] and batch.prompts == 2
    real = int((batch.layout.trees > 0).sum())
    assert real < sum(map(len, rows_of(batch))) - 30
    assert (batch.ids[batch.layout.trees == 0] == TOKENIZER.pad_id).all()


def test_the_pairs_of_a_prompt_are_one_group_in_which_each_answer_stands_once() -> None:
    sides = [("p", "a", "b", None), ("q", "x", "y", None), ("p", "b", "c", 2.0), ("p", "a", "c", None)]
    records = [preference(*side) for side in sides]
    groups = tokenize_groups(records, TOKENIZER, data=RewardData(), context=100)
    assert groups.counts == {"pairs": 4, "prompts": 2}
    assert [TOKENIZER.decode(row[-2:-1]) for row in groups.kept[0].rows] == ["a", "b", "c"]
    assert [one[:2] for one in groups.kept[0].comparisons] == [(0, 1), (1, 2), (0, 2)]
    assert groups.kept[0].comparisons[1].margin == 2.0
    batch = preference_batch(groups.kept, pad_id=TOKENIZER.pad_id)
    assert batch.weights.tolist() == pytest.approx([1 / 3] * 3 + [1.0])
    assert batch.better.tolist() == [0, 1, 0, 3] and batch.worse.tolist() == [1, 2, 2, 4]
    alone = tokenize_groups(records, TOKENIZER, data=RewardData(group="pair"), context=100)
    assert [len(group.rows) for group in alone.kept] == [2] * 4


def test_a_prompt_of_many_answers_becomes_several_groups_that_lose_no_pair() -> None:
    records = [preference("p", f"{n}", f"{n + 1}") for n in range(20)]
    groups = tokenize_groups(records, TOKENIZER, data=RewardData(answers=4), context=100).kept
    assert sum(len(group.comparisons) for group in groups) == 20
    assert max(len(group.rows) for group in groups) == 4


def test_a_cut_group_drops_only_the_comparisons_of_what_became_equal() -> None:
    records = [preference("p", "x" * 90 + "1", "x" * 90 + "2"), preference("p", "y", "x" * 90 + "2")]
    groups = tokenize_groups(records, TOKENIZER, data=RewardData(max_length=40), context=100)
    assert groups.counts == {"cut": 2, "dropped_equal": 1, "pairs": 1, "prompts": 1}
    [group] = groups.kept
    assert [one[:2] for one in group.comparisons] == [(1, 0)]
    assert len(group.rows[0]) == 40 and TOKENIZER.decode(group.rows[1][-2:-1]) == "y"


def test_each_pair_comes_once_an_epoch_in_another_order() -> None:
    source = batches(30)
    orders = [
        [row for step in epoch for batch in source.micro_batches(step) for row in rows_of(batch)]
        for epoch in (range(8), range(8, 16))
    ]
    assert sorted(orders[0]) == sorted(orders[1]) and len(orders[0]) == 60
    assert orders[0] != orders[1]


def test_a_step_is_a_function_of_seed_and_number() -> None:
    first, again, other = batches(30), batches(30), batches(30, seed=6)
    (batch,) = next(again.steps_from(11, None))
    assert torch.equal(batch.ids, first.micro_batches(11)[0].ids)
    assert not all(same(first, other, step) for step in range(8))


def same(left: PreferenceBatches, right: PreferenceBatches, step: int) -> bool:
    a, b = left.micro_batches(step)[0].ids, right.micro_batches(step)[0].ids
    return a.shape == b.shape and torch.equal(a, b)


def test_micro_batches_are_the_same_prompts_in_parts() -> None:
    whole, parts = batches(30).micro_batches(2), batches(30, micro_batch=3).micro_batches(2)
    assert [batch.prompts for batch in parts] == [3, 1]
    assert [row for batch in parts for row in rows_of(batch)] == rows_of(whole[0])


def test_little_of_a_batch_is_padding() -> None:
    source = batches(200)
    layouts = [batch.layout for step in range(50) for batch in source.micro_batches(step)]
    real = sum(int((layout.trees > 0).sum()) for layout in layouts)
    assert real / sum(layout.ids.numel() for layout in layouts) > 0.8


def test_a_long_pair_loses_the_prompts_start_and_the_answers_ends_alike() -> None:
    shared = list(range(100, 140))
    chosen, rejected = [256, *shared, 1, 2, 3, 258], [256, *shared, 7, 258]
    left, right = cut_rows([chosen, rejected], limit=20, keep_first=True)
    assert left == [256, *shared[-15:], 1, 2, 3, 258]
    assert right == [256, *shared[-15:], 7, 258]


def test_long_answers_keep_a_quarter_for_the_prompt() -> None:
    shared = list(range(100, 140))
    left, right = cut_rows([[256, *shared, *[1] * 50], [256, *shared, *[2] * 9]], limit=20, keep_first=True)
    assert left == [256, *shared[-4:], *[1] * 15]
    assert right == [256, *shared[-4:], *[2] * 9]


def test_short_prompts_leave_their_room_to_the_answers() -> None:
    left, right = cut_rows([[256, 50, *[1] * 50], [256, 50, *[2] * 50]], limit=20, keep_first=True)
    assert left == [256, 50, *[1] * 18] and right == [256, 50, *[2] * 18]


@pytest.mark.parametrize("limit", [8, 13, 30, 64])
def test_no_cut_row_is_longer_than_the_limit_or_equal_to_the_other(limit: int) -> None:
    records = [preference("p" * n, "a" * n + "b", "a" * (60 - n) + "c") for n in range(60)]
    groups = tokenize_groups(records, TOKENIZER, data=RewardData(max_length=limit), context=100)
    assert len(groups.kept) == 60 and groups.counts["cut"] > 30
    for chosen, rejected in (group.rows for group in groups.kept):
        assert max(len(chosen), len(rejected)) <= limit
        assert chosen != rejected


def test_what_cannot_be_used_is_counted_by_reason() -> None:
    records = [preference("a", "x", "x"), preference("b", "x" * 90, "y"), preference("c", "1", "2")]
    groups = tokenize_groups(records, TOKENIZER, data=RewardData(long="drop", max_length=50), context=100)
    assert groups.counts == {"dropped_equal": 1, "dropped_too_long": 1, "pairs": 1, "prompts": 1}
    with pytest.raises(DataError, match=r"2 of 3 pairs would be dropped \(1 equal, 1 too_long\)"):
        check_dropped(groups.counts, allowed=0.5)
    check_dropped(groups.counts, allowed=0.7)


def test_a_margin_below_0_is_refused() -> None:
    check_margins([preference("a", "x", "y", 0.0), preference("a", "x", "y")])
    with pytest.raises(DataError, match=r"a pair has the margin -0\.5.*'right' over 'wrong'"):
        check_margins([preference("a", "x", "y", 1.0), preference("b", "right", "wrong", -0.5)])


def test_data_without_any_usable_pair_is_refused() -> None:
    with pytest.raises(DataError, match=r"no pair of 4 can be learned from \(4 equal\)"):
        check_dropped({"pairs": 0, "dropped_equal": 4}, allowed=1.0)
