"""Commands ended at random moments, by kill -9 and by signals: nothing announced is lost, and the end is the same."""

import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from clock import shifted
from conftest import Line
from forked import Done, run, start
from llmcore.manifest import verify_artifact
from test_resume import STEPS, Few, command, few, figures

__all__ = ["few"]  # a fixture, which pytest finds by its name here
ENDED = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}
LEAVES_WITHIN = 10
"""Seconds from a signal to the end of a process: a step and a save, which take milliseconds here."""
NIGHTLY = {"pretrain": 40, "moe": 32, "sft": 32, "reward": 32, "grpo": 32, "ppo": 32}
"""Kills of each stage: 200."""


class Ends:
    """One training command, given again and again, and ended at random moments."""

    def __init__(self, words: Sequence[str | Path], folder: Path, *, seed: str) -> None:
        self.words, self.folder, self.chance = words, folder, random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.runs = 0
        began = time.monotonic()
        done = run(*words, "--out", folder / "whole", cwd=folder)
        assert done.code == 0, done.err
        self.takes = time.monotonic() - began

    def make(self, ends: int, numbers: Sequence[signal.Signals]) -> None:
        """So many ends, by random ones of some signals, in as many runs as that takes."""
        made = 0
        while made < ends:
            self.runs += 1
            out, said = self.folder / f"run-{self.runs}", 0
            while made < ends:
                number = self.chance.choice(numbers)
                done, ended = self.attempt(out, number)
                made += ended
                said = self.check(out, done, said)
                if done.code == 0:
                    break
            else:
                self.check(out, run(*self.words, "--out", out, cwd=self.folder), said)
            self.check_same(out)
            shutil.rmtree(out)

    def attempt(self, out: Path, number: signal.Signals) -> tuple[Done, bool]:
        """How one start ended, and whether the signal ended it."""
        child = start(*self.words, "--out", out, cwd=self.folder)
        told = child.output / "err"
        early = self.chance.random() < 0.1
        while child.process.is_alive() and not told.stat().st_size and not (early and number == signal.SIGKILL):
            time.sleep(0.002)  # before the command's own first line, a signal is Python's
        child.process.join(self.chance.uniform(0, 0.8 * self.takes))
        alive = child.process.is_alive()
        if alive:
            assert child.process.pid is not None
            sent_at = time.monotonic()
            os.kill(child.process.pid, number)
            child.process.join(60)
            took = time.monotonic() - sent_at
            assert took < LEAVES_WITHIN, f"{took:.1f} s after {number.name}"
        done = child.result()
        shutil.rmtree(child.output)
        complete = (out / "manifest.json").exists()
        if not (alive and complete):  # as the last instant of a process is Python's too
            assert done.code in (0, ENDED[number]) and "Traceback" not in done.err, (done.code, done.err)
        unfinished = any((out / "run/checkpoints").glob(".tmp-step-*"))
        self.counts[f"{number.name}{' inside a save' if unfinished else ''}" if done.code else "ended before"] += 1
        return done, done.code != 0

    def check(self, out: Path, done: Done, said: int) -> int:
        """All that was announced is there, and the start went on from it; the newest announced step."""
        steps = {int(path.name[5:]): path for path in (out / "run/checkpoints").glob("step-*")}
        for path in steps.values():
            verify_artifact(path, expect="snapshot")
        gone_on = re.search(r"resumed from step (\d+)\n", done.err)
        assert gone_on is None or int(gone_on[1]) >= said, done.err
        said = max([said, *map(int, re.findall(r"saved step (\d+)\n", done.err))])
        assert max(steps, default=0) >= said, (sorted(steps), done.err)
        return said

    def check_same(self, out: Path) -> None:
        whole = self.folder / "whole"
        assert verify_artifact(out).files == verify_artifact(whole).files
        assert figures(out) == figures(whole)
        last = f"run/checkpoints/step-{STEPS:08d}"
        for name in ("model.safetensors", "optimizer.safetensors"):
            assert (out / last / name).read_bytes() == (whole / last / name).read_bytes()
        assert not list(out.rglob(".tmp-*"))


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["pretrain", "grpo"])
def test_ten_kills_at_random_moments_lose_nothing(stage: str, line: Line, few: Few, tmp_path: Path) -> None:
    Ends(command(stage, line, few), tmp_path, seed=stage).make(10, [signal.SIGKILL])


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "ppo"])
def test_signals_at_random_moments_save_and_exit_with_their_code(
    stage: str, line: Line, few: Few, tmp_path: Path
) -> None:
    Ends(command(stage, line, few), tmp_path, seed=stage).make(4, [signal.SIGTERM, signal.SIGINT])


@pytest.mark.nightly
@pytest.mark.parametrize("stage", NIGHTLY)
def test_two_hundred_kills_lose_nothing(stage: str, line: Line, few: Few, tmp_path: Path) -> None:
    ends = Ends(command(stage, line, few), tmp_path, seed=f"nightly {stage}")
    ends.make(NIGHTLY[stage], [signal.SIGKILL])
    print(f"\n{stage}: {dict(ends.counts)} in {ends.runs} runs, each the same to the bit")


@pytest.mark.nightly
@pytest.mark.parametrize("stage", NIGHTLY)
def test_twenty_signals_for_each_stage(stage: str, line: Line, few: Few, tmp_path: Path) -> None:
    ends = Ends(command(stage, line, few), tmp_path, seed=f"signals {stage}")
    ends.make(20, [signal.SIGTERM, signal.SIGINT])
    print(f"\n{stage}: {dict(ends.counts)} in {ends.runs} runs, each the same to the bit")


def test_of_two_runs_in_one_folder_one_trains_and_the_other_is_told(line: Line, few: Few, tmp_path: Path) -> None:
    words = [*command("pretrain", line, few), "--out", tmp_path / "out"]
    first = start(*words, cwd=tmp_path)
    pid = first.process.pid
    assert pid is not None
    wait_for_holder(tmp_path / "out/run/.lock")
    os.kill(pid, signal.SIGSTOP)  # so that it cannot end before the second begins
    try:
        second = run(*words, cwd=tmp_path)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert second.code == 2 and "Traceback" not in second.err
    assert f"out/run is in use by process {pid} on {socket.gethostname()}" in second.err, second.err
    assert first.result().code == 0
    assert run(*command("pretrain", line, few), "--out", tmp_path / "whole", cwd=tmp_path).code == 0
    assert verify_artifact(tmp_path / "out").files == verify_artifact(tmp_path / "whole").files
    assert figures(tmp_path / "out") == figures(tmp_path / "whole")


def wait_for_holder(lock: Path, *, limit: float = 60) -> None:
    """Until a process has written its name into the lock, which it does once it holds it."""
    deadline = time.monotonic() + limit
    while not (lock.exists() and lock.read_text()):
        assert time.monotonic() < deadline, f"nobody took {lock}"
        time.sleep(0.002)


@pytest.mark.parametrize(
    "stage",
    [
        pytest.param(stage, marks=pytest.mark.slow if stage == "ppo" else pytest.mark.nightly)
        for stage in ("moe", "sft", "reward", "grpo", "ppo")
    ],
)
def test_surroundings_change_no_bit_of_any_stage(stage: str, line: Line, few: Few, tmp_path: Path) -> None:
    """Stopped, and gone on with in other surroundings than it was started in; see `test_audit` for pretraining."""
    words = command(stage, line, few)
    assert run(*words, "--out", tmp_path / "whole", cwd=tmp_path).code == 0
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for cwd, umask, variables, more in (
        (tmp_path, 0o022, {"PYTHONHASHSEED": "1", "LC_ALL": "C", "TZ": "UTC"}, ["train.stop_after=3"]),
        (elsewhere, 0o077, {"PYTHONHASHSEED": "77", "LC_ALL": "C.UTF-8", "TZ": "Asia/Tokyo"}, ["train.stop_after=9"]),
    ):
        clock = shifted(-1e9, rate=50) if cwd == elsewhere else ""
        code = f"{clock}\nimport os; os.umask({umask})\nfrom {words[0]}.cli import main; main()"
        arguments = [sys.executable, "-c", code, *map(str, words[1:]), *more, "--out", str(tmp_path / "out")]
        environment = {**os.environ, **variables, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(arguments, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert "resumed from step 3" in done.stderr
    assert verify_artifact(tmp_path / "out").files == verify_artifact(tmp_path / "whole").files
    assert figures(tmp_path / "out") == figures(tmp_path / "whole")
