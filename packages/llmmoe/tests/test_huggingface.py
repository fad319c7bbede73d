"""Mixtral and Qwen 3 MoE from and to Hugging Face folders, through llmmoe's entry point, against transformers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hf_oracle import VOCABULARY, same_function, same_rewards_here, same_rewards_there
from llmcore.checkpoint import load_checkpoint, save_model
from llmcore.errors import ArtifactError, ConfigError
from llmcore.extensions import needs_of
from llmcore.huggingface.family import all_families
from llmcore.huggingface.reading import import_hf
from llmcore.huggingface.writing import export_hf
from llmcore.manifest import write_manifest
from llmcore.model.config import ModelConfig
from llmcore.model.transformer import Transformer
from llmcore.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")

CONTEXT = 32
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "num_experts_per_tok": 2,
    "bos_token_id": None,
    "eos_token_id": 2,
}
THEIRS: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("Mixtral", {**SIZES, "num_local_experts": 5}),
    "mixtral-window": ("Mixtral", {**SIZES, "num_local_experts": 3, "sliding_window": 7, "router_aux_loss_coef": 0.5}),
    "qwen3_moe": (
        "Qwen3Moe",
        {**SIZES, "num_experts": 6, "moe_intermediate_size": 16, "norm_topk_prob": True, "head_dim": 12},
    ),
}
OURS: dict[str, dict[str, Any]] = {
    "mixtral": {"feedforward": {"kind": "moe", "experts": 5, "active": 2, "z_loss": 0.001}},
    "qwen3_moe": {
        "feedforward": {"kind": "moe", "experts": 6, "active": 3},
        "attention": {"heads": 4, "kv_heads": 2, "qk_norm": "head"},
    },
}


def randomise(model: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if "norm" in name else 0.0
            parameter.copy_(centre + 0.2 * torch.randn(parameter.shape, generator=generator))


def theirs(folder: Path, case: str, task: str = "CausalLM", **settings: Any) -> Any:
    name, values = THEIRS[case]
    config = getattr(transformers, f"{name}Config")(**{**values, **settings})
    model = getattr(transformers, f"AutoModelFor{task}").from_config(config).eval()
    randomise(model)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes(Tokenizer.byte_level().files()["tokenizer.json"])
    return model


def ours(folder: Path, case: str, **settings: Any) -> Transformer:
    sizes = {"vocab_size": VOCABULARY, "width": 32, "depth": 2, "context": CONTEXT, **OURS[case], **settings}
    config = ModelConfig.model_validate(sizes)
    model = config.build(seed=0).eval()
    randomise(model)
    folder.mkdir()
    files = save_model(folder, model, Tokenizer.byte_level())
    kind = "reward" if config.head == "scalar" else "policy"
    write_manifest(folder, kind=kind, made_by="test", config={}, needs=needs_of(config), files=files)
    return model


def test_the_families_are_offered_by_entry_point() -> None:
    assert {"mixtral", "qwen3_moe"} <= all_families().keys()


@pytest.mark.parametrize("case", THEIRS)
def test_their_model_computes_the_same_here_and_comes_back_the_same(tmp_path: Path, case: str) -> None:
    reference = theirs(tmp_path / "theirs", case)
    assert import_hf(tmp_path / "theirs", tmp_path / "ours").needs.keys() == {"llmmoe"}
    same_function(load_checkpoint(tmp_path / "ours").model, reference)
    assert export_hf(tmp_path / "ours", tmp_path / "again", check=True).config["model_type"] == case.split("-")[0]
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "again"))
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


@pytest.mark.parametrize("case", OURS)
@pytest.mark.parametrize("tied", [True, False])
def test_our_model_computes_the_same_there(tmp_path: Path, case: str, tied: bool) -> None:
    model = ours(tmp_path / "ours", case, tie_embeddings=tied)
    export_hf(tmp_path / "ours", tmp_path / "theirs", check=True)
    same_function(model, transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "theirs").eval())


@pytest.mark.parametrize("case", ["mixtral", "qwen3_moe"])
def test_their_reward_model_scores_the_same_here(tmp_path: Path, case: str) -> None:
    reference = theirs(tmp_path / "theirs", case, "SequenceClassification", num_labels=1, pad_token_id=0)
    same_rewards_here(reference, tmp_path / "theirs", tmp_path / "ours")


@pytest.mark.parametrize("case", OURS)
def test_our_reward_model_scores_the_same_there(tmp_path: Path, case: str) -> None:
    same_rewards_there(ours(tmp_path / "ours", case, head="scalar"), tmp_path / "ours", tmp_path / "theirs")


@pytest.mark.parametrize("changed", [{"norm_topk_prob": False}, {"decoder_sparse_step": 2}, {"mlp_only_layers": [0]}])
def test_what_cannot_be_computed_here_is_refused_by_name(tmp_path: Path, changed: dict[str, Any]) -> None:
    ours(tmp_path / "ours", "qwen3_moe")
    export_hf(tmp_path / "ours", tmp_path / "theirs")
    path = tmp_path / "theirs" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    with pytest.raises(ArtifactError, match=next(iter(changed))):
        import_hf(tmp_path / "theirs", tmp_path / "again")


def test_experts_in_an_architecture_without_a_family_are_refused(tmp_path: Path) -> None:
    ours(tmp_path / "ours", "mixtral", layout="reordered")
    with pytest.raises(ConfigError, match="layout='reordered'"):
        export_hf(tmp_path / "ours", tmp_path / "theirs")
