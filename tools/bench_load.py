"""Peak memory and time of loading a checkpoint, verified (hashes, finite numbers) and not, every page touched."""

import argparse
import contextlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from llama_shape import Figures, model_config
from stopwatch import status_mib, timed

if TYPE_CHECKING:
    from torch import Tensor


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch", type=int, default=1, help="unused: nothing is computed")


def measure(options: argparse.Namespace) -> Figures:
    from llmcore.checkpoint import load_checkpoint, save_model
    from llmcore.manifest import write_manifest
    from llmcore.tensors import load_tensors
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
        base = status_mib("VmRSS")
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        verified, _ = timed(lambda: touch(load_checkpoint(folder).model.state_dict()))
        peak = status_mib("VmHWM") - base
        unverified, _ = timed(lambda: touch(load_tensors(folder / "model.safetensors")))
    return {
        "metric": "peak_over_base_mib",
        "file_mib": round(size, 1),
        "peak_over_base_mib": round(peak, 1),
        "peak_over_file": round(peak / size, 3),
        "verified_s": round(verified, 3),
        "unverified_s": round(unverified, 3),
    }


def touch(tensors: "Mapping[str, Tensor]") -> float:
    """Read every number."""
    return float(sum(tensor.sum() for tensor in tensors.values()))
