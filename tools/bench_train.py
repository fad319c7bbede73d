"""Whole optimizer steps as `fit` takes them: forward, loss, backward, clipping, AdamW; a fresh batch for each."""

import argparse
import statistics
from functools import partial

from llama_shape import Figures, model_config, training_flops
from stopwatch import status_mib, timed


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch", type=int, default=8, help="rows; default 8")
    parser.add_argument("--steps", type=int, default=8, help="timed steps; default 8")
    parser.add_argument("--warmup", type=int, default=2, help="steps before them; default 2")
    parser.add_argument("--clip", type=float, default=1.0, help="largest norm of the gradient; default 1")


def measure(options: argparse.Namespace) -> Figures:
    return measure_steps(options, ffn=options.ffn)


def measure_steps(options: argparse.Namespace, *, ffn: int, feedforward: dict[str, object] | None = None) -> Figures:
    """The same of a model with any feed-forward, of which `ffn` columns serve a token."""
    import torch

    from llmcore.losses import Batch, next_token_loss
    from llmcore.train.device import place, resolve
    from llmcore.train.loop import train_step
    from llmcore.train.optim import AdamW

    model = model_config(options, context=options.seq, feedforward=feedforward).build(seed=options.seed)
    place(model, resolve("cpu", options.dtype))
    optimizer = AdamW().build(model, 3e-4)
    base = status_mib("VmRSS")
    mask = torch.ones(options.batch, options.seq, dtype=torch.bool)
    mask[:, 0] = False
    times = []
    for _ in range(options.warmup + options.steps):
        batch = Batch(ids=torch.randint(0, options.vocab, (options.batch, options.seq)), mask=mask)
        elapsed, _ = timed(partial(train_step, model, optimizer, [batch], next_token_loss, clip=options.clip))
        times.append(elapsed)
    middle = statistics.median(times[options.warmup :])
    tokens = options.batch * options.seq
    flops = training_flops(options, ffn=ffn)
    return {
        "metric": "tokens_per_s",
        "tokens_per_s": round(tokens / middle, 1),
        "best_tokens_per_s": round(tokens / min(times[options.warmup :]), 1),
        "gflops": round(tokens / middle * flops / 1e9, 1),
        "mflop_per_token": round(flops / 1e6, 2),
        "first_step_s": round(times[0], 2),
        "rss_before_mib": base,
    }
