"""Two processes train as one does: the same updates, checkpoints for either, and a killed run goes on."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from conftest import TINY, Line
from forked import run, run_ranks

COMMON = [
    "train.dtype=fp32",
    "train.optimizer.eps=1e-4",  # a gradient that is 0 but for rounding shall not move a weight
    "train.steps=4",
    "train.batch=8",
    "train.log_every=1",
    "train.eval_every=2",
    "train.save_every=2",
]
MODES = ["ddp", "fsdp"]


def command(stage: str, line: Line) -> list[str | Path]:
    """The words of a stage's training command, without --out."""
    rl = ["--policy", line.sft, "--prompts", line.prompts, "rollout.max_completion_length=8", "rollout.eval_prompts=4"]
    uneven = "train.micro_batch=3"
    words: dict[str, list[str | Path]] = {
        "pretrain": ["llmpretrain", "run", "--data", line.tokens, *TINY],
        "moe": ["llmpretrain", "run", "--data", line.tokens, *TINY, "model.feedforward.kind=moe", uneven],
        "sft": ["llmsft", "run", "--base", line.base, "--data", line.chats],
        "reward": ["llmreward", "run", "--base", line.sft, "--data", line.preferences],
        "grpo": [
            "llmrl",
            "grpo",
            *rl,
            "--reward",
            "literal + length",
            "grpo.num_iterations=2",
            "grpo.num_generations=4",
        ],
        "ppo": ["llmrl", "ppo", *rl, "--reward", str(line.reward)],
    }
    return [*words[stage], *COMMON]


def weights_differ(left: Path, right: Path) -> float:
    """The largest difference between two models."""
    a, b = load_file(left / "model.safetensors"), load_file(right / "model.safetensors")
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def figures(out: Path) -> list[dict[str, float]]:
    dropped = {"seconds", "tokens_per_s", "tokens"}  # tokens count padding, which depends on how rows are split
    rows = [json.loads(row) for row in (out / "run" / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in dropped} for row in rows]


def assert_same_run(found: Path, expected: Path, *, tolerance: float = 2e-6) -> None:
    """The same figures at every step, and the same weights, up to rounding."""
    assert [row.keys() for row in figures(found)] == [row.keys() for row in figures(expected)]
    for row, wanted in zip(figures(found), figures(expected), strict=True):
        assert row == pytest.approx(wanted, rel=2e-3, abs=1e-4)
    assert weights_differ(found, expected) < tolerance


def fine(*words: str | Path, cwd: Path) -> None:
    for rank, done in enumerate(run_ranks(*words, cwd=cwd)):
        assert done.code == 0, f"rank {rank}: {done.err}"
        assert rank == 0 or not (done.out or done.err), done


STAGES = ["pretrain", "moe", "sft", "reward", "grpo", "ppo"]
QUICK = [("pretrain", "ddp"), ("grpo", "fsdp")]


@pytest.mark.parametrize(
    ("stage", "mode"),
    [
        pytest.param(stage, mode, marks=() if (stage, mode) in QUICK else pytest.mark.slow)
        for stage in STAGES
        for mode in MODES
    ],
)
def test_two_ranks_equal_one(stage: str, mode: str, line: Line, tmp_path: Path) -> None:
    words = command(stage, line)
    parts = [] if stage == "moe" else ["train.micro_batch=4"]  # what two ranks have: some figures are means over them
    alone = run(*words, *parts, "--out", tmp_path / "one", cwd=tmp_path)
    assert alone.code == 0, alone.err
    fine(*words, f"train.parallel={mode}", "--out", tmp_path / "two", cwd=tmp_path)
    assert_same_run(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["train.parallel.reshard=false", "train.parallel.offload=true", "train.dtype=bf16"])
def test_every_kind_of_sharding_equals_one_rank(setting: str, line: Line, tmp_path: Path) -> None:
    words = [*command("pretrain", line), setting]
    done = run(*[word for word in words if "parallel" not in str(word)], "--out", tmp_path / "one", cwd=tmp_path)
    assert done.code == 0, done.err
    fine(*words, "train.parallel.kind=fsdp", "--out", tmp_path / "two", cwd=tmp_path)
    assert_same_run(tmp_path / "two", tmp_path / "one", tolerance=2e-3 if "bf16" in setting else 2e-6)
