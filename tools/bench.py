"""Our side of every benchmark pair: one subject, one JSON line.

    uv run tools/bench.py generate --batch 1 --new 256      sampling with the engine
    uv run tools/bench.py train --dtype bf16                optimizer steps, as `fit` takes them
    uv run tools/bench.py load --dim 768 --layers 12 --heads 12 --ffn 2048 --vocab 32000

Each subject is a file `bench_<subject>.py` beside this one, with `add_options(parser)` and `measure(options)`; the
options given here are those that all share, and the process is prepared as our commands prepare theirs. Keys are
`tokens_per_s` (median), `best_tokens_per_s`, `ms_per_token_step`, `peak_over_base_mib`, and `other_cpu`: the mean
number of CPUs that other processes kept busy. Above 0.2 the figures are off; a ratio needs two sides run in turn.
"""

import argparse
import importlib
import json
import os
import platform
import resource
import time
from importlib.metadata import version
from pathlib import Path

from llama_shape import SHAPE, add_shape
from llmcore.process import prepare_process
from stopwatch import busy_seconds

STARTED_AT = time.perf_counter()
SUBJECTS = [path.stem.removeprefix("bench_") for path in sorted(Path(__file__).parent.glob("bench_*.py"))]


def main() -> None:
    """Measure one subject and print its line."""
    options = parse_arguments()
    before = busy_seconds()
    prepare_process()
    import torch

    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    figures = importlib.import_module(f"bench_{options.subject}").measure(options)
    others = (busy_seconds() - before) - sum(os.times()[:4])
    line = {
        "bench": options.subject,
        "peer": "llmcore",
        **figures,
        "dtype": options.dtype,
        "shape": {name: getattr(options, name) for name in (*SHAPE, "batch")},
        "threads": options.threads,
        "versions": {"python": platform.python_version(), "torch": version("torch"), "llmcore": version("llmcore")},
        "peak_rss_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "other_cpu": round(max(0.0, others) / (time.perf_counter() - STARTED_AT), 2),
    }
    print(json.dumps(line), flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    subjects = parser.add_subparsers(dest="subject", required=True, metavar="|".join(SUBJECTS))
    for name in SUBJECTS:
        module = importlib.import_module(f"bench_{name}")
        subject = subjects.add_parser(name, description=module.__doc__, help=(module.__doc__ or "").split("\n")[0])
        add_shape(subject)
        subject.add_argument("--threads", type=int, default=2)
        subject.add_argument("--seed", type=int, default=0)
        module.add_options(subject)
    return parser.parse_args()


if __name__ == "__main__":
    main()
