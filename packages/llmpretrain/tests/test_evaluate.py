import math
from pathlib import Path

import pytest
import torch

from llmcore.model.config import ModelConfig
from llmcore.shards import ShardWriter, TokenShards, write_index
from llmcore.tokenizer import Tokenizer
from llmpretrain.evaluate import held_out

TOKENIZER = Tokenizer.byte_level()


def valid_shards(folder: Path, texts: list[str]) -> TokenShards:
    writer = ShardWriter(folder, "valid", TOKENIZER)
    for text in texts:
        writer.add(TOKENIZER.encode(text))
    write_index(folder, TOKENIZER, {"valid": writer.close()})
    return TokenShards(folder, "valid", tokenizer=TOKENIZER)


def test_a_uniform_model_needs_log2_of_the_vocabulary_bits(tmp_path: Path) -> None:
    shards = valid_shards(tmp_path, ["hello world, " * 20, "é" * 50])
    model = ModelConfig(vocab_size=260, width=16, depth=1, context=16).build(seed=0)
    torch.nn.init.zeros_(model.embedding.weight)
    found = held_out(model, shards, TOKENIZER)
    assert found.loss == pytest.approx(math.log(260))
    assert found.bits_per_byte.value == pytest.approx(math.log2(260))
    assert found.bits_per_byte.high == pytest.approx(found.bits_per_byte.low, abs=1e-6)


def test_windows_are_spread_and_all_by_default(tmp_path: Path) -> None:
    shards = valid_shards(tmp_path, ["abcdefghij" * 40])
    model = ModelConfig(vocab_size=260, width=16, depth=1, context=11).build(seed=0)
    assert held_out(model, shards, TOKENIZER).windows == 40
    assert held_out(model, shards, TOKENIZER, windows=7).windows == 7
