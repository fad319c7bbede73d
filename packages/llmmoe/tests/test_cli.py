"""`llmmoe usage` on a real checkpoint and real token shards."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from llmcore.checkpoint import save_model
from llmcore.errors import ArtifactError, DataError
from llmcore.manifest import write_manifest
from llmcore.model.config import ModelConfig
from llmcore.shards import ShardWriter, write_index
from llmcore.tokenizer import Tokenizer
from llmmoe.cli import usage


def test_usage_prints_the_share_of_each_expert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint, tokens = save_checkpoint(tmp_path / "policy", "moe"), save_tokens(tmp_path / "tokens")
    usage(checkpoint, tokens, split="valid", json=True, tokens=1000)
    shares = json.loads(capsys.readouterr().out)["shares"]
    assert list(shares) == ["blocks.0.feedforward", "blocks.1.feedforward"]
    assert all(len(values) == 8 and sum(values) == pytest.approx(1.0) for values in shares.values())
    usage(checkpoint, tokens, split="valid", json=False, tokens=1000)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and lines[2].startswith("blocks.1.feedforward") and lines[2].count("%") == 8


def test_a_dense_model_is_refused(tmp_path: Path) -> None:
    checkpoint, tokens = save_checkpoint(tmp_path / "policy", "swiglu"), save_tokens(tmp_path / "tokens")
    with pytest.raises(ArtifactError, match="has no experts: its feed-forward is 'swiglu'"):
        usage(checkpoint, tokens, split="valid", json=True, tokens=1000)


def test_too_short_a_text_is_refused(tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / "policy", "moe")
    with pytest.raises(DataError, match="3 tokens in split 'valid', the model reads 16"):
        usage(checkpoint, save_tokens(tmp_path / "tokens", text="ab"), split="valid", json=True, tokens=9)


def test_the_command_line_starts_without_torch() -> None:
    code = "import sys, llmmoe.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def save_checkpoint(folder: Path, feedforward: str) -> Path:
    folder.mkdir()
    tokenizer = Tokenizer.byte_level()
    config = ModelConfig.model_validate(
        {"width": 32, "depth": 2, "context": 16, "feedforward": {"kind": feedforward}}
    ).with_vocabulary(tokenizer.vocab_size)
    files = save_model(folder, config.build(seed=0), tokenizer)
    write_manifest(folder, kind="policy", made_by="test", config={}, files=files)
    return folder


def save_tokens(folder: Path, text: str = "to be or not to be, that is the question") -> Path:
    folder.mkdir()
    tokenizer = Tokenizer.byte_level()
    writer = ShardWriter(folder, "valid", tokenizer)
    writer.add(tokenizer.encode(text))
    files = [*tokenizer.save(folder), *write_index(folder, tokenizer, {"valid": writer.close()})]
    write_manifest(folder, kind="tokens", made_by="test", config={}, files=files)
    return folder
