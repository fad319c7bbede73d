"""What the tests of the other files show on a CPU, shown once on a CUDA device; skipped where there is none."""

import json
import math
from pathlib import Path

import pytest
import torch

from conftest import TINY, Line
from forked import run
from llmcore.checkpoint import load_checkpoint
from llmcore.generate.engine import generate
from llmcore.generate.sampling import Sampling
from llmcore.manifest import verify_artifact

DEVICE = "cuda"
FIVE = ["train.steps=5", "train.batch=8", "train.log_every=1", "train.save_every=1", f"train.device={DEVICE}"]

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def losses(out: Path) -> list[float]:
    """The loss of each step."""
    return [json.loads(row)["loss"] for row in (out / "run" / "metrics.jsonl").read_text().splitlines()]


def pretrain(line: Line, out: Path, *settings: str) -> str:
    """Train five steps of a tiny model; what it said."""
    words = ["llmpretrain", "run", "--data", line.tokens, "--out", out, *TINY, *FIVE, *settings]
    done = run(*words, cwd=out.parent, limit=600)
    assert done.code == 0, done.err
    return done.err


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_a_stopped_run_goes_on_bit_for_bit(dtype: str, line: Line, tmp_path: Path) -> None:
    """With attention as products: the fused kernels add up their gradients in no fixed order."""
    settings = [f"train.dtype={dtype}", "model.attention.backend=matmul", "model.dropout=0.1"]
    pretrain(line, tmp_path / "whole", *settings)
    pretrain(line, tmp_path / "out", *settings, "train.stop_after=3")
    assert "resumed from step 3" in pretrain(line, tmp_path / "out", *settings)
    assert verify_artifact(tmp_path / "out").files == verify_artifact(tmp_path / "whole").files
    assert losses(tmp_path / "out") == losses(tmp_path / "whole")
    assert verify_artifact(tmp_path / "out").environment["device"] == DEVICE


def test_a_run_has_the_losses_of_the_cpu(line: Line, tmp_path: Path) -> None:
    pretrain(line, tmp_path / "device", "train.dtype=fp32")
    pretrain(line, tmp_path / "cpu", "train.dtype=fp32", "train.device=cpu")
    assert losses(tmp_path / "device") == pytest.approx(losses(tmp_path / "cpu"), rel=1e-3)


def test_compiled_steps_have_the_losses_of_eager_ones(line: Line, tmp_path: Path) -> None:
    pretrain(line, tmp_path / "eager", "train.dtype=fp32")
    said = pretrain(line, tmp_path / "compiled", "train.dtype=fp32", "train.compile=true")
    assert "torch.compile:" in said and "failed" not in said
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "eager"), rel=1e-3)


def test_greedy_tokens_are_the_cpus_up_to_near_ties(line: Line) -> None:
    model, tokenizer, _ = load_checkpoint(line.base)
    prompts = [tokenizer.encode(text) for text in ("def f1(x):\n", "    return", "x")]
    found = generate(model.to(DEVICE), prompts, Sampling(max_new_tokens=40, temperature=0.0), stop_ids=())
    model.to("cpu")
    for prompt, (sample,) in zip(prompts, found, strict=True):
        ids = torch.tensor([prompt + sample.ids])
        with torch.no_grad():
            scores = model(ids)[0, len(prompt) - 1 : -1]  # (T, V)
        taken = scores.gather(1, ids[0, len(prompt) :, None]).squeeze(1)
        assert len(sample.ids) == 40
        assert float((scores.amax(dim=1) - taken).max()) < 1e-2


def test_grpo_samples_and_learns(line: Line, tmp_path: Path) -> None:
    words = ["llmrl", "grpo", "--policy", line.sft, "--reward", "literal + length", "--prompts", line.prompts, *FIVE]
    sizes = ["rollout.max_completion_length=16", "rollout.eval_prompts=4", "grpo.num_generations=4"]
    done = run(*words, *sizes, "--out", tmp_path / "out", cwd=tmp_path, limit=600)
    assert done.code == 0, done.err
    assert len(losses(tmp_path / "out")) == 5 and all(map(math.isfinite, losses(tmp_path / "out")))
    assert verify_artifact(tmp_path / "out").files != verify_artifact(line.sft).files
