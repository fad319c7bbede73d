from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from llmcore.errors import DataError
from llmcore.shards import ShardWriter, TokenShards, write_index
from llmcore.tokenizer import Tokenizer
from llmcore.train.config import TrainConfig
from llmpretrain.batches import TokenBatches

TOKENIZER = Tokenizer.byte_level()


def shards_of(folder: Path, texts: list[str]) -> TokenShards:
    writer = ShardWriter(folder, "train", TOKENIZER)
    for text in texts:
        writer.add(TOKENIZER.encode(text))
    write_index(folder, TOKENIZER, {"train": writer.close()})
    return TokenShards(folder, "train", tokenizer=TOKENIZER)


def batches(root: Path, *, tokens: int = 1001, context: int = 11, **train: int) -> TokenBatches:
    folder = root / f"tokens-{len(list(root.iterdir()))}"
    folder.mkdir()
    text = "".join(chr(97 + i % 26) for i in range(tokens - 1))
    return TokenBatches(shards_of(folder, [text]), context=context, train=TrainConfig(**{"batch": 7, **train}))


def test_every_token_but_the_first_is_a_target_once_per_epoch(tmp_path: Path) -> None:
    source = batches(tmp_path, tokens=1001, context=11, batch=10)
    assert source.windows == 100
    seen: Counter[int] = Counter()
    for step in range(10):
        for start in source.starts(step):
            seen.update(range(int(start) + 1, int(start) + 11))
    assert seen == Counter(range(1, 1001))


def test_epochs_differ_and_end_inside_a_step(tmp_path: Path) -> None:
    source = batches(tmp_path, tokens=1001, context=11, batch=7)
    first = np.concatenate([source.starts(step) for step in range(15)])
    assert Counter(first[:100].tolist()) == Counter(range(0, 1000, 10))
    again = np.concatenate([source.starts(step) for step in range(14, 30)])
    assert again[2:102].tolist() != first[:100].tolist()
    assert sorted(again[2:102].tolist()) == sorted(first[:100].tolist())


def test_batches_are_a_function_of_seed_and_step(tmp_path: Path) -> None:
    source = batches(tmp_path)
    wanted = source.micro_batches(3)[0].ids
    for step in (9, 0, 3):
        found = source.micro_batches(step)[0].ids
    assert found.equal(wanted)
    assert not batches(tmp_path, seed=1).micro_batches(3)[0].ids.equal(wanted)


def test_the_order_of_an_epoch_is_drawn_once_and_is_the_one_that_runs_have_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, drawn = batches(tmp_path, tokens=1005, batch=7), []
    draw = source.draw
    monkeypatch.setattr(source, "draw", lambda epoch: drawn.append(epoch) or draw(epoch))
    found = np.concatenate([source.starts(step) for step in range(30)])
    assert drawn == [0, 1, 2]
    for epoch in (0, 1):
        random = np.random.default_rng([0, epoch])
        shift = random.integers(0, 5)
        assert found[epoch * 100 : (epoch + 1) * 100].tolist() == (random.permutation(100) * 10 + shift).tolist()


def test_micro_batches_are_the_batch_in_pieces(tmp_path: Path) -> None:
    whole = batches(tmp_path, batch=7).micro_batches(0)
    parts = batches(tmp_path, batch=7, micro_batch=3).micro_batches(0)
    assert [len(part.ids) for part in parts] == [3, 3, 1]
    assert [row for part in parts for row in part.ids.tolist()] == whole[0].ids.tolist()
    assert not whole[0].mask[:, 0].any() and whole[0].mask[:, 1:].all()


def test_too_little_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="fewer than a context of 64"):
        batches(tmp_path, tokens=20, context=64)
