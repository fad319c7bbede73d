"""What `llmcore inspect` says of an artifact."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from llmcore.checkpoint import save_model
from llmcore.inspection import as_table, block_parameters, describe, part_line
from llmcore.manifest import read_manifest, write_manifest
from llmcore.model.config import ModelConfig
from llmcore.model.size import count_parameters, skeleton
from llmcore.tokenizer import Tokenizer


def facts_of(folder: Path, **settings: object) -> dict[str, object]:
    config = ModelConfig.model_validate({"vocab_size": 260, "width": 16, "depth": 3, "context": 64, **settings})
    files = save_model(folder, config.build(seed=0), Tokenizer.byte_level())
    write_manifest(folder, kind="policy", made_by="test", config={}, files=files)
    return describe(folder, read_manifest(folder))


def test_a_model_and_what_it_costs(tmp_path: Path) -> None:
    heads = {"heads": 2, "kv_heads": 1, "window": 8, "sinks": 2}
    facts = facts_of(tmp_path, attention=heads)
    assert json.loads(json.dumps(facts)) == facts
    modules = facts["parameters by module"]
    assert isinstance(modules, dict) and sum(modules.values()) == facts["parameters"]
    assert facts["FLOPs per token at 64 tokens"]["training"] == 3 * facts["FLOPs per token at 64 tokens"]["forward"]  # type: ignore[index]
    assert facts["KV cache bytes per token"] == {
        "fp32": 3 * 2 * 8 * 4,
        "bf16": 3 * 2 * 8 * 2,
        "tokens kept at most": 10,
    }


def test_an_encoder_keeps_no_cache(tmp_path: Path) -> None:
    assert "KV cache bytes per token" not in facts_of(tmp_path, attention={"heads": 2, "kv_heads": 1, "causal": False})


def test_the_table_names_each_part_once_and_its_weights(tmp_path: Path) -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    facts = facts_of(tmp_path, attention={"heads": 2, "kv_heads": 1})
    console.print(as_table(facts))
    text = console.export_text()
    assert "gqa · heads 2 · kv_heads 1" in text and "{" not in text
    assert "blocks.0-2" in text and " each" in text and text.count("feedforward_norm") == 1
    assert f"{facts['parameters']:,}" in text


def test_blocks_that_differ_stand_apart() -> None:
    model = skeleton(ModelConfig.model_validate({"vocab_size": 20, "width": 16, "depth": 4}))
    model.blocks[2].feedforward.down = None
    found = block_parameters(model.blocks)
    assert list(found) == ["0-1", "2", "3"]
    assert sum(found["3"].values()) == sum(p.numel() for p in model.blocks[3].parameters())
    assert count_parameters(model) > sum(sum(parts.values()) for parts in found.values())


@pytest.mark.parametrize(
    ("part", "line"),
    [
        ({"kind": "gqa", "heads": 4, "causal": True, "window": None, "sinks": 0}, "gqa · heads 4 · causal"),
        ({"kind": "rope", "base": 10000.0, "scaling": {"kind": "none"}}, "rope · base 10,000"),
        ({"kind": "rope", "scaling": {"kind": "yarn", "factor": 4.0}}, "rope · scaling (yarn · factor 4)"),
        ({"kind": "gqa", "backend": {"kind": "auto"}}, "gqa · backend auto"),
    ],
)
def test_a_part_in_one_line(part: dict[str, object], line: str) -> None:
    assert part_line(part) == line
