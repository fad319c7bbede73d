"""Our side of every benchmark pair: one subject, one JSON line.

    uv run tools/bench.py generate --batch 1 --new 256      sampling with the engine
    uv run tools/bench.py train --dtype bf16                optimizer steps, as `fit` takes them
    uv run tools/bench.py load --dim 768 --layers 12 --heads 12 --ffn 2048 --vocab 32000

Keys are `tokens_per_s` (median), `best_tokens_per_s`, `ms_per_token_step`, `peak_over_base_mib`, and `other_cpu`: the
mean number of CPUs that other processes kept busy. Above 0.2 the figures are off; a ratio needs two sides run in turn.
"""

import argparse
import contextlib
import json
import os
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

STARTED_AT = time.perf_counter()
Figures = dict[str, object]
T = TypeVar("T")


def main() -> None:
    """Measure one subject and print its line."""
    options = parse_arguments()
    before = busy_seconds()
    import torch

    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    figures = SUBJECTS[options.subject](options)
    others = (busy_seconds() - before) - sum(os.times()[:2])
    line = {
        "bench": options.subject,
        "peer": "llmcore",
        **figures,
        "dtype": options.dtype,
        "shape": {name: getattr(options, name) for name in ("layers", "dim", "heads", "ffn", "vocab", "seq", "batch")},
        "threads": options.threads,
        "versions": {"python": platform.python_version(), "torch": version("torch"), "llmcore": version("llmcore")},
        "peak_rss_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "other_cpu": round(max(0.0, others) / (time.perf_counter() - STARTED_AT), 2),
    }
    print(json.dumps(line), flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subject", choices=SUBJECTS)
    sizes = {"layers": 8, "dim": 256, "heads": 4, "ffn": 688, "vocab": 256, "seq": 256, "prompt": 64, "new": 256}
    for name, size in {**sizes, "threads": 2, "steps": 8, "warmup": 2, "runs": 5, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=size)
    parser.add_argument("--batch", type=int, help="rows; 8 for training, 1 for generation")
    parser.add_argument("--kv-heads", type=int, help="key and value heads; as many as heads if absent")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--clip", type=float, default=1.0)
    parser.add_argument("--greedy", action="store_true")
    options = parser.parse_args()
    options.batch = options.batch or (1 if options.subject == "generate" else 8)
    return options


def model_config(options: argparse.Namespace):  # type: ignore[no-untyped-def]  # importing ModelConfig costs torch
    """The Llama shape that the peers are measured with: untied head, SwiGLU, RMSNorm, RoPE."""
    from llmcore.model.config import ModelConfig

    return ModelConfig.model_validate(
        {
            "vocab_size": options.vocab,
            "width": options.dim,
            "depth": options.layers,
            "context": max(options.seq, options.prompt + options.new),
            "tie_embeddings": False,
            "attention": {"kind": "gqa", "heads": options.heads, "kv_heads": options.kv_heads or options.heads},
            "feedforward": {"kind": "swiglu", "hidden": options.ffn},
        }
    )


def bench_generate(options: argparse.Namespace) -> Figures:
    """Sampling at temperature 1 with a KV cache; a new random prompt each time, no early stop."""
    import torch

    from llmcore.generate.engine import generate
    from llmcore.generate.sampling import Sampling
    from llmcore.train.device import place, resolve

    model = model_config(options).build(seed=options.seed).eval()
    place(model, resolve("cpu", options.dtype))
    sampling = Sampling(max_new_tokens=options.new, temperature=0.0 if options.greedy else 1.0)
    times: list[float] = []
    for _ in range(options.runs + 2):
        prompts = torch.randint(0, options.vocab, (options.batch, options.prompt)).tolist()
        elapsed, samples = timed(partial(generate, model, prompts, sampling, stop_ids=()))
        assert all(len(sample.ids) == options.new for [sample] in samples)
        times.append(elapsed)
    middle = statistics.median(times[2:])
    tokens = options.batch * options.new
    return {
        "metric": "tokens_per_s",
        "tokens_per_s": round(tokens / middle, 1),
        "best_tokens_per_s": round(tokens / min(times[2:]), 1),
        "ms_per_token_step": round(middle / options.new * 1e3, 3),
        "first_run_s": round(times[0], 2),
    }


def bench_train(options: argparse.Namespace) -> Figures:
    """Whole optimizer steps as `fit` takes them: forward, loss, backward, clipping, AdamW; a fresh batch for each."""
    import torch

    from llmcore.losses import Batch, next_token_loss
    from llmcore.train.device import place, resolve
    from llmcore.train.loop import train_step
    from llmcore.train.optim import AdamW

    model = model_config(options).build(seed=options.seed)
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
    weights = sum(p.numel() for p in model.parameters() if p.dim() > 1) - model.embedding.weight.numel()
    flops = 6 * weights + 6 * options.layers * options.dim * options.seq
    return {
        "metric": "tokens_per_s",
        "tokens_per_s": round(tokens / middle, 1),
        "best_tokens_per_s": round(tokens / min(times[options.warmup :]), 1),
        "gflops": round(tokens / middle * flops / 1e9, 1),
        "mflop_per_token": round(flops / 1e6, 2),
        "first_step_s": round(times[0], 2),
        "rss_before_mib": base,
    }


def bench_load(options: argparse.Namespace) -> Figures:
    """Peak memory and time of loading a checkpoint, hashes verified and every page touched."""
    from llmcore.checkpoint import load_checkpoint, save_model
    from llmcore.manifest import verify_artifact, write_manifest
    from llmcore.tokenizer import Tokenizer

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if os.fork() == 0:  # the writer's memory is not to count
            model = model_config(options).build(seed=options.seed)
            files = save_model(folder, model, Tokenizer.byte_level())
            write_manifest(folder, kind="policy", made_by="bench", config={}, files=files)
            os._exit(0)
        os.wait()
        size = (folder / "model.safetensors").stat().st_size / 2**20
        verifying, _ = timed(lambda: verify_artifact(folder))
        base = status_mib("VmRSS")
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        loading, loaded = timed(lambda: load_checkpoint(folder))
        touching, _ = timed(lambda: float(sum(p.detach().sum() for p in loaded.model.parameters())))
        peak = status_mib("VmHWM") - base
    return {
        "metric": "peak_over_base_mib",
        "file_mib": round(size, 1),
        "peak_over_base_mib": round(peak, 1),
        "peak_over_file": round(peak / size, 3),
        "load_and_touch_s": round(loading + touching, 3),
        "verify_alone_s": round(verifying, 3),
    }


SUBJECTS: dict[str, Callable[[argparse.Namespace], Figures]] = {
    "generate": bench_generate,
    "train": bench_train,
    "load": bench_load,
}


def timed(function: Callable[[], T]) -> tuple[float, T]:
    """Seconds that a call takes, and what it gives."""
    begun_at = time.perf_counter()
    result = function()
    return time.perf_counter() - begun_at, result


def busy_seconds() -> float:
    """CPU seconds that the whole machine has been busy; 0 where the kernel does not say."""
    try:
        ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    except OSError:
        return 0.0
    return (sum(ticks) - ticks[3] - ticks[4]) / float(os.sysconf("SC_CLK_TCK"))


def status_mib(name: str) -> float:
    """One memory figure of this process (VmRSS, VmHWM) in MiB."""
    rows = Path("/proc/self/status").read_text().splitlines()
    return next(int(row.split()[1]) / 1024 for row in rows if row.startswith(name))


if __name__ == "__main__":
    main()
