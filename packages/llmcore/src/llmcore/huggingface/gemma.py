"""Gemma: norm weights stored as their distance from 1, embeddings times √width, GEGLU, heads as wide as they like."""

import math

from llmcore.huggingface.decoder import PARTS, Defaults, Traits, decoder_rules, read_decoder, write_decoder, write_gated
from llmcore.huggingface.family import Family
from llmcore.huggingface.settings import Json, Settings
from llmcore.model.attention import GroupedQuery
from llmcore.model.config import ModelConfig
from llmcore.model.feedforward import GEGLU
from llmcore.model.norms import OffsetRMSNorm

TANH = "gelu_pytorch_tanh"


def read_gemma(hf: Settings) -> ModelConfig:
    bias = hf.flag("attention_bias", False)
    hf.only("hidden_act", TANH, default=TANH)
    hf.only("hidden_activation", TANH, None)
    hf.only("use_bidirectional_attention", None, False)
    return read_decoder(
        hf,
        Defaults(context=8192, kv_heads=16, head_width=256, tied=True),
        Traits(qkv_bias=bias, out_bias=bias),
        feedforward=GEGLU(hidden=hf.size("intermediate_size")),
        norm=OffsetRMSNorm(eps=hf.number("rms_norm_eps", 1e-6)),
        embedding_scale=math.sqrt(hf.size("hidden_size")),
    )


def write_gemma(config: ModelConfig) -> Json:
    assert isinstance(config.attention, GroupedQuery)
    activation = {"hidden_activation": TANH, "attention_bias": config.attention.qkv_bias}
    return {**write_decoder(config), **write_gated(config, TANH), **activation}


GEMMA = Family(
    "gemma",
    "Gemma",
    {**PARTS, "norm": "rmsnorm_offset", "feedforward": "geglu"},
    read=read_gemma,
    write=write_gemma,
    rules=decoder_rules,
)
