"""Models from and to Hugging Face folders, against transformers: the same weights give the same scores."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from llmcore.checkpoint import load_checkpoint, save_model
from llmcore.huggingface.reading import import_hf
from llmcore.huggingface.writing import export_hf
from llmcore.manifest import write_manifest
from llmcore.model.config import ModelConfig
from llmcore.model.transformer import Transformer
from llmcore.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")

VOCABULARY = 300
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


def tokenizer_folder(folder: Path) -> Path:
    """A byte-level BPE tokenizer as published models have it."""
    tokenizer = Tokenizer.train_bpe(["the king and the queen of the kingdom"] * 5, 290)
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_bytes(tokenizer.files()["tokenizer.json"])
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
    model = getattr(transformers, f"{name}For{task}")(config).eval()
    randomise(model)
    model.save_pretrained(folder)
    tokenizer_folder(folder)
    return model


def ours(folder: Path, case: str, **settings: Any) -> Transformer:
    """A tiny random model of ours, saved as a checkpoint."""
    tokenizer = Tokenizer.train_bpe(["the king and the queen of the kingdom"] * 5, 290)
    sizes = {"vocab_size": VOCABULARY, "width": 48, "depth": 2, "context": CONTEXT}
    sizes |= {"attention": {"heads": 4, "kv_heads": 2}}
    model = ModelConfig.model_validate({**sizes, **OURS[case], **settings}).build(seed=1).eval()
    randomise(model)
    folder.mkdir()
    kind = "reward" if model.config.head == "scalar" else "policy"
    write_manifest(folder, kind=kind, made_by="test", config={}, files=save_model(folder, model, tokenizer))
    return model


def some_ids() -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (2, CONTEXT), generator=torch.Generator().manual_seed(5))


def greedy(scores: Any, prompt: torch.Tensor, count: int) -> list[list[int]]:
    """Continue by the likeliest token, each from a whole forward."""
    ids = prompt
    for _ in range(count):
        ids = torch.cat([ids, scores(ids)[:, -1].argmax(-1, keepdim=True)], dim=1)
    return ids.tolist()


def same_function(model: Transformer, reference: Any) -> None:
    """Logits within 1e-4, greedy continuations identical."""
    with torch.no_grad():
        ids = some_ids()
        difference = (model(ids) - reference(ids).logits).abs().max()
        assert difference < 1e-4
        prompt = ids[:, :9]
        assert greedy(model, prompt, 20) == greedy(lambda x: reference(x).logits, prompt, 20)


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
