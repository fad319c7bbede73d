"""The tool that measures results: what it would run, and the page that it makes of what was measured."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

from llmcore.errors import ArtifactError, DataError

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import results  # noqa: E402
import results_page  # noqa: E402

RECORD = {"machine": {"cores": "2"}, "jobs": {"grpo-0": {"command": "llmrl grpo a.toml"}}}


def options(tmp_path: Path, *topics: str, data: str = "none") -> argparse.Namespace:
    (tmp_path / "base").mkdir(exist_ok=True)
    (tmp_path / "base" / "manifest.json").touch()
    return argparse.Namespace(
        topics=topics, seeds=[0, 1], out=tmp_path / "out", data=tmp_path / data, base=tmp_path / "base"
    )


def interval(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.02, "high": value + 0.02}


def policy(right: float, score: float | None = None) -> dict[str, dict[str, float]]:
    """What `llmrl eval` prints of a policy."""
    found = {"sampled/rewards/literal": right, "greedy/rewards/literal": right, "sampled/kl": 0.5}
    if score is not None:
        found["sampled/rewards/judge"] = score
    return {name: interval(value) for name, value in found.items()}


def put(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content) + "\n")


def test_help_names_every_topic() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "results.py"), "--help"], capture_output=True, text=True, check=True
    )
    assert all(topic in done.stdout for topic in results.TOPICS)


def test_every_command_reads_what_an_earlier_one_made(tmp_path: Path) -> None:
    for data in results.DATA_SETS:
        (tmp_path / "sets" / data.file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "sets" / data.file).touch()
    (tmp_path / "sets" / results.NOVELS).mkdir(parents=True)
    steps = results.plan(options(tmp_path, *results.TOPICS, data="sets"))
    made = {tmp_path / "base"}
    for step in steps:
        for job in step.jobs:
            assert set(job.inputs) <= made, job.name
            assert all((ROOT / file).exists() for file in job.files)
            made |= set() if step.together else {job.out}
        made |= {job.out for job in step.jobs}
    names = [job.name for step in steps for job in step.jobs]
    assert len(names) == len(set(names))


def test_a_data_set_that_is_not_there_is_left_out_with_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sets" / results.NOVELS).mkdir(parents=True)
    assert results.plan(options(tmp_path, "sft", data="sets")) == []
    assert "sft on gsm8k is left out" in capsys.readouterr().err


def test_without_a_base_model_it_says_how_to_make_one(tmp_path: Path) -> None:
    given = options(tmp_path, "grpo")
    (tmp_path / "base" / "manifest.json").unlink()
    with pytest.raises(ArtifactError, match="there is no base model"):
        results.plan(given)


def test_the_page_shows_mean_and_range_and_keeps_what_a_person_wrote(tmp_path: Path) -> None:
    for seed, right in enumerate((0.8, 0.9)):
        put(tmp_path / "eval" / f"grpo-{seed}.json", {"sft": policy(0.3), "grpo": policy(right)})
        put(tmp_path / "grpo-0" / "run" / "metrics.jsonl", {"step": 1, "seconds": 75.0})
    page = tmp_path / "page.md"
    page.write_text(f"before\n{results_page.BEGIN}\nold\n{results_page.END}\nafter\n")
    results_page.write(tmp_path, RECORD, page=page)
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "**85.0 % (80.0–90.0)**" in text and "80.0\u00a0% [78.0, 82.0]" in text
    assert "| 1:15 |" in text and "uv run llmrl grpo a.toml" in text


def test_a_page_without_marks_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("mine\n")
    with pytest.raises(DataError, match="has no line"):
        results_page.write(tmp_path, RECORD, page=page)
    assert page.read_text() == "mine\n"


def test_the_curve_is_true_and_learned_reward_over_kl(tmp_path: Path) -> None:
    for seed in (0, 1):
        rows = [
            {"step": step, "val_kl": step + seed, "val_rewards/literal": 0.5, "val_greedy_rewards/literal": 0.6,
             f"val_rewards/judge-{seed}": 1.0 + step}
            for step in (1, 2)
        ]  # fmt: skip
        rows[0] |= {"rewards/literal/mean": 0.25, f"rewards/judge-{seed}/mean": 0.0}
        path = tmp_path / f"overoptimisation-{seed}" / "run" / "metrics.jsonl"
        path.parent.mkdir(parents=True)
        (path.parent.parent / "manifest.json").touch()
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = results_page.write(tmp_path, RECORD, page=tmp_path / "results.md")
    assert "| 2 | 2.50 (2.00–3.00) | 3.00 (3.00–3.00) | 50.0 % (50.0–50.0) |" in page.read_text()
    assert "| 0 | 0.00 (0.00–0.00) | 0.00 (0.00–0.00) | 25.0" in page.read_text()
    assert "learned: mean score" in (tmp_path / results_page.CURVE).read_text()


def test_fine_tuning_and_rewards_stand_beside_what_is_easily_had_and_name_every_command(tmp_path: Path) -> None:
    scores = {"asked": 9, "loss": 2.0, "perplexity": 7.4, "greedy": interval(0.5), "exact_match": interval(0.25)}
    put(tmp_path / "eval" / "sft-gsm8k.json", {"base": scores, "sft-gsm8k-0": scores})
    judged = {"accuracy": interval(0.554), "ruler": {**interval(0.445), "cases": 382}, "calibration_error": 0.05}
    put(tmp_path / "eval" / "reward-hh_rlhf-0.json", judged)
    names = ["tokenizer", "tokens", "base", "gsm8k chats", "sft-gsm8k-0", "eval sft-gsm8k", "hh_rlhf preferences",
             "reward-hh_rlhf-0", "eval reward-hh_rlhf-0"]  # fmt: skip
    record = {"machine": {}, "jobs": {name: {"command": f"make {name}"} for name in names}}
    text = results_page.write(tmp_path, record, page=tmp_path / "results.md").read_text()
    assert "| 25.0 % → 25.0 % |" in text  # exact match, not equal literals
    assert "| 55.5\u00a0% (longer wins: 44.5\u00a0% [42.5, 46.5]) |" in text
    assert [line for line in text.splitlines() if line.startswith("uv run")] == [
        f"uv run make {name}" for name in names
    ]


def test_data_sets_of_others_have_no_default_place() -> None:
    words = [sys.executable, str(ROOT / "tools" / "results.py"), "sft"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "need --data" in done.stderr
