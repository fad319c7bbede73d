from collections import Counter

import numpy as np
import torch

from llmcore.batching import LengthBuckets, pad_rows

LENGTHS = [int(n) for n in np.random.default_rng(0).integers(1, 200, size=1003)]


def test_every_row_comes_once_per_epoch() -> None:
    buckets = LengthBuckets(LENGTHS, batch=16, seed=0)
    for epoch in range(2):
        steps = range(epoch * buckets.steps_per_epoch, (epoch + 1) * buckets.steps_per_epoch)
        seen = Counter(int(row) for step in steps for row in buckets.rows_of(step))
        assert seen == Counter(range(len(LENGTHS)))


def test_rows_are_a_function_of_seed_and_step() -> None:
    forward = LengthBuckets(LENGTHS, batch=16, seed=3)
    wanted = [forward.rows_of(step).tolist() for step in range(150)]
    backward = LengthBuckets(LENGTHS, batch=16, seed=3)
    assert [backward.rows_of(step).tolist() for step in reversed(range(150))] == wanted[::-1]
    assert LengthBuckets(LENGTHS, batch=16, seed=4).rows_of(0).tolist() != wanted[0]


def test_batches_hold_rows_of_like_length_in_mixed_order() -> None:
    buckets = LengthBuckets(LENGTHS, batch=16, seed=0)
    batches = [np.array(LENGTHS)[buckets.rows_of(step)] for step in range(buckets.steps_per_epoch)]
    share = sum(b.sum() for b in batches) / sum(b.max() * len(b) for b in batches)
    assert share > 0.9
    means = [b.mean() for b in batches]
    assert abs(np.corrcoef(np.arange(len(means)), means)[0, 1]) < 0.4


def test_padding_is_on_the_right() -> None:
    assert torch.equal(pad_rows([[1, 2, 3], [4]], value=9, multiple=4), torch.tensor([[1, 2, 3, 9], [4, 9, 9, 9]]))
