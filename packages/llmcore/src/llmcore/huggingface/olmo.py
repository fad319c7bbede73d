"""OLMo 2: norms on what a sublayer puts out, queries and keys normalised over their whole width."""

from llmcore.huggingface.decoder import PARTS, Defaults, Traits, decoder_rules, read_decoder, write_decoder, write_gated
from llmcore.huggingface.family import Family
from llmcore.huggingface.keys import Rule
from llmcore.huggingface.settings import Json, Settings
from llmcore.model.attention import GroupedQuery
from llmcore.model.config import ModelConfig


def read_olmo2(hf: Settings) -> ModelConfig:
    bias = hf.flag("attention_bias", False)
    traits = Traits(qkv_bias=bias, out_bias=bias, qk_norm="width")
    return read_decoder(hf, Defaults(context=2048, eps=1e-5), traits, layout="reordered")


def write_olmo2(config: ModelConfig) -> Json:
    assert isinstance(config.attention, GroupedQuery)
    return {**write_decoder(config), **write_gated(config), "attention_bias": config.attention.qkv_bias}


def olmo2_rules(config: ModelConfig) -> list[Rule]:
    return decoder_rules(config, norms=("post_attention_layernorm", "post_feedforward_layernorm"))


OLMO2 = Family("olmo2", "Olmo2", PARTS, read=read_olmo2, write=write_olmo2, rules=olmo2_rules)
