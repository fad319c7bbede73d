"""The quickstart itself: its arguments at once; the whole line, interrupted and gone on with, in the slow suite."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
COMMAND = [sys.executable, str(ROOT / "tools" / "quickstart.py")]
STAGES = ("pretrain", "sft", "reward", "ppo", "grpo")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ) | {"COLUMNS": "150", "OMP_WAIT_POLICY": "PASSIVE"}
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, encoding="utf-8", env=environment, check=False
    )


def test_help_names_every_option() -> None:
    done = run("--help")
    assert done.returncode == 0
    assert all(option in done.stdout for option in ("--data", "--out", "--fast", "--keep-going"))


def test_a_missing_text_is_one_sentence_and_writes_nothing(tmp_path: Path) -> None:
    done = run("--data", str(tmp_path / "none"), "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert "no such file or folder" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_failing_stage_ends_it_with_its_code_and_one_sentence(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.mkdir()
    (text / "bad.txt").write_bytes(b"caf\xe9 " * 100)
    done = run("--fast", "--data", str(text), "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert "not UTF-8" in done.stderr and "llmdata tokens ended with code 2" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_whole_line_goes_on_where_it_stopped_and_does_nothing_twice(tmp_path: Path) -> None:
    out = tmp_path / "quickstart"
    with subprocess.Popen([*COMMAND, "--fast", "--out", str(out)], stderr=subprocess.PIPE, text=True) as first:
        metrics = out / "pretrain" / "run" / "metrics.jsonl"
        deadline = time.monotonic() + 120
        while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.05)
        first.send_signal(signal.SIGTERM)
        assert "stopped at step" in first.communicate(timeout=60)[1]
    assert first.returncode == 143
    assert not (out / "pretrain" / "manifest.json").exists()

    second = run("--fast", "--out", str(out))
    assert second.returncode == 0, second.stderr[-3000:]
    assert "resumed from step" in second.stderr and "step 8/8" in second.stderr
    record = json.loads((out / "report.json").read_text(encoding="utf-8"))
    figures = record["figures"]
    assert figures["pretrain"]["bits_per_byte"]["high"] < figures["rulers"]["unigram"]
    assert figures["sft"]["sft"]["loss"] < figures["sft"]["pretrain"]["loss"] / 2
    assert figures["sft"]["sft"]["sampled"]["value"] > figures["sft"]["pretrain"]["sampled"]["value"]
    assert figures["reward"]["accuracy"]["low"] > figures["reward"]["ruler"]["high"]
    assert figures["rl"]["grpo"]["sampled/kl"]["value"] > 0
    assert {tuple(sample["given"]) for sample in record["samples"]} == {("sft", "pretrain", "ppo", "grpo")}
    assert {member.get("name") for member in record["family"]} >= set(STAGES)
    assert 0 < max(job["peak_bytes"] for job in record["jobs"].values()) < 4 << 30
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "http" not in page.replace("http-equiv", "") and page.count("<svg") > 10

    started_at = time.monotonic()
    third = run("--fast", "--out", str(out))
    assert third.returncode == 0
    assert third.stderr.count("· complete") == 8
    assert time.monotonic() - started_at < 15
    again = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert again["jobs"] == record["jobs"] and again["steps"] == record["steps"]
