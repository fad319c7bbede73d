"""Every training command, killed with kill -9 and given again, ends in the bit-identical model."""

import itertools
import json
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from conftest import TINY, Line
from forked import ReadyTest, run, start
from llmcore.manifest import verify_artifact

STAGES = ("pretrain", "moe", "sft", "reward", "grpo", "ppo")
STEPS = 6
KILLS = (1, 3, 5)
ROWS = 20
EVERY_STEP = [
    f"train.steps={STEPS}", "train.log_every=1", "train.eval_every=3", "train.save_every=1",
    "train.batch=8", "train.micro_batch=5",
]  # fmt: skip
"""Saved at every step, five rows at a time: which the batch is no multiple of."""


class Few(NamedTuple):
    """Data so little that an epoch ends inside a run of STEPS."""

    tokens: Path
    chats: Path
    preferences: Path
    prompts: Path


@pytest.fixture(scope="module")
def few(line: Line, tmp_path_factory: pytest.TempPathFactory) -> Few:
    root = tmp_path_factory.mktemp("few")
    (root / "text").mkdir()
    for path in sorted(line.text.iterdir())[:8]:
        shutil.copy(path, root / "text")
    made = run("llmdata", "tokens", root / "text", "--out", root / "tokens", cwd=root)
    assert made.code == 0, made.err
    for name in Few._fields[1:]:
        (root / name).mkdir()
        for split, count in (("train", ROWS), ("valid", 8)):
            rows = (getattr(line, name) / f"{split}.jsonl").read_text().splitlines(keepends=True)
            (root / name / f"{split}.jsonl").write_text("".join(rows[:count]))
    return Few(*(root / name for name in Few._fields))


def command(stage: str, line: Line, few: Few) -> list[str | Path]:
    """The words of a stage's training command, without --out."""
    pretrain: list[str | Path] = ["llmpretrain", "run", "--data", few.tokens, *TINY]
    prompts: list[str | Path] = ["--policy", line.sft, "--prompts", few.prompts]
    words: dict[str, list[str | Path]] = {
        "pretrain": [*pretrain, "model.dropout=0.1"],
        "moe": [*pretrain, "model.feedforward.kind=moe"],
        "sft": ["llmsft", "run", "--base", line.base, "--data", few.chats],
        "reward": ["llmreward", "run", "--base", line.sft, "--data", few.preferences],
        "grpo": ["llmrl", "grpo", *prompts, "--reward", "literal + length", "grpo.num_iterations=2"],
        "ppo": ["llmrl", "ppo", *prompts, "--reward", str(line.reward)],
    }
    return [*words[stage], *EVERY_STEP]


def check_killed_equals_whole(words: list[str | Path], folder: Path) -> None:
    """Killed three times and given again, the command ends where the uninterrupted one does, to the bit."""
    whole = run(*words, "--out", folder / "whole", cwd=folder)
    assert whole.code == 0, whole.err
    out = folder / "killed"
    for step in KILLS:
        child = start(*words, "--out", out, cwd=folder)
        assert child.kill_when(ReadyTest(out / "run" / "checkpoints", f"step-*{step}")), child.result().err
    again = run(*words, "--out", out, cwd=folder)
    assert again.code == 0, again.err
    assert "resumed from step" in again.err
    expected, found = verify_artifact(folder / "whole"), verify_artifact(out)
    assert found.files == expected.files
    assert figures(out) == figures(folder / "whole")
    last = f"run/checkpoints/step-{STEPS:08d}"
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (out / last / name).read_bytes() == (folder / "whole" / last / name).read_bytes()
    finished = run(*words, "--out", out, cwd=folder)
    assert finished.code == 0 and verify_artifact(out) == found


@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_stage_ends_in_the_identical_model(stage: str, line: Line, few: Few, tmp_path: Path) -> None:
    check_killed_equals_whole(command(stage, line, few), tmp_path)


OPTIMIZERS = ("adamw", "muon", "sgd")

VARIANTS = {
    "muon bf16 ema": ["train.optimizer=muon", "train.dtype=bf16", "train.ema=0.9"],
    "adamw fp16": ["train.dtype=fp16", "train.loss_scale=32768", "train.loss_scale_window=2"],
}


@pytest.mark.parametrize(("stage", "variant"), [("moe", "muon bf16 ema"), ("pretrain", "adamw fp16")])
def test_a_killed_run_goes_on_with_its_optimizer_average_and_scale(
    stage: str, variant: str, line: Line, few: Few, tmp_path: Path
) -> None:
    check_killed_equals_whole([*command(stage, line, few), *VARIANTS[variant]], tmp_path)


def every_case() -> list[object]:
    """Every stage in every precision with every optimizer; a third of them, in which every pair occurs, is CI's."""
    numbered = itertools.product(enumerate(STAGES), enumerate(("fp32", "bf16", "fp16")), enumerate(OPTIMIZERS))
    return [
        pytest.param(stage, dtype, name, marks=pytest.mark.slow if (i + j + k) % 3 == 0 else pytest.mark.nightly)
        for (i, stage), (j, dtype), (k, name) in numbered
    ]


@pytest.mark.parametrize(("stage", "dtype", "optimizer"), every_case())
def test_every_stage_goes_on_in_every_precision_with_every_optimizer(
    stage: str, dtype: str, optimizer: str, line: Line, few: Few, tmp_path: Path
) -> None:
    """The average is part of every second case; recomputed blocks of every third."""
    words = [*command(stage, line, few), f"train.dtype={dtype}", f"train.optimizer={optimizer}"]
    number = STAGES.index(stage) + OPTIMIZERS.index(optimizer)
    words += ["train.ema=0.8"] * (number % 2) + ["train.checkpoint_activations=true"] * (number % 3 == 0)
    check_killed_equals_whole([*words, "train.loss_scale_window=2"], tmp_path)


def test_an_epoch_ends_inside_these_runs(few: Few) -> None:
    tokens = json.loads((few.tokens / "tokens.json").read_text())["splits"]["train"]["tokens"]
    assert 8 * STEPS > tokens // 128 > 8
    assert all(len((data / "train.jsonl").read_text().splitlines()) == ROWS for data in few[1:])
    assert 8 * (STEPS // 2) > ROWS  # with two updates on each rollout


def figures(out: Path) -> list[dict[str, object]]:
    """The lines of metrics.jsonl without what depends on the clock."""
    clock = {"seconds", "tokens_per_s", "step_time"}
    rows = [json.loads(row) for row in (out / "run" / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in clock} for row in rows]
