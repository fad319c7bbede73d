"""Sampling at temperature 1 with a KV cache: a new random prompt each time, no early stop."""

import argparse
import statistics
from functools import partial

from llama_shape import Figures, model_config
from stopwatch import timed


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch", type=int, default=1, help="rows; default 1")
    parser.add_argument("--prompt", type=int, default=64, help="tokens of each prompt; default 64")
    parser.add_argument("--new", type=int, default=256, help="new tokens of each row; default 256")
    parser.add_argument("--runs", type=int, default=5, help="timed runs, after two that are not; default 5")
    parser.add_argument("--compile", action="store_true", help="a compiled step; first_run_s has its compilation")
    parser.add_argument("--greedy", action="store_true", help="the best token instead of sampling")


def measure(options: argparse.Namespace) -> Figures:
    import torch

    from llmcore.generate.engine import generate
    from llmcore.generate.sampling import Sampling
    from llmcore.train.device import place, resolve

    model = model_config(options, context=options.prompt + options.new).build(seed=options.seed).eval()
    place(model, resolve("cpu", options.dtype))
    sampling = Sampling(max_new_tokens=options.new, temperature=0.0 if options.greedy else 1.0)
    times: list[float] = []
    for _ in range(options.runs + 2):
        prompts = torch.randint(0, options.vocab, (options.batch, options.prompt)).tolist()
        elapsed, samples = timed(partial(generate, model, prompts, sampling, stop_ids=(), compiled=options.compile))
        assert all(len(sample.ids) == options.new for [sample] in samples)
        times.append(elapsed)
    middle = statistics.median(times[2:])
    tokens = options.batch * options.new
    return {
        "metric": "tokens_per_s",
        "tokens_per_s": round(tokens / middle, 1),
        "best_tokens_per_s": round(tokens / min(times[2:]), 1),
        "ms_per_token_step": round(middle / options.new * 1e3, 3),
        "compile": options.compile,
        "first_run_s": round(times[0], 2),
        "prompt": options.prompt,
        "new": options.new,
    }
