"""Adapters exported for PEFT; the last test asks PEFT itself (tests/peers.py)."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llmcore.adapters import save_adapter
from llmcore.checkpoint import Checkpoint, load_checkpoint, save_model
from llmcore.errors import ArtifactError
from llmcore.huggingface import peft
from llmcore.huggingface.gpt2 import GPT2
from llmcore.huggingface.keys import Rule
from llmcore.huggingface.peft import export_peft
from llmcore.huggingface.settings import Json, Settings
from llmcore.huggingface.writing import export_hf
from llmcore.lora import LoRA
from llmcore.manifest import write_manifest
from llmcore.model.adapters import adapted, add_adapters
from llmcore.model.config import ModelConfig
from llmcore.model.linear import Linear
from llmcore.tokenizer import Tokenizer
from peers import ask, needs_peers

LLAMA: dict[str, Any] = {"vocab_size": 260, "width": 32, "depth": 2, "context": 32}
GPT = GPT2.read(
    Settings(Path("config.json"), {"vocab_size": 260, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32})
)
FAMILIES = {
    "llama": ModelConfig.model_validate(LLAMA),
    "llama-bias": ModelConfig.model_validate({**LLAMA, "attention": {"qkv_bias": True, "out_bias": True}}),
    "qwen3": ModelConfig.model_validate({**LLAMA, "attention": {"qk_norm": "head"}}),
    "gpt2": GPT,
}


def adapter_of(root: Path, config: ModelConfig, **settings: Any) -> Path:
    """A base model below `root/base`, and an adapter of it that says something."""
    model = config.build(seed=0)
    for folder in ("base", "adapter"):
        (root / folder).mkdir(parents=True)
    files = save_model(root / "base", model, Tokenizer.byte_level())
    below = write_manifest(root / "base", kind="policy", made_by="test", config={}, files=files)
    add_adapters(model, LoRA.model_validate({"rank": 4, "alpha": 12, **settings}), seed=0)
    for linear in adapted(model).values():
        nn.init.normal_(linear.adapter.b, std=0.3)  # type: ignore[union-attr, arg-type]
    files = save_adapter(root / "adapter", model, parent="base")
    write_manifest(
        root / "adapter", kind="adapter", made_by="test", config={}, files=files, parents={"base": below},
        places={"base": "../base"},
    )  # fmt: skip
    return root / "adapter"


def test_parts_of_a_fused_matrix_share_a_and_have_their_rows_of_b(tmp_path: Path) -> None:
    adapter = adapter_of(tmp_path, FAMILIES["llama"], dropout=0.1)
    export_peft(adapter, tmp_path / "out")
    ours, theirs = load_file(adapter / "adapter.safetensors"), load_file(tmp_path / "out" / "adapter_model.safetensors")
    name = "base_model.model.model.layers.1.self_attn.{}_proj.lora_{}.weight"
    a, b = (ours[f"blocks.1.attention.qkv.adapter.{x}"] for x in "ab")
    assert all(theirs[name.format(x, "A")].equal(a) for x in "qkv")
    assert torch.cat([theirs[name.format(x, "B")] for x in "qkv"]).equal(b)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (4, 12, 0.1)
    projections = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert config["target_modules"] == projections and not config["fan_in_fan_out"]
    assert len(theirs) == 2 * 2 * len(projections)


def test_names_are_as_long_as_they_must_be(tmp_path: Path) -> None:
    export_peft(adapter_of(tmp_path, GPT, target_modules=["attention.out", "qkv"]), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["attn.c_proj", "c_attn"] and config["fan_in_fan_out"]


@needs_peers
@pytest.mark.parametrize("family", FAMILIES)
def test_peft_computes_what_we_compute(family: str, tmp_path: Path) -> None:
    adapter = adapter_of(tmp_path, FAMILIES[family])
    export_hf(tmp_path / "base", tmp_path / "hf")
    export_peft(adapter, tmp_path / "peft")
    ids = torch.arange(24).view(2, 12) * 7
    save_file({"ids": ids}, tmp_path / "ids.safetensors")
    ask(Path(__file__).with_name("peft_logits.py"), tmp_path)
    theirs = load_file(tmp_path / "said.safetensors")
    for name, folder in (("said", adapter), ("below", tmp_path / "base")):
        model = load_checkpoint(folder).model
        torch.testing.assert_close(model(ids).double(), theirs[name], rtol=1e-5, atol=2e-5)
    assert (theirs["said"] - theirs["below"]).abs().max() > 0.01


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_checked_is_written(family: str, tmp_path: Path) -> None:
    adapter = adapter_of(tmp_path, FAMILIES[family], target_modules=["qkv", "attention.out"])
    export_peft(adapter, tmp_path / "out", check=True)
    assert (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize("harm", ["b", "scale", "modules"])
def test_an_export_that_says_something_else_is_refused(
    harm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, described = peft.their_tensors, peft.adapter_table

    def tensors(linear: Linear, rule: Rule) -> dict[str, Tensor]:
        found = written(linear, rule)
        next(value for name, value in found.items() if "lora_B" in name)[0, 0] += harm == "b"
        return found

    def table(source: Checkpoint, *, rules: dict[str, Rule]) -> Json:
        found = described(source, rules=rules)
        changes = {"scale": {"lora_alpha": 13}, "modules": {"target_modules": ["q_proj", "down_proj"]}}
        return {**found, **changes.get(harm, {})}

    monkeypatch.setattr(peft, "their_tensors", tensors)
    monkeypatch.setattr(peft, "adapter_table", table)
    adapter = adapter_of(tmp_path, FAMILIES["llama"], target_modules=["qkv"])
    with pytest.raises(ArtifactError, match="read back, differs in (blocks.0.attention.qkv|model.layers.0.mlp)"):
        export_peft(adapter, tmp_path / "out", check=True)
    assert not (tmp_path / "out").exists()
