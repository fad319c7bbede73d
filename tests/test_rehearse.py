"""`plan` and `replay`, as a person gives them: what a run would do, and one step of it again to the bit."""

import json
from pathlib import Path

import pytest

from conftest import QUICK, TINY, Line
from forked import run

STAGES = ["pretrain", "sft", "reward", "grpo", "ppo"]


def command(stage: str, line: Line) -> list[str | Path]:
    rollouts = ["rollout.max_completion_length=8", "rollout.eval_prompts=4", "train.batch=8"]
    return {
        "pretrain": ["llmpretrain", "run", "--data", line.tokens, *TINY, *QUICK],
        "sft": ["llmsft", "run", "--base", line.base, "--data", line.chats, *QUICK],
        "reward": ["llmreward", "run", "--base", line.sft, "--data", line.preferences, *QUICK],
        "grpo": ["llmrl", "grpo", "--policy", line.sft, "--reward", "literal", "--prompts", line.prompts, *QUICK,
                 "grpo.num_generations=4", *rollouts],
        "ppo": ["llmrl", "ppo", "--policy", line.sft, "--reward", line.reward, "--prompts", line.prompts, *QUICK,
                *rollouts],
    }[stage]  # fmt: skip


def plan_command(stage: str, line: Line) -> list[str | Path]:
    words = command(stage, line)
    return [words[0], "plan", *words[1:]] if words[0] == "llmrl" else [words[0], "plan", *words[2:]]


def tree(folder: Path) -> dict[str, float]:
    """Every file below a folder, with the time it was changed."""
    return {str(p): p.stat().st_mtime_ns for p in folder.rglob("*") if ".output-" not in str(p)}


@pytest.mark.parametrize("stage", STAGES)
def test_a_plan_says_what_the_run_then_does_and_writes_nothing(stage: str, line: Line, tmp_path: Path) -> None:
    before = tree(line.root)
    told = run(*plan_command(stage, line), "--out", tmp_path / "out", cwd=tmp_path)
    assert told.code == 0, told.err
    for word in ("parameters", "memory", "time", "batch", "decay"):
        assert word in told.out
    done = run(*plan_command(stage, line), "--out", tmp_path / "out", "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    plan = json.loads(done.out)
    assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".output-")] == []
    assert tree(line.root) == before
    assert plan["steps"] == 6 and plan["steps_done"] == 0
    assert max(plan["memory"].values()) == plan["memory"]["total"] > 0
    assert sum(group["parameters"] for group in plan["groups"]) == plan["trained_parameters"]
    if stage == "pretrain":
        assert run(*command(stage, line), "--out", tmp_path / "out", cwd=tmp_path).code == 0
        manifest = json.loads((tmp_path / "out/manifest.json").read_text())
        assert manifest["counts"]["tokens"] == plan["tokens"]
        again = json.loads(run(*plan_command(stage, line), "--out", tmp_path / "out", "--json", cwd=tmp_path).out)
        assert again["steps_done"] == 6 and again["seconds"] == 0


def test_a_plan_of_another_run_in_the_folder_is_refused_as_the_run_would_be(line: Line, tmp_path: Path) -> None:
    refused = run(*plan_command("pretrain", line), "train.lr=0.5", "--out", line.base, cwd=tmp_path)
    assert refused.code == 2
    assert "train.lr is 0.5" in refused.err and "Traceback" not in refused.err


def test_a_plan_makes_no_builtin_data(tmp_path: Path) -> None:
    refused = run("llmpretrain", "plan", *TINY, cwd=tmp_path)
    assert refused.code == 2
    assert "this command makes nothing" in refused.err and "llmdata tokens --out runs/data/tokens" in refused.err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("stage", ["pretrain", "ppo", *(pytest.param(s, marks=pytest.mark.slow) for s in STAGES[1:4])])
def test_any_step_of_a_run_is_replayed_to_the_bit(stage: str, line: Line, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(*command(stage, line), "--out", out, "train.micro_batch=4", cwd=tmp_path).code == 0
    before = tree(out)
    replayed = run("llmcore", "replay", out, "--step", "4", "--json", cwd=tmp_path)
    assert replayed.code == 0, replayed.err
    found = json.loads(replayed.out)
    assert found["identical"] == {"loss": True, "grad_norm": True}, found
    assert found["first"] is None and len(found["losses"]) >= 1
    assert len(found["rows"]) == (0 if stage in ("grpo", "ppo") else 8)
    silent = {name for name, norms in found["norms"].items() if not norms["output"]}
    assert silent <= {"head"}  # whose weight a loss may use without calling it
    assert stage == "grpo" or any(norms["output_gradient"] for norms in found["norms"].values())
    assert tree(out) == before


@pytest.mark.parametrize("settings", [["train.dtype=fp16", "train.loss_scale_window=2"], ["train.ema=0.9"]])
def test_precision_and_averages_are_replayed_to_the_bit(settings: list[str], line: Line, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(*command("pretrain", line), *settings, "--out", out, cwd=tmp_path).code == 0
    replayed = run("llmcore", "replay", out, "--step", "6", "--json", cwd=tmp_path)
    assert replayed.code == 0, replayed.err
    assert json.loads(replayed.out)["identical"] == {"loss": True, "grad_norm": True}


def test_a_replay_is_readable_and_its_inputs_may_have_moved(line: Line, tmp_path: Path) -> None:
    out, moved = tmp_path / "out", tmp_path / "elsewhere"
    tokens = tmp_path / "tokens"
    tokens.symlink_to(line.tokens)
    assert run("llmpretrain", "run", "--data", "tokens", *TINY, *QUICK, "--out", out, cwd=tmp_path).code == 0
    tokens.rename(moved)
    lost = run("llmcore", "replay", out, "--step", "2", cwd=tmp_path)
    assert lost.code == 2 and "tokens" in lost.err
    told = run("llmcore", "replay", out, "--step", "2", "inputs.data=elsewhere", cwd=tmp_path)
    assert told.code == 0, told.err
    for word in ("step 2", "(as recorded, to the bit)", "every number is finite", "blocks.1.feedforward", "final_norm"):
        assert word in told.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--step", "0"], "counted from 1"),
        ([], "neither a run nor a nan-dump"),
        (["--step", "2", "train.lr=1"], "would make it another run"),
    ],
)
def test_a_replay_that_cannot_be_is_one_sentence(words: list[str], message: str, line: Line, tmp_path: Path) -> None:
    refused = run("llmcore", "replay", line.base, *words, cwd=tmp_path)
    assert refused.code == 2 and message in refused.err and "Traceback" not in refused.err


def test_a_step_behind_the_last_is_none_of_the_run(line: Line, tmp_path: Path) -> None:
    refused = run("llmcore", "replay", line.base, "--step", "9999", f"inputs.data={line.tokens}", cwd=tmp_path)
    assert refused.code == 2 and "the run ends with step" in refused.err


DIVERGING = ["train.lr=1e30", "train.schedule.kind=constant", "train.schedule.warmup=0", "train.clip=1e30"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_diverged_run_names_the_layer_and_its_dump_is_replayed(stage: str, line: Line, tmp_path: Path) -> None:
    words = [line.reward if word == "literal" else word for word in command(stage, line)]  # rewards that differ
    twice = ["grpo.num_iterations=2"] if stage == "grpo" else []  # the broken policy has nothing to sample
    broken = run(*words, "--out", "out", "train.micro_batch=4", *DIVERGING, *twice, cwd=tmp_path)
    assert broken.code == 2, broken.err
    [dump] = (tmp_path / "out/run/nan-dump").iterdir()
    told = json.loads((dump / "step.json").read_text())
    assert told["first"] and told["first"] in broken.err
    assert len(told["rows"]) == (0 if stage in ("grpo", "ppo") else 8)
    for path in (dump, tmp_path / "out/run/nan-dump", tmp_path / "out")[: 3 if stage == "pretrain" else 1]:
        replayed = run("llmcore", "replay", path, "--json", cwd=tmp_path)
        assert replayed.code == 0, replayed.err
        found = json.loads(replayed.out)
        assert found["identical"] == {"losses": True, "grad_norm": True}
        assert found["first"] == told["first"] and found["rows"] == told["rows"]
