"""Models from and to Hugging Face folders, against transformers: the same weights give the same scores."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hf_oracle import VOCABULARY, same_function, same_rewards_here, same_rewards_there, some_ids
from llmcore.checkpoint import load_checkpoint, save_model
from llmcore.errors import ArtifactError, ConfigError, LLMError
from llmcore.huggingface.qwen import QWEN_SPLIT
from llmcore.huggingface.reading import import_hf, read_hf
from llmcore.huggingface.writing import export_hf
from llmcore.manifest import write_manifest
from llmcore.model.config import ModelConfig
from llmcore.model.transformer import Transformer
from llmcore.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")

CONTEXT = 64
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN_ROPE = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
# Which class, and what is special about the case.
THEIRS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": (
        "GPT2",
        {"vocab_size": VOCABULARY, "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT, "eos_token_id": 2},
    ),
    "gpt2-untied": (
        "GPT2",
        {
            "vocab_size": VOCABULARY,
            "n_embd": 48,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": CONTEXT,
            "tie_word_embeddings": False,
            "activation_function": "gelu",
            "scale_attn_weights": False,
            "eos_token_id": 2,
        },
    ),
    "llama2": ("Llama", {**SIZES, "num_key_value_heads": 4}),
    "llama3": ("Llama", {**SIZES, "rope_parameters": LLAMA3_ROPE, "tie_word_embeddings": True}),
    "llama-biases": ("Llama", {**SIZES, "attention_bias": True, "mlp_bias": True, "head_dim": 16}),
    "llama-linear": ("Llama", {**SIZES, "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}),
    "mistral": ("Mistral", {**SIZES, "sliding_window": 7}),
    "mistral-full": ("Mistral", {**SIZES, "sliding_window": None}),
    "qwen2": ("Qwen2", {**SIZES, "tie_word_embeddings": True}),
    "qwen2-window": ("Qwen2", {**SIZES, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 0}),
    "qwen3": ("Qwen3", {**SIZES, "head_dim": 20}),
    "qwen3-yarn": ("Qwen3", {**SIZES, "rope_parameters": YARN_ROPE}),
    "olmo2": ("Olmo2", {**SIZES}),
    "gemma": ("Gemma", {**SIZES, "head_dim": 24, "num_key_value_heads": 1}),
}
OURS: dict[str, dict[str, Any]] = {
    "default": {},
    "untied-llama3": {
        "tie_embeddings": False,
        "positions": {
            "base": 500.0,
            "scaling": {"kind": "llama3", "factor": 4.0, "original_context": 32, "low": 1.0, "high": 4.0},
        },
    },
    "ntk": {"positions": {"scaling": {"kind": "ntk", "factor": 4.0}}},
    "linear": {"positions": {"scaling": {"kind": "linear", "factor": 2.0}}},
    "yarn": {"positions": {"scaling": {"kind": "yarn", "factor": 4.0, "original_context": 16}}},
    "biases": {
        "attention": {"heads": 4, "kv_heads": 2, "qkv_bias": True, "out_bias": True, "head_width": 20},
        "feedforward": {"kind": "swiglu", "bias": True},
    },
    "mistral": {"attention": {"heads": 4, "kv_heads": 2, "window": 7}},
    "qwen2": {"attention": {"heads": 4, "kv_heads": 2, "qkv_bias": True}},
    "qwen2-window": {"attention": {"heads": 4, "kv_heads": 2, "qkv_bias": True, "window": 5}},
    "qwen3": {"attention": {"heads": 4, "kv_heads": 1, "qk_norm": "head"}},
    "olmo2": {"layout": "reordered", "attention": {"heads": 4, "kv_heads": 2, "qk_norm": "width"}},
    "gemma": {
        "norm": {"kind": "rmsnorm_offset", "eps": 1e-5},
        "feedforward": {"kind": "geglu", "hidden": 64},
        "embedding_scale": 48**0.5,
        "attention": {"heads": 4, "kv_heads": 1, "head_width": 24},
    },
    "gpt2": {
        "norm": "layernorm",
        "positions": "learned",
        "feedforward": {"kind": "gelu", "bias": True},
        "attention": {"heads": 4, "kv_heads": 4, "qkv_bias": True, "out_bias": True},
    },
}


def qwen_like() -> Tokenizer:
    """A byte-level BPE tokenizer with Qwen's steps around it: transformers takes no others for qwen2."""
    trained = Tokenizer.train_bpe(["the king and the queen of the kingdom"] * 5, 290)
    document = json.loads(trained.files()["tokenizer.json"])
    document["normalizer"] = {"type": "NFC"}
    document["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": QWEN_SPLIT}
    return Tokenizer(json.dumps(document).encode())


def tokenizer_folder(folder: Path) -> Path:
    """A tokenizer as published models have it."""
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_bytes(qwen_like().files()["tokenizer.json"])
    table = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>", "pad_token": "<|pad|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(table))
    return folder


def randomise(model: torch.nn.Module, seed: int = 0) -> None:
    """Weights that leave nothing at its neutral first value: norms, biases and all."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            spread = 0.3 if "norm" in name or "ln_" in name or name.endswith("bias") else 0.08
            centre = 1.0 if spread == 0.3 and name.endswith("weight") and "Offset" not in type(model).__name__ else 0.0
            parameter.copy_(centre + spread * noise)


def theirs(folder: Path, case: str, task: str = "CausalLM", **settings: Any) -> Any:
    """A tiny random model of transformers, saved into a folder with a tokenizer."""
    name, values = THEIRS[case]
    config = getattr(transformers, f"{name}Config")(**{**values, **settings})
    model = getattr(transformers, f"AutoModelFor{task}").from_config(config).eval()
    randomise(model)
    model.save_pretrained(folder)
    tokenizer_folder(folder)
    return model


def ours(folder: Path, case: str, **settings: Any) -> Transformer:
    """A tiny random model of ours, saved as a checkpoint."""
    tokenizer = qwen_like()
    sizes = {"vocab_size": VOCABULARY, "width": 48, "depth": 2, "context": CONTEXT}
    sizes |= {"attention": {"heads": 4, "kv_heads": 2}}
    model = ModelConfig.model_validate({**sizes, **OURS[case], **settings}).build(seed=1).eval()
    randomise(model)
    folder.mkdir()
    kind = "reward" if model.config.head == "scalar" else "policy"
    write_manifest(folder, kind=kind, made_by="test", config={}, files=save_model(folder, model, tokenizer))
    return model


@pytest.mark.parametrize("case", THEIRS)
def test_their_model_computes_the_same_here(tmp_path: Path, case: str) -> None:
    reference = theirs(tmp_path / "theirs", case)
    manifest = import_hf(tmp_path / "theirs", tmp_path / "ours")
    assert manifest.kind == "policy" and manifest.made_by == "llmcore import hf"
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= manifest.parents["source"].files.keys()
    same_function(load_checkpoint(tmp_path / "ours").model, reference)


@pytest.mark.parametrize("case", OURS)
def test_our_model_computes_the_same_there(tmp_path: Path, case: str) -> None:
    model = ours(tmp_path / "ours", case)
    export_hf(tmp_path / "ours", tmp_path / "theirs", check=True)
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "theirs").eval()
    assert not hasattr(reference, "quantization_config") and reference.dtype == torch.float32
    same_function(model, reference)


VARIANTS = {"gpt2-untied", "llama-biases", "llama-linear", "mistral-full", "qwen2-window", "qwen3-yarn"}


@pytest.mark.parametrize("case", [pytest.param(c, marks=[pytest.mark.slow] if c in VARIANTS else []) for c in THEIRS])
def test_a_round_trip_keeps_every_bit(tmp_path: Path, case: str) -> None:
    theirs(tmp_path / "theirs", case)
    import_hf(tmp_path / "theirs", tmp_path / "ours")
    export_hf(tmp_path / "ours", tmp_path / "again", check=True)
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "again"))
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    import_hf(tmp_path / "again", tmp_path / "twice")
    ours_before, ours_after = (load_checkpoint(tmp_path / name) for name in ("ours", "twice"))
    assert ours_before.tokenizer.sha256 == ours_after.tokenizer.sha256
    assert torch.equal(ours_before.model(some_ids(CONTEXT)), ours_after.model(some_ids(CONTEXT)))


@pytest.mark.parametrize("case", ["gpt2", "llama3", "mistral", "qwen2", "qwen3", "olmo2", "gemma"])
def test_their_reward_model_scores_the_same_here(tmp_path: Path, case: str) -> None:
    reference = theirs(tmp_path / "theirs", case, "SequenceClassification", num_labels=1, pad_token_id=0)
    same_rewards_here(reference, tmp_path / "theirs", tmp_path / "ours")


@pytest.mark.parametrize("case", ["default", "untied-llama3", "mistral", "qwen2", "qwen3", "olmo2", "gemma", "gpt2"])
def test_our_reward_model_scores_the_same_there(tmp_path: Path, case: str) -> None:
    same_rewards_there(ours(tmp_path / "ours", case, head="scalar"), tmp_path / "ours", tmp_path / "theirs")


def test_a_classifier_of_several_labels_is_refused(tmp_path: Path) -> None:
    theirs(tmp_path / "theirs", "llama2", "SequenceClassification", num_labels=3, pad_token_id=0)
    with pytest.raises(ArtifactError, match="3 labels"):
        import_hf(tmp_path / "theirs", tmp_path / "ours")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_files_become_float32_exactly(tmp_path: Path, dtype: torch.dtype) -> None:
    reference = theirs(tmp_path / "theirs", "llama3")
    reference.to(dtype).save_pretrained(tmp_path / "theirs")
    # Loaded anew: casting a model of transformers also rounds its rotary frequencies.
    folder = tmp_path / "theirs"
    same_function(read_hf(folder).model, transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))


def test_files_in_shards_are_read_and_written(tmp_path: Path) -> None:
    reference = theirs(tmp_path / "theirs", "qwen3")
    (tmp_path / "theirs" / "model.safetensors").unlink()
    reference.save_pretrained(tmp_path / "theirs", max_shard_size="60KB")
    assert (tmp_path / "theirs" / "model.safetensors.index.json").exists()
    import_hf(tmp_path / "theirs", tmp_path / "ours")
    same_function(load_checkpoint(tmp_path / "ours").model, reference)
    export_hf(tmp_path / "ours", tmp_path / "again", check=True, shard_bytes=60_000)
    shards = sorted((tmp_path / "again").glob("model-*.safetensors"))
    assert len(shards) > 3 and all(path.stat().st_size < 70_000 for path in shards)
    same_function(
        load_checkpoint(tmp_path / "ours").model,
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "again").eval(),
    )


def test_files_of_a_bare_base_model_are_read(tmp_path: Path) -> None:
    reference = theirs(tmp_path / "theirs", "gpt2")
    reference.transformer.save_pretrained(tmp_path / "theirs")
    assert "wte.weight" in load_file(tmp_path / "theirs" / "model.safetensors")
    same_function(read_hf(tmp_path / "theirs").model, reference)


@pytest.mark.parametrize("case", ["llama3", "gpt2"])
def test_a_shorter_context_is_the_same_model(tmp_path: Path, case: str) -> None:
    theirs(tmp_path / "theirs", case)
    whole, short = read_hf(tmp_path / "theirs").model, read_hf(tmp_path / "theirs", context=16).model
    assert short.config.context == 16
    assert torch.equal(short(some_ids(CONTEXT)[:, :16]), whole(some_ids(CONTEXT)[:, :16]))
    with pytest.raises(ConfigError, match="--context 65"):
        read_hf(tmp_path / "theirs", context=65)


@pytest.mark.parametrize(
    ("case", "changed", "named"),
    [
        ("llama2", {"hidden_act": "relu"}, "hidden_act='relu'"),
        ("llama2", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "'dynamic'"),
        ("llama2", {"quantization_config": {"bits": 4}}, "quantization_config"),
        ("llama2", {"num_hidden_layers": 3}, "missing .*model.layers.2"),
        ("llama2", {"num_hidden_layers": 1}, "unexpected .*model.layers.1"),
        ("llama2", {"hidden_size": 64}, "architecture wants"),
        ("llama2", {"num_key_value_heads": 3}, "multiple of kv_heads"),
        ("llama2", {"num_attention_heads": "four"}, "num_attention_heads='four'"),
        ("llama2", {"model_type": "lama"}, "the nearest is 'llama'"),
        ("llama2", {"model_type": "bert"}, "model_type 'bert'"),
        ("llama2", {"vocab_size": 200}, "the tokenizer has"),
        ("qwen2-window", {"max_window_layers": 1, "layer_types": None}, "layer_types"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
    ],
)
def test_what_cannot_be_computed_here_is_refused_by_name(
    tmp_path: Path, case: str, changed: dict[str, Any], named: str
) -> None:
    theirs(tmp_path / "theirs", case)
    path = tmp_path / "theirs" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    with pytest.raises(LLMError, match=named):
        import_hf(tmp_path / "theirs", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_config_of_transformers_4_is_read(tmp_path: Path) -> None:
    reference = theirs(tmp_path / "theirs", "llama3")
    path = tmp_path / "theirs" / "config.json"
    table = json.loads(path.read_text())
    rope = table.pop("rope_parameters")
    table |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope, "torch_dtype": table.pop("dtype")}
    path.write_text(json.dumps(table))
    same_function(read_hf(tmp_path / "theirs").model, reference)
