"""`llmpretrain eval --tasks`, as a person gives it."""

import json
from pathlib import Path

from typer.testing import CliRunner

from llmcore.checkpoint import save_model
from llmcore.manifest import write_manifest
from llmcore.model.config import ModelConfig
from llmcore.tokenizer import Tokenizer
from llmpretrain.cli import app


def test_tasks_are_scored_without_data_and_told_as_json_or_lines(tmp_path: Path) -> None:
    policy = tmp_path / "policy"
    policy.mkdir()
    model = ModelConfig(vocab_size=260, width=16, depth=1, context=64).build(seed=0)
    files = save_model(policy, model, Tokenizer.byte_level())
    write_manifest(policy, kind="policy", made_by="test", config={}, files=files)
    pairs, words = tmp_path / "pairs.jsonl", tmp_path / "words.txt"
    pairs.write_text('{"sentence_good": "She ran.", "sentence_bad": "She runned."}\n' * 3)
    words.write_text("all is well\n")
    arguments = ["eval", str(policy), "--tasks", str(pairs), "--tasks", str(words), "--device", "cpu"]
    shown = CliRunner().invoke(app, [*arguments, "--task-count", "2", "--json"])
    found = json.loads(shown.stdout)
    assert list(found) == ["tasks"] and list(found["tasks"]) == [str(pairs), str(words)]
    assert found["tasks"][str(pairs)]["count"] == 2 and found["tasks"][str(pairs)]["chance"] == 0.5
    lines = CliRunner().invoke(app, arguments).stdout
    assert f"{pairs}: 3 items (pair)" in lines and "perplexity" in lines
