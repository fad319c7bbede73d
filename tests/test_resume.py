"""Every training command, killed with kill -9 and given again, ends in the bit-identical model."""

import json
from pathlib import Path

import pytest

from conftest import QUICK, TINY, Line
from forked import ReadyTest, run, start
from llmcore.manifest import verify_artifact


def command(stage: str, line: Line) -> list[str | Path]:
    """The words of a stage's training command, without --out."""
    prompts = ["--policy", line.sft, "--prompts", line.prompts]
    words: dict[str, list[str | Path]] = {
        "pretrain": ["llmpretrain", "run", "--data", line.tokens, *TINY, "model.dropout=0.1", "train.micro_batch=3"],
        "moe": ["llmpretrain", "run", "--data", line.tokens, *TINY, "model.feedforward.kind=moe"],
        "sft": ["llmsft", "run", "--base", line.base, "--data", line.chats],
        "reward": ["llmreward", "run", "--base", line.sft, "--data", line.preferences],
        "grpo": ["llmrl", "grpo", *prompts, "--reward", "literal + length", "grpo.num_iterations=2"],
        "ppo": ["llmrl", "ppo", *prompts, "--reward", str(line.reward)],
    }
    return [*words[stage], *QUICK]


@pytest.mark.parametrize("stage", ["pretrain", "moe", "sft", "reward", "grpo", "ppo"])
def test_a_killed_stage_ends_in_the_identical_model(stage: str, line: Line, tmp_path: Path) -> None:
    words = command(stage, line)
    whole = run(*words, "--out", tmp_path / "whole", cwd=tmp_path)
    assert whole.code == 0, whole.err
    out = tmp_path / "killed"
    for step in ("2", "4"):
        child = start(*words, "--out", out, cwd=tmp_path)
        assert child.kill_when(ReadyTest(out / "run" / "checkpoints", f"step-*{step}")), child.result().err
    again = run(*words, "--out", out, cwd=tmp_path)
    assert again.code == 0, again.err
    assert "resumed from step" in again.err
    expected, found = verify_artifact(tmp_path / "whole"), verify_artifact(out)
    assert found.files == expected.files
    assert figures(out) == figures(tmp_path / "whole")
    finished = run(*words, "--out", out, cwd=tmp_path)
    assert finished.code == 0 and verify_artifact(out) == found


def figures(out: Path) -> list[dict[str, object]]:
    """The lines of metrics.jsonl without what depends on the clock."""
    clock = {"seconds", "tokens_per_s", "step_time"}
    rows = [json.loads(row) for row in (out / "run" / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in clock} for row in rows]
