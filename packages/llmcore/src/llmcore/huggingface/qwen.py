"""Qwen 2 (queries, keys and values have biases) and Qwen 3 (queries and keys are normalised in each head)."""

from llmcore.huggingface.decoder import (
    PARTS,
    Defaults,
    Traits,
    decoder_rules,
    read_decoder,
    read_window,
    write_decoder,
    write_gated,
    write_window,
)
from llmcore.huggingface.family import Family
from llmcore.huggingface.settings import Json, Settings
from llmcore.model.attention import GroupedQuery
from llmcore.model.config import ModelConfig

QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def read_qwen2(hf: Settings) -> ModelConfig:
    defaults = Defaults(context=32_768, kv_heads=32)
    return read_decoder(hf, defaults, Traits(qkv_bias=True, window=read_window(hf)))


def write_qwen2(config: ModelConfig) -> Json:
    return {**write_decoder(config), **write_gated(config), **write_window(config)}


def read_qwen3(hf: Settings) -> ModelConfig:
    bias = hf.flag("attention_bias", False)
    defaults = Defaults(context=32_768, kv_heads=32, head_width=128)
    return read_decoder(hf, defaults, Traits(qkv_bias=bias, out_bias=bias, qk_norm="head", window=read_window(hf)))


def write_qwen3(config: ModelConfig) -> Json:
    assert isinstance(config.attention, GroupedQuery)
    return {**write_qwen2(config), "attention_bias": config.attention.qkv_bias}


def is_qwen_tokenizer(document: Json) -> bool:
    """transformers 5 takes vocabulary and merges from a qwen2 folder, and always puts these steps around them."""
    model = document.get("model") or {}
    steps = [document.get(name) for name in ("normalizer", "pre_tokenizer", "decoder")]
    normalizer, pre, decoder = (step if isinstance(step, dict) else {} for step in steps)
    parts = pre.get("pretokenizers") or [{}]
    return (
        model.get("type") == "BPE"
        and not any(model.get(name) for name in ("unk_token", "byte_fallback", "ignore_merges", "end_of_word_suffix"))
        and normalizer.get("type") == "NFC"
        and [part.get("type") for part in parts] == ["Split", "ByteLevel"]
        and (parts[0].get("pattern"), parts[0].get("behavior")) == ({"Regex": QWEN_SPLIT}, "Isolated")
        and not parts[1].get("add_prefix_space")
        and not parts[1].get("use_regex")
        and decoder.get("type") == "ByteLevel"
    )


QWEN2 = Family(
    "qwen2",
    "Qwen2",
    PARTS,
    read=read_qwen2,
    write=write_qwen2,
    rules=decoder_rules,
    takes_tokenizer=is_qwen_tokenizer,
)
QWEN3 = Family("qwen3", "Qwen3", PARTS, read=read_qwen3, write=write_qwen3, rules=decoder_rules)
