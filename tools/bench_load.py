"""Peak memory and time of loading a checkpoint, hashes verified and every page touched."""

import argparse
import contextlib
import os
import tempfile
from pathlib import Path

from llama_shape import Figures, model_config
from stopwatch import status_mib, timed


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch", type=int, default=1, help="unused: nothing is computed")


def measure(options: argparse.Namespace) -> Figures:
    from llmcore.checkpoint import load_checkpoint, save_model
    from llmcore.manifest import verify_artifact, write_manifest
    from llmcore.tokenizer import Tokenizer

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if os.fork() == 0:  # the writer's memory is not to count
            model = model_config(options, context=options.seq).build(seed=options.seed)
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
