"""GPT-2: learned positions, LayerNorm, biases everywhere, and matrices stored inputs first (its Conv1D)."""

from llmcore.huggingface.family import Family
from llmcore.huggingface.keys import Rule, below, same, transposed
from llmcore.huggingface.settings import Json, Settings
from llmcore.model.attention import GroupedQuery
from llmcore.model.config import ModelConfig
from llmcore.model.feedforward import GELU
from llmcore.model.norms import LayerNorm
from llmcore.model.positions import Learned

TANH = ("gelu_new", "gelu_pytorch_tanh")


def read_gpt2(hf: Settings) -> ModelConfig:
    width, heads = hf.size("n_embd", 768), hf.size("n_head", 12)
    hf.only("activation_function", *TANH, "gelu", default="gelu_new")
    hf.only("scale_attn_by_inverse_layer_idx", False, default=False)
    hf.only("add_cross_attention", False, default=False)
    exact = hf.text("activation_function", "gelu_new") == "gelu"
    scale = None if hf.flag("scale_attn_weights", True) else 1.0
    return ModelConfig(
        vocab_size=hf.size("vocab_size", 50_257),
        width=width,
        depth=hf.size("n_layer", 12),
        context=hf.size("n_positions", 1024),
        attention=GroupedQuery(heads=heads, kv_heads=heads, qkv_bias=True, out_bias=True, scale=scale),
        positions=Learned(),
        norm=LayerNorm(eps=hf.number("layer_norm_epsilon", 1e-5)),
        feedforward=GELU(hidden=hf.size("n_inner", 4 * width), bias=True, exact=exact),
        tie_embeddings=hf.flag("tie_word_embeddings", True),
    )


def write_gpt2(config: ModelConfig) -> Json:
    attention, norm, feedforward = config.attention, config.norm, config.feedforward
    assert isinstance(attention, GroupedQuery) and isinstance(norm, LayerNorm) and isinstance(feedforward, GELU)
    return {
        "n_embd": config.width,
        "n_layer": config.depth,
        "n_head": attention.heads,
        "n_positions": config.context,
        "n_inner": feedforward.hidden_width(config.width),
        "activation_function": "gelu" if feedforward.exact else "gelu_new",
        "layer_norm_epsilon": norm.eps,
        "scale_attn_weights": attention.scale is None or attention.scale != 1.0,
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": attention.dropout,
        "initializer_range": config.initial_std,
        "tie_word_embeddings": config.tie_embeddings,
    }


def gpt2_rules(config: ModelConfig) -> list[Rule]:
    projections = {
        "attention.qkv": "attn.c_attn",
        "attention.out": "attn.c_proj",
        "feedforward.up": "mlp.c_fc",
        "feedforward.down": "mlp.c_proj",
    }
    block = [transposed(f"{ours}.weight", f"{theirs}.weight") for ours, theirs in projections.items()]
    block += [same(f"{ours}.bias", f"{theirs}.bias") for ours, theirs in projections.items()]
    block += norm_rules("attention_norm", "ln_1") + norm_rules("feedforward_norm", "ln_2")
    rules = [same("embedding.weight", "transformer.wte.weight"), same("positions.weight", "transformer.wpe.weight")]
    rules += norm_rules("final_norm", "transformer.ln_f")
    for layer in range(config.depth):
        rules += below(f"blocks.{layer}.", f"transformer.h.{layer}.", block)
    return rules


def norm_rules(ours: str, theirs: str) -> list[Rule]:
    return [same(f"{ours}.{part}", f"{theirs}.{part}") for part in ("weight", "bias")]


def is_causal_mask(name: str) -> bool:
    """Old files hold the causal mask of each layer as a tensor."""
    return name.endswith((".attn.bias", ".attn.masked_bias"))


GPT2 = Family(
    "gpt2",
    "GPT2",
    {"attention": "gqa", "positions": "learned", "norm": "layernorm", "feedforward": "gelu"},
    read=read_gpt2,
    write=write_gpt2,
    rules=gpt2_rules,
    causal="LMHeadModel",
    prefix="transformer.",
    ignored=is_causal_mask,
)
