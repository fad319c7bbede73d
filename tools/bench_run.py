"""Training through `llmpretrain run` itself, process and all: steps by the clock of its metrics."""

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

from llama_shape import Figures, training_flops

CONFIG = """
[model]
vocab_size = {vocab}
width = {dim}
depth = {layers}
context = {seq}
tie_embeddings = false
attention = {{ heads = {heads}, kv_heads = {kv_heads} }}
feedforward = {{ hidden = {ffn} }}

[train]
steps = {steps}
batch = {batch}
lr = 3e-4
device = "cpu"
dtype = "{dtype}"
compile = {compile}
seed = {seed}
log_every = 1
eval_every = {steps}
save_every = {steps}
"""
BYTES = 260
"""Tokens of the tokenizer that `llmdata tokens` uses where none is given: bytes and four signs."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch", type=int, default=8, help="rows; default 8")
    parser.add_argument("--steps", type=int, default=12, help="timed steps; default 12")
    parser.add_argument("--warmup", type=int, default=3, help="steps before them; default 3")
    parser.add_argument("--compile", action="store_true", help="train.compile=true; its time is in `before_s`")


def measure(options: argparse.Namespace) -> Figures:
    settings = vars(options) | {
        "vocab": max(options.vocab, BYTES),
        "kv_heads": options.kv_heads or options.heads,
        "steps": options.warmup + options.steps,
        "compile": str(options.compile).lower(),
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        letters = random.Random(options.seed).choices(range(32, 127), k=2**20)
        (folder / "text.txt").write_bytes(bytes(letters))
        (folder / "run.toml").write_text(CONFIG.format_map(settings))
        command("llmdata", "tokens", "text.txt", "--out", "tokens", folder=folder, threads=options.threads)
        words = ("run", "run.toml", "--data", "tokens", "--out", "out")
        command("llmpretrain", *words, folder=folder, threads=options.threads)
        lines = [json.loads(line) for line in (folder / "out/run/metrics.jsonl").read_text().splitlines()]
    ends = [line["seconds"] for line in lines]
    times = [end - begin for begin, end in pairwise(ends)][options.warmup - 1 :]
    tokens, middle = options.batch * options.seq, statistics.median(times)
    return {
        "metric": "tokens_per_s",
        "tokens_per_s": round(tokens / middle, 1),
        "best_tokens_per_s": round(tokens / min(times), 1),
        "gflops": round(tokens / middle * training_flops(options, ffn=options.ffn) / 1e9, 1),
        "before_s": round(ends[options.warmup - 1], 2),
        "compile": options.compile,
        "peak_rss_of_command_mib": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024, 1),
    }


def command(*words: str, folder: Path, threads: int) -> None:
    """One of our commands, in a process of its own."""
    program = Path(sys.executable).parent / words[0]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    subprocess.run([program, *words[1:], "--quiet"], cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
