"""Mixtral and Qwen 3 MoE, both ways; offered to llmcore by entry point.

Experts are stacked here and one by one there: gate, up and down of expert e are slices of our two tensors.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from llmcore.huggingface.decoder import (
    PARTS,
    Defaults,
    Traits,
    decoder_rules,
    read_decoder,
    read_window,
    write_decoder,
    write_window,
)
from llmcore.huggingface.family import Family
from llmcore.huggingface.keys import Rule, same
from llmcore.huggingface.settings import Json, Settings
from llmcore.model.attention import GroupedQuery
from llmcore.model.config import ModelConfig
from llmmoe.config import MoE

MOE_PARTS = {**PARTS, "feedforward": "moe"}
TRAINING_ONLY = frozenset({"feedforward.balance", "feedforward.z_loss"})


def read_mixtral(hf: Settings) -> ModelConfig:
    hf.only("hidden_act", "silu", default="silu")
    experts = MoE(
        experts=hf.size("num_local_experts", 8),
        active=hf.size("num_experts_per_tok", 2),
        hidden=hf.size("intermediate_size"),
        balance=hf.number("router_aux_loss_coef", 0.001),
    )
    defaults = Defaults(context=131_072, kv_heads=8, eps=1e-5, rope_base=1e6)
    return read_decoder(hf, defaults, Traits(window=hf.optional_size("sliding_window")), feedforward=experts)


def write_mixtral(config: ModelConfig) -> Json:
    attention, moe = config.attention, config.feedforward
    assert isinstance(attention, GroupedQuery) and isinstance(moe, MoE)
    return {
        **write_decoder(config),
        "intermediate_size": moe.hidden_width(config.width),
        "hidden_act": "silu",
        "num_local_experts": moe.experts,
        "num_experts_per_tok": moe.active,
        "router_aux_loss_coef": moe.balance,
        "router_jitter_noise": 0.0,
        "sliding_window": attention.window,
    }


def mixtral_rules(config: ModelConfig) -> list[Rule]:
    return decoder_rules(config, feedforward=moe_rules(config, "block_sparse_moe", names=("w1", "w3", "w2")))


def read_qwen3_moe(hf: Settings) -> ModelConfig:
    hf.only("hidden_act", "silu", default="silu")
    hf.only("norm_topk_prob", True, default=False)
    hf.only("decoder_sparse_step", 1, default=1)
    hf.only("mlp_only_layers", [], None)
    bias = hf.flag("attention_bias", False)
    experts = MoE(
        experts=hf.size("num_experts", hf.size("num_local_experts", 128)),
        active=hf.size("num_experts_per_tok", 8),
        hidden=hf.size("moe_intermediate_size", 768),
        balance=hf.number("router_aux_loss_coef", 0.001),
    )
    traits = Traits(qkv_bias=bias, out_bias=bias, qk_norm="head", window=read_window(hf))
    return read_decoder(hf, Defaults(context=32_768, kv_heads=4), traits, feedforward=experts)


def write_qwen3_moe(config: ModelConfig) -> Json:
    attention, moe = config.attention, config.feedforward
    assert isinstance(attention, GroupedQuery) and isinstance(moe, MoE)
    return {
        **write_decoder(config),
        **write_window(config),
        "attention_bias": attention.qkv_bias,
        "intermediate_size": moe.hidden_width(config.width),
        "moe_intermediate_size": moe.hidden_width(config.width),
        "hidden_act": "silu",
        "num_experts": moe.experts,
        "num_experts_per_tok": moe.active,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "router_aux_loss_coef": moe.balance,
    }


def qwen3_moe_rules(config: ModelConfig) -> list[Rule]:
    names = ("gate_proj", "up_proj", "down_proj")
    return decoder_rules(config, feedforward=moe_rules(config, "mlp", names=names))


def moe_rules(config: ModelConfig, theirs: str, *, names: tuple[str, str, str]) -> list[Rule]:
    """Router and experts of one block; `names` are theirs of gate, up and down."""
    assert isinstance(config.feedforward, MoE)
    count = config.feedforward.experts
    gate, up, down = names
    experts = f"{theirs}.experts"
    pairs = tuple(f"{experts}.{e}.{name}.weight" for e in range(count) for name in (gate, up))
    downs = tuple(f"{experts}.{e}.{down}.weight" for e in range(count))
    return [
        same("feedforward.router.weight", f"{theirs}.gate.weight"),
        Rule("feedforward.experts.gate_up", pairs, join_pairs, split_pairs),
        Rule("feedforward.experts.down", downs, lambda parts: torch.stack(list(parts)), split_experts),
    ]


def join_pairs(parts: Sequence[Tensor]) -> Tensor:
    """Gate and up of each expert in turn, (H, D) each -> (E, 2·H, D)."""
    return torch.stack([torch.cat(list(pair)) for pair in zip(parts[::2], parts[1::2], strict=True)])


def split_pairs(stacked: Tensor) -> list[Tensor]:
    """The other way round."""
    return [half.contiguous() for expert in stacked.unbind() for half in expert.chunk(2)]


def split_experts(stacked: Tensor) -> list[Tensor]:
    """(E, …) -> E tensors, each with memory of its own."""
    return [expert.clone() for expert in stacked.unbind()]


MIXTRAL = Family(
    "mixtral",
    "Mixtral",
    MOE_PARTS,
    read=read_mixtral,
    write=write_mixtral,
    rules=mixtral_rules,
    training_only=TRAINING_ONLY,
)
QWEN3_MOE = Family(
    "qwen3_moe",
    "Qwen3Moe",
    MOE_PARTS,
    read=read_qwen3_moe,
    write=write_qwen3_moe,
    rules=qwen3_moe_rules,
    training_only=TRAINING_ONLY,
)
