"""Training steps of a mixture of experts that uses as many weights per token as the dense shape."""

import argparse

import bench_train
from llama_shape import Figures


def add_options(parser: argparse.ArgumentParser) -> None:
    bench_train.add_options(parser)
    parser.add_argument("--experts", type=int, default=8, help="experts of a layer; default 8")
    parser.add_argument("--top-k", type=int, default=2, help="experts that serve a token; default 2")
    parser.add_argument("--expert-ffn", type=int, default=344, help="hidden width of an expert; default 344")


def measure(options: argparse.Namespace) -> Figures:
    experts = {
        "kind": "moe",
        "experts": options.experts,
        "active": options.top_k,
        "hidden": options.expert_ffn,
    }
    figures = bench_train.measure_steps(options, ffn=options.top_k * options.expert_ffn, feedforward=experts)
    return {**figures, "experts": options.experts, "top_k": options.top_k, "expert_ffn": options.expert_ffn}
