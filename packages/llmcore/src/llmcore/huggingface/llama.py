"""Llama 2 and 3, and Mistral, which is Llama with a sliding window."""

from llmcore.huggingface.decoder import (
    PARTS,
    Defaults,
    Traits,
    decoder_rules,
    read_decoder,
    read_swiglu,
    write_decoder,
    write_gated,
)
from llmcore.huggingface.family import Family
from llmcore.huggingface.settings import Json, Settings
from llmcore.model.attention import GroupedQuery
from llmcore.model.config import ModelConfig
from llmcore.model.feedforward import SwiGLU


def read_llama(hf: Settings) -> ModelConfig:
    bias = hf.flag("attention_bias", False)
    feedforward = read_swiglu(hf, bias=hf.flag("mlp_bias", False))
    return read_decoder(hf, Defaults(context=2048), Traits(qkv_bias=bias, out_bias=bias), feedforward=feedforward)


def write_llama(config: ModelConfig) -> Json:
    assert isinstance(config.attention, GroupedQuery) and isinstance(config.feedforward, SwiGLU)
    return {
        **write_decoder(config),
        **write_gated(config),
        "attention_bias": config.attention.qkv_bias,
        "mlp_bias": config.feedforward.bias,
        "pretraining_tp": 1,
    }


def read_mistral(hf: Settings) -> ModelConfig:
    window = hf.optional_size("sliding_window", 4096)
    return read_decoder(hf, Defaults(context=131_072, kv_heads=8), Traits(window=window))


def write_mistral(config: ModelConfig) -> Json:
    assert isinstance(config.attention, GroupedQuery)
    return {**write_decoder(config), **write_gated(config), "sliding_window": config.attention.window}


LLAMA = Family("llama", "Llama", PARTS, read=read_llama, write=write_llama, rules=decoder_rules)
MISTRAL = Family("mistral", "Mistral", PARTS, read=read_mistral, write=write_mistral, rules=decoder_rules)
