"""Memory that is not there, asked for by the commands themselves: one sentence, and what to lower."""

import subprocess
import sys
from pathlib import Path

import pytest

from forked import run
from llmcore.checkpoint import save_model
from llmcore.manifest import write_manifest
from llmcore.model.config import ModelConfig
from llmcore.model.positions import NoPositions
from llmcore.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy whose context has more tokens than any memory holds."""
    folder = tmp_path_factory.mktemp("endless")
    model = ModelConfig(vocab_size=260, width=16, depth=1, context=1 << 40, positions=NoPositions()).build(seed=0)
    files = save_model(folder, model, Tokenizer.byte_level())
    write_manifest(folder, kind="policy", made_by="test", config={}, files=files)
    return folder


@pytest.mark.parametrize("more", [[], ["--json"], ["--num-samples", "2"]])
def test_more_tokens_than_memory_holds_are_one_sentence(more: list[str], endless: Path, tmp_path: Path) -> None:
    words = ["llmcore", "generate", endless, "--prompt", "a", "--max-new-tokens", str(1 << 40), *more]
    done = run(*words, cwd=tmp_path)
    assert done.code == 2 and "Traceback" not in done.err, done.err
    assert "error: not enough memory for the text" in done.err and "--max-new-tokens" in done.err


ASK = """
import torch
import typer
from llmcore import command
app = typer.Typer()
@app.command()
def take() -> None:
    {taking}
command.main(app)
"""


@pytest.mark.parametrize("taking", ["torch.empty(1 << 50)", "bytearray(1 << 60)", "raise OSError(12, 'no memory')"])
def test_an_allocation_that_fails_anywhere_is_the_users_to_mend(taking: str) -> None:
    program = ASK.format(taking=taking)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "error: not enough memory" in done.stderr and "fix: lower train.micro_batch" in done.stderr
    assert "defect" not in done.stderr


def test_an_error_of_ours_is_told_as_one() -> None:
    program = ASK.format(taking="raise RuntimeError('a memory of things past')")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "Traceback" in done.stderr
    assert "error: unexpected RuntimeError: a memory of things past\n  this is a defect" in done.stderr
