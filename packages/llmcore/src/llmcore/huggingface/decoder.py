"""What Llama and its relatives share: the sizes in config.json, the projections of a block, the names around them."""

from typing import Literal, NamedTuple

from llmcore.huggingface.keys import Rule, below, fused, same
from llmcore.huggingface.rope import read_rope, write_rope
from llmcore.huggingface.settings import Json, Settings
from llmcore.model.attention import GroupedQuery
from llmcore.model.config import ModelConfig
from llmcore.model.feedforward import FeedForward, Gated, SwiGLU
from llmcore.model.norms import Norm, RMSNorm
from llmcore.model.positions import RoPE

PARTS = {"attention": "gqa", "positions": "rope", "norm": "rmsnorm", "feedforward": "swiglu"}


class Defaults(NamedTuple):
    """What a family's keys are where config.json does not say."""

    context: int
    kv_heads: int | None = None
    head_width: int | None = None
    eps: float = 1e-6
    rope_base: float = 10_000.0
    tied: bool = False


class Traits(NamedTuple):
    """What a model of a family is beyond its sizes."""

    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: Literal["off", "head", "width"] = "off"
    window: int | None = None


def read_decoder(
    hf: Settings,
    defaults: Defaults,
    traits: Traits,
    *,
    feedforward: FeedForward | None = None,
    norm: Norm | None = None,
    layout: Literal["pre", "reordered"] = "pre",
    embedding_scale: float = 1.0,
) -> ModelConfig:
    """The architecture; without `feedforward` and `norm`, SwiGLU and RMSNorm."""
    width, heads = hf.size("hidden_size"), hf.size("num_attention_heads")
    eps = hf.number("rms_norm_eps", defaults.eps)
    attention = GroupedQuery(
        heads=heads,
        kv_heads=hf.size("num_key_value_heads", defaults.kv_heads or heads),
        head_width=hf.optional_size("head_dim", defaults.head_width) or width // heads,
        qk_norm=traits.qk_norm,
        qk_norm_eps=eps,
        qkv_bias=traits.qkv_bias,
        out_bias=traits.out_bias,
        window=traits.window,
    )
    return ModelConfig(
        vocab_size=hf.size("vocab_size"),
        width=width,
        depth=hf.size("num_hidden_layers"),
        context=hf.size("max_position_embeddings", defaults.context),
        attention=attention,
        positions=read_rope(hf, base=defaults.rope_base),
        norm=norm or RMSNorm(eps=eps),
        feedforward=feedforward or read_swiglu(hf),
        layout=layout,
        tie_embeddings=hf.flag("tie_word_embeddings", defaults.tied),
        embedding_scale=embedding_scale,
    )


def read_swiglu(hf: Settings, *, bias: bool = False) -> SwiGLU:
    """The feed-forward of most of them."""
    hf.only("hidden_act", "silu", default="silu")
    return SwiGLU(hidden=hf.size("intermediate_size"), bias=bias)


def read_window(hf: Settings) -> int | None:
    """The sliding window of Qwen models, off by default; one for some of the layers alone is refused."""
    depth = hf.size("num_hidden_layers")
    window = hf.optional_size("sliding_window", 4096) if hf.flag("use_sliding_window", False) else None
    if window is None:
        return None
    kinds = hf.values.get("layer_types")
    if kinds is None:
        first = hf.size("max_window_layers", 28) if hf.values.get("max_window_layers") != 0 else 0
        kinds = ["full_attention" if layer < first else "sliding_attention" for layer in range(depth)]
    if "sliding_attention" not in kinds:
        return None
    Settings(hf.path, {**hf.values, "layer_types": sorted(set(kinds))}).only("layer_types", ["sliding_attention"])
    return window


def write_window(config: ModelConfig) -> Json:
    """The same, said in every key that transformers looks at."""
    attention = config.attention
    assert isinstance(attention, GroupedQuery)
    kind = "full_attention" if attention.window is None else "sliding_attention"
    return {
        "use_sliding_window": attention.window is not None,
        "sliding_window": attention.window,
        "max_window_layers": config.depth if attention.window is None else 0,
        "layer_types": [kind] * config.depth,
    }


def write_decoder(config: ModelConfig) -> Json:
    """Sizes, norm and positions in the words that all of them use."""
    attention, positions = config.attention, config.positions
    assert isinstance(attention, GroupedQuery) and isinstance(positions, RoPE)
    head_width = attention.head_size(config.width)
    return {
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads,
        "head_dim": head_width,
        "max_position_embeddings": config.context,
        "rms_norm_eps": getattr(config.norm, "eps"),  # noqa: B009 - of either kind of RMSNorm
        **write_rope(positions, head_width=head_width),
        "tie_word_embeddings": config.tie_embeddings,
        "initializer_range": config.initial_std,
        "attention_dropout": attention.dropout,
    }


def write_gated(config: ModelConfig, activation: str = "silu") -> Json:
    """The hidden width and activation of a gated feed-forward."""
    assert isinstance(config.feedforward, Gated)
    return {"intermediate_size": config.feedforward.hidden_width(config.width), "hidden_act": activation}


def decoder_rules(
    config: ModelConfig,
    *,
    feedforward: list[Rule] | None = None,
    norms: tuple[str, str] = ("input_layernorm", "post_attention_layernorm"),
) -> list[Rule]:
    """Everything below the head; `norms` are their names of our attention's and our feed-forward's norm."""
    block = [
        *below("attention.", "self_attn.", attention_rules(config)),
        same("attention_norm.weight", f"{norms[0]}.weight"),
        same("feedforward_norm.weight", f"{norms[1]}.weight"),
        *(below("feedforward.", "mlp.", gated_rules(config)) if feedforward is None else feedforward),
    ]
    rules = [same("embedding.weight", "model.embed_tokens.weight"), same("final_norm.weight", "model.norm.weight")]
    for layer in range(config.depth):
        rules += below(f"blocks.{layer}.", f"model.layers.{layer}.", block)
    return rules


def attention_rules(config: ModelConfig) -> list[Rule]:
    """Queries, keys and values are one matrix of ours."""
    attention = config.attention
    assert isinstance(attention, GroupedQuery)
    head_width = attention.head_size(config.width)
    sizes = [heads * head_width for heads in (attention.heads, attention.kv_heads, attention.kv_heads)]
    rules = [fused("qkv.weight", [f"{x}_proj.weight" for x in "qkv"], sizes), same("out.weight", "o_proj.weight")]
    if attention.qkv_bias:
        rules.append(fused("qkv.bias", [f"{x}_proj.bias" for x in "qkv"], sizes))
    if attention.out_bias:
        rules.append(same("out.bias", "o_proj.bias"))
    if attention.qk_norm != "off":
        rules += [same("query_norm.weight", "q_norm.weight"), same("key_norm.weight", "k_norm.weight")]
    return rules


def gated_rules(config: ModelConfig) -> list[Rule]:
    """Gate and up are one matrix of ours."""
    feedforward = config.feedforward
    assert isinstance(feedforward, Gated)
    sizes = [feedforward.hidden_width(config.width)] * 2
    rules = [fused("gate_up.weight", ["gate_proj.weight", "up_proj.weight"], sizes)]
    rules.append(same("down.weight", "down_proj.weight"))
    if feedforward.bias:
        rules.append(fused("gate_up.bias", ["gate_proj.bias", "up_proj.bias"], sizes))
        rules.append(same("down.bias", "down_proj.bias"))
    return rules
