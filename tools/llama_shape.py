"""The model that every benchmark subject measures, as options and as a ModelConfig: the peers' Llama shape."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmcore.model.config import ModelConfig

Figures = dict[str, object]
"""What a subject adds to the line."""

SHAPE = {"layers": 8, "dim": 256, "heads": 4, "ffn": 688, "vocab": 256, "seq": 256}


def add_shape(parser: argparse.ArgumentParser) -> None:
    """The sizes and the precision."""
    for name, size in SHAPE.items():
        parser.add_argument(f"--{name}", type=int, default=size, help=f"default {size}")
    parser.add_argument("--kv-heads", type=int, help="key and value heads; as many as heads if absent")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="what activations are held in")


def model_config(
    options: argparse.Namespace, *, context: int, feedforward: dict[str, object] | None = None
) -> "ModelConfig":
    """Untied head, RMSNorm, RoPE, and SwiGLU unless another feed-forward is given."""
    from llmcore.model.config import ModelConfig

    return ModelConfig.model_validate(
        {
            "vocab_size": options.vocab,
            "width": options.dim,
            "depth": options.layers,
            "context": context,
            "tie_embeddings": False,
            "attention": {"kind": "gqa", "heads": options.heads, "kv_heads": options.kv_heads or options.heads},
            "feedforward": feedforward or {"kind": "swiglu", "hidden": options.ffn},
        }
    )


def matrix_weights(options: argparse.Namespace, *, ffn: int) -> int:
    """Weights that a token is multiplied with, in a model whose feed-forwards have `ffn` active columns."""
    head_width = options.dim // options.heads
    attention = options.dim * head_width * 2 * (options.heads + (options.kv_heads or options.heads))
    return int(options.layers * (attention + 3 * options.dim * ffn) + options.dim * options.vocab)


def training_flops(options: argparse.Namespace, *, ffn: int) -> int:
    """Floating-point operations of a token's forward and backward, causal attention included."""
    return 6 * matrix_weights(options, ffn=ffn) + 6 * int(options.layers * options.dim * options.seq)
