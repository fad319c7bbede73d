"""Two processes train as one does: the same updates, checkpoints for either, and a killed run goes on."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from conftest import TINY, Line
from forked import ReadyTest, run, run_ranks, start_ranks

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
        "lora": ["llmsft", "run", "--base", line.base, "--data", line.chats, "lora.rank=2", "curriculum.by=loss"],
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
    """The largest difference between two models, or two adapters."""
    (name,) = (path.name for path in right.glob("*.safetensors"))
    a, b = load_file(left / name), load_file(right / name)
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
        assert row == pytest.approx(wanted, rel=2e-3, abs=max(1e-4, tolerance))
    assert weights_differ(found, expected) < tolerance


def fine(*words: str | Path, cwd: Path) -> None:
    for rank, done in enumerate(run_ranks(*words, cwd=cwd)):
        assert done.code == 0, f"rank {rank}: {done.err}"
        assert rank == 0 or not (done.out or done.err), done


STAGES = ["pretrain", "moe", "sft", "lora", "reward", "grpo", "ppo"]
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
    parts = as_two_ranks(stage)
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


def crossing_marks(stage: str, mode: str) -> tuple[pytest.MarkDecorator, ...]:
    """One case always; every stage of the line in CI, sharded; the rest at night."""
    if (stage, mode) == ("pretrain", "fsdp"):
        return ()
    nightly = stage in ("moe", "lora") or (mode == "ddp" and stage not in ("pretrain", "ppo"))
    return (pytest.mark.nightly if nightly else pytest.mark.slow,)


@pytest.mark.parametrize(
    ("stage", "mode"),
    [pytest.param(stage, mode, marks=crossing_marks(stage, mode)) for stage in STAGES for mode in MODES],
)
def test_a_checkpoint_goes_on_with_any_number_of_ranks(stage: str, mode: str, line: Line, tmp_path: Path) -> None:
    words, parallel = [*command(stage, line), "train.micro_batch=4"], f"train.parallel={mode}"
    first = [*words, "train.stop_after=2"]
    whole = run(*words, "--out", tmp_path / "whole", cwd=tmp_path)
    assert whole.code == 0, whole.err

    fine(*first, parallel, "--out", tmp_path / "fewer", cwd=tmp_path)
    alone = run(*words, "--out", tmp_path / "fewer", cwd=tmp_path)
    assert alone.code == 0 and "resumed from step 2" in alone.err, alone.err
    assert "processes is '1', the run started with '2'" in alone.err
    assert_same_run(tmp_path / "fewer", tmp_path / "whole")

    alone = run(*first, "--out", tmp_path / "more", cwd=tmp_path)
    assert alone.code == 0, alone.err
    fine(*words, parallel, "--out", tmp_path / "more", cwd=tmp_path)
    assert_same_run(tmp_path / "more", tmp_path / "whole")


def test_settings_that_several_processes_cannot_share_are_refused(line: Line, tmp_path: Path) -> None:
    words = [*command("pretrain", line), "--out", tmp_path / "out"]
    wrong = {
        ("train.parallel=single",): "2 processes were started, but train.parallel is 'single'",
        ("train.parallel=ddp", "train.batch=1"): "train.batch is 1, fewer than the 2 processes",
        ("train.parallel=ddpp",): "did you mean 'ddp'?",
    }
    for settings, message in wrong.items():
        first, second = start_ranks(*words, *settings, cwd=tmp_path)
        done = first.result()
        assert done.code == 2 and message in done.err, done.err
        second.process.kill()  # as torchrun does, while it waits for the first to speak
        second.process.join()
    assert not (tmp_path / "out").exists()


def test_a_rank_that_dies_ends_the_other_with_one_sentence(line: Line, tmp_path: Path) -> None:
    words = [*command("pretrain", line), "train.parallel=ddp", "train.steps=100000", "train.save_every=2"]
    out = tmp_path / "out"
    first, second = start_ranks(*words, "--out", out, cwd=tmp_path)
    assert second.kill_when(ReadyTest(out / "run" / "checkpoints", "step-*2")), first.result().err
    done = first.result()
    assert done.code == 2, done.err
    assert "another process of this run ended" in done.err.splitlines()[-2], done.err
    assert "Traceback" not in done.err


@pytest.mark.slow
def test_a_signal_to_one_rank_ends_all_after_the_same_step(line: Line, tmp_path: Path) -> None:
    words = [*command("pretrain", line), "train.parallel=fsdp", "train.steps=100000", "train.save_every=2"]
    out = tmp_path / "out"
    first, second = start_ranks(*words, "--out", out, cwd=tmp_path)
    deadline = time.monotonic() + 60
    while not ReadyTest(out / "run" / "checkpoints", "step-*2")():
        assert time.monotonic() < deadline, first.result().err
        time.sleep(0.01)
    second.process.terminate()
    assert (first.result().code, second.result().code) == (143, 143), first.result().err
    stopped = [row for row in first.result().err.splitlines() if row.startswith("stopped at step")]
    step = int(stopped[0].split()[3])
    assert (out / "run" / "checkpoints" / f"step-{step:08}" / "manifest.json").exists()


def as_two_ranks(stage: str) -> list[str]:
    """What makes one process add up as two: some figures are means over parts; experts balance over all rows."""
    return [] if stage == "moe" else ["train.micro_batch=4"]


RESTARTED = [("pretrain", "ddp"), ("pretrain", "fsdp"), ("grpo", "fsdp")]


@pytest.mark.parametrize(
    ("stage", "mode"),
    [
        pytest.param(stage, mode, marks=pytest.mark.slow if (stage, mode) in RESTARTED else pytest.mark.nightly)
        for stage in STAGES
        for mode in MODES
    ],
)
def test_torchrun_restarts_a_killed_rank_and_the_run_goes_on(stage: str, mode: str, line: Line, tmp_path: Path) -> None:
    words = [*command(stage, line), "train.steps=40"]
    whole = run(*words, *as_two_ranks(stage), "--out", tmp_path / "whole", cwd=tmp_path)
    assert whole.code == 0, whole.err
    out = tmp_path / "out"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    line_of_words = [*launch, "-m", *map(str, words), f"train.parallel={mode}", "--out", str(out)]
    with (tmp_path / "log").open("w") as log:
        agent = subprocess.Popen(line_of_words, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})
        deadline = time.monotonic() + 120
        while not any((out / "run" / "checkpoints").glob("step-*")):
            assert time.monotonic() < deadline and agent.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.01)
        ranks = {child.environ().get("RANK"): child for child in psutil.Process(agent.pid).children(recursive=True)}
        ranks["1"].kill()
        assert agent.wait(timeout=240) == 0, (tmp_path / "log").read_text()
    assert "resumed from step" in (tmp_path / "log").read_text()
    assert_same_run(out, tmp_path / "whole", tolerance=1e-4)


@pytest.mark.slow
def test_under_torchrun_a_mistake_is_told_once(line: Line, tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    words = [*launch, "-m", *map(str, command("pretrain", line)), "--out", str(tmp_path / "out")]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    assert done.stderr.count("error: 2 processes were started, but train.parallel is 'single'") == 1, done.stderr
    assert "Traceback" not in done.stderr.split("ChildFailedError")[0].split("error: 2 processes")[0]


ENDS_EARLY = ["train.ema=0.8", "train.early_stopping.patience=1", "train.early_stopping.min_delta=100"]
TOGETHER = {
    "ddp muon": ["ddp", "train.optimizer.kind=muon", "train.optimizer.adamw.eps=1e-4", *ENDS_EARLY],
    "fsdp recomputed": ["fsdp", "train.checkpoint_activations=true", *ENDS_EARLY],
    "fsdp best": ["fsdp", "train.keep_best=1", "train.artifact=best", "train.eval_every=1", *ENDS_EARLY],
    "ddp fp16": ["ddp", "train.dtype=fp16", "train.loss_scale=32768", "train.loss_scale_window=2"],
}


@pytest.mark.slow
@pytest.mark.parametrize("case", TOGETHER)
def test_average_early_stopping_scale_and_recomputed_blocks_on_two_ranks_equal_one(
    case: str, line: Line, tmp_path: Path
) -> None:
    mode, *settings = TOGETHER[case]
    words = [*command("pretrain", line), "train.steps=6", "train.micro_batch=4", *settings]
    if "train.optimizer.kind=muon" in settings:
        words.remove("train.optimizer.eps=1e-4")
    alone = run(*words, "--out", tmp_path / "one", cwd=tmp_path)
    assert alone.code == 0, alone.err
    fine(*words, f"train.parallel={mode}", "--out", tmp_path / "two", cwd=tmp_path)
    assert_same_run(tmp_path / "two", tmp_path / "one", tolerance=2e-6 if mode == "fsdp" else 2e-3)
    if "early_stopping" in " ".join(settings):
        last = 2 if "train.eval_every=1" in settings else 4
        assert [row["step"] for row in figures(tmp_path / "two")] == list(range(1, last + 1))


@pytest.mark.parametrize(
    ("stage", "mode"), [("grpo", "fsdp"), *(pytest.param("ppo", mode, marks=pytest.mark.slow) for mode in MODES)]
)
def test_adapters_learn_by_reinforcement_on_two_ranks_as_on_one(
    stage: str, mode: str, line: Line, tmp_path: Path
) -> None:
    own = {"grpo": ["train.ema=0.8"], "ppo": ["ppo.critic.kind=separate", "ppo.vf_coef=1"]}
    words = [*command(stage, line), "lora.rank=2", *own[stage]]
    alone = run(*words, "train.micro_batch=4", "--out", tmp_path / "one", cwd=tmp_path)
    assert alone.code == 0, alone.err
    fine(*words, f"train.parallel={mode}", "--out", tmp_path / "two", cwd=tmp_path)
    assert_same_run(tmp_path / "two", tmp_path / "one")
