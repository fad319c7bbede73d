"""What an architecture costs: weights by module, floating-point operations and cache bytes per token."""

import torch
from torch import nn

from llmcore.model.config import ModelConfig
from llmcore.model.transformer import Transformer


def parameters_by_module(model: nn.Module, *, levels: int = 1) -> dict[str, int]:
    """Number of weights below each module, by the first `levels` parts of its name; blocks are numbered."""
    counts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        depth = levels + 1 if parts[0] == "blocks" else levels
        key = ".".join(parts[:-1][:depth])
        counts[key] = counts.get(key, 0) + parameter.numel()
    return counts


def count_parameters(model: nn.Module) -> int:
    """All weights, a tied one once."""
    return sum(parameter.numel() for parameter in model.parameters())


def skeleton(config: ModelConfig) -> Transformer:
    """The model without memory for its weights, to be counted."""
    with torch.device("meta"):
        return Transformer(config)


def flops_per_token(model: Transformer, *, context: int | None = None) -> int:
    """Training cost of a token: 6 for each weight it is multiplied with, and the attention of `context` tokens.

    Forward 2, backward 4 (Kaplan et al. 2020). Scores and mixing are products with each token that is seen; a causal
    token sees half of the context on average. The embedding lookup costs nothing; as a tied head its table does.
    Of a mixture of experts only the active ones count: `inactive_parameters` of the module are left out.
    """
    config = model.config
    tokens = context or config.context
    sight = config.attention.sight()
    seen = min(tokens, sight.window or tokens) / (2 if sight.causal and sight.window is None else 1)
    weights = sum(p.numel() for p in model.parameters() if p.dim() >= 2) - idle_parameters(model)
    attention = config.depth * config.attention.products(config.width) * seen
    return int(6 * (weights + attention))


def idle_parameters(model: Transformer) -> int:
    """Weights that a token is not multiplied with: lookup tables, and experts it is not sent to."""
    idle = 0 if model.head is None else model.embedding.weight.numel()
    for name, parameter in model.positions.named_parameters():
        idle += parameter.numel() if name == "weight" else 0
    return idle + sum(int(getattr(module, "inactive_parameters", 0)) for module in model.modules())


def cache_bytes_per_token(config: ModelConfig, dtype: torch.dtype = torch.float32) -> int:
    """What all layers keep of one token."""
    return config.depth * config.attention.cache_shape(config.width).numbers * dtype.itemsize


def cache_tokens(config: ModelConfig) -> int:
    """The most tokens of a sequence that a cache keeps: a window and its sinks, or the context."""
    sight = config.attention.sight()
    return config.context if sight.window is None else min(sight.window + sight.sinks, config.context)
