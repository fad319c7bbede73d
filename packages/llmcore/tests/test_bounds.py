"""A bad file is refused within bounds, whatever it claims to be: little memory, little time."""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llmcore.model.config import ModelConfig
from llmcore.tokenizer import Tokenizer
from llmcore.train.config import TrainConfig
from llmcore.train.run import Run

SECONDS = 5
BYTES = 200 << 20
LARGE = 4 << 30
"""What the bad files claim, or are, in bytes: sparse, so that no disk is filled."""


def checkpoint(folder: Path) -> Path:
    tokenizer = Tokenizer.byte_level()
    model = ModelConfig(width=16, depth=1, context=8).with_vocabulary(tokenizer.vocab_size).build(seed=0)
    with Run(folder, made_by="t", config=TrainConfig(), tokenizer=tokenizer, quiet=True) as run:
        run.finish(model)
    return folder


def sparse(path: Path, begin: bytes = b"") -> None:
    """A file that is large and takes no room."""
    path.unlink(missing_ok=True)
    path.write_bytes(begin)
    os.truncate(path, LARGE)


def large_manifest(folder: Path) -> None:
    sparse(folder / "manifest.json", b"{")


def deep_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("[" * (8 << 20))


def large_weights(folder: Path) -> None:
    sparse(folder / "model.safetensors", (LARGE - 8).to_bytes(8, "little") + b"{")


def claiming_weights(folder: Path) -> None:
    header = json.dumps({"x": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)


def large_architecture(folder: Path) -> None:
    sparse(folder / "model.json", b"{")


def large_tokenizer(folder: Path) -> None:
    sparse(folder / "tokenizer.json", b"{")


CHILD = """
import json, resource, sys, time
from pathlib import Path
from llmcore.checkpoint import load_checkpoint
from llmcore.errors import LLMError
from llmcore.records import Chat, load_records
folder, load = Path(sys.argv[1]), sys.argv[2]
before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
try:
    load_checkpoint(folder) if load == "checkpoint" else load_records(folder / "train.jsonl", Chat, "train")
    told = ""
except LLMError as error:
    told = error.message
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
print(json.dumps([told, time.monotonic() - began, grown]))
"""


def cost(folder: Path, load: str) -> tuple[str, float, int]:
    """The message of a refusal, its seconds, and by how many bytes it raised the memory of its process."""
    child = subprocess.run([sys.executable, "-c", CHILD, folder, load], capture_output=True, text=True, timeout=120)
    assert child.returncode == 0, child.stderr[-2000:]
    told, took, grown = json.loads(child.stdout)
    return told, took, grown


@pytest.mark.slow
@pytest.mark.parametrize(
    "harm",
    [large_manifest, deep_manifest, large_weights, claiming_weights, large_architecture, large_tokenizer],
    ids=lambda harm: harm.__name__,
)
def test_a_bad_artifact_costs_little_to_refuse(harm: Callable[[Path], None], tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "policy")
    harm(folder)
    told, took, grown = cost(folder, "checkpoint")
    assert str(folder) in told
    assert took < SECONDS and grown < BYTES, f"{took:.1f} s, {grown >> 20} MiB: {told}"


def large_array(path: Path) -> None:
    sparse(path, b'[{"prompt": "')


def unpacking_array(path: Path) -> None:
    """A quarter of a megabyte that unpacks to a gigabyte; what follows the first member of a gzip file is appended."""
    path.write_bytes(gzip.compress(b'[{"prompt": "') + 64 * gzip.compress(b"a" * (16 << 20)))


@pytest.mark.slow
@pytest.mark.parametrize("harm", [large_array, unpacking_array], ids=lambda harm: harm.__name__)
def test_an_array_without_end_costs_little_to_refuse(harm: Callable[[Path], None], tmp_path: Path) -> None:
    harm(tmp_path / "train.jsonl")
    told, took, grown = cost(tmp_path, "rows")
    assert "more than 67,108,864 bytes" in told
    assert took < SECONDS and grown < BYTES, f"{took:.1f} s, {grown >> 20} MiB: {told}"


@pytest.mark.slow
def test_a_line_without_end_costs_little_to_refuse(tmp_path: Path) -> None:
    sparse(tmp_path / "train.jsonl", b'{"messages": "')
    told, took, grown = cost(tmp_path, "rows")
    assert "train.jsonl" in told
    assert took < SECONDS and grown < BYTES, f"{took:.1f} s, {grown >> 20} MiB: {told}"
