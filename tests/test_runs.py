"""`llmcore runs`, as a person uses it on real runs."""

import json
import re
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from conftest import QUICK, TINY, Line
from forked import Done, ReadyTest, run, start


@pytest.fixture
def runs(line: Line, tmp_path: Path) -> Path:
    """A folder with a finished run that keeps some checkpoints, one that was stopped, and a stage made from one."""
    words = ["llmpretrain", "run", "--data", line.tokens, *TINY, *QUICK]
    done(*words, "train.keep=9", "train.save_every=1", "--out", "runs/a", cwd=tmp_path)
    done(*words, "train.lr=0.01", "train.keep=9", "train.stop_after=4", "--out", "runs/deep/b", cwd=tmp_path)
    return tmp_path / "runs"


def done(*words: str | Path, cwd: Path) -> Done:
    result = run(*words, cwd=cwd)
    assert result.code == 0, result.err
    return result


def steps_of(out: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (out / "run/checkpoints").iterdir())


def test_runs_are_listed_shown_compared_and_drawn(runs: Path, line: Line) -> None:
    cwd = runs.parent
    listed = done("llmcore", "runs", "ls", cwd=cwd).out
    assert re.search(r"runs/a .*llmpretrain run .*finished .*6/6", listed)
    assert re.search(r"runs/deep/b .*stopped .*4/6", listed)
    rows = {row["run"]: row for row in json.loads(done("llmcore", "runs", "ls", "--json", cwd=cwd).out)}
    assert rows["runs/a"]["best"]["metric"] == "val_loss" and rows["runs/a"]["best"]["step"] in (3, 6)
    assert rows["runs/a"]["bytes"] > rows["runs/deep/b"]["bytes"] > 10_000

    shown = done("llmcore", "runs", "show", "runs/a", cwd=cwd).out
    for word in ("finished", "checkpoints", "best", "parents", "data", "loss", "torch", "┤"):
        assert word in shown

    found = json.loads(done("llmcore", "runs", "diff", "runs/a", "runs/deep/b", "--json", cwd=cwd).out)
    by_name = {row["name"]: row for row in found}
    assert by_name["train.lr"] == {"kind": "setting", "name": "train.lr", "left": 0.002, "right": 0.01}
    assert {"train.stop_after", "loss"} <= by_name.keys() and "seconds" not in by_name
    other = json.loads(done("llmcore", "runs", "diff", "runs/a", line.sft, "--json", cwd=cwd).out)
    assert {"made_by", "base"} <= {row["name"] for row in other}
    assert "they are the same" in done("llmcore", "runs", "diff", "runs/a", "runs/a", cwd=cwd).out

    drawn = done(
        "llmcore", "runs", "plot", "runs/a", "runs/deep/b", "--metric", "loss", "--metric", "val_loss",
        "--out", "curves.svg", cwd=cwd,
    ).out  # fmt: skip
    assert "loss · runs/a" in drawn and "val_loss · runs/deep/b" in drawn
    picture = ElementTree.parse(cwd / "curves.svg")
    text = "".join(picture.getroot().itertext())
    assert "runs/a" in text and "steps" in text


def test_pruning_says_first_and_never_takes_artifacts_or_pins(runs: Path) -> None:
    cwd, out = runs.parent, runs / "a"
    done("llmcore", "runs", "pin", "runs/a", "2", cwd=cwd)
    before = {path: path.read_bytes() for path in out.iterdir() if path.is_file()}
    told = done("llmcore", "runs", "prune", "runs", "--keep", "1", "--keep-best", "0", cwd=cwd).out
    assert "step-00000001" in told and "a/run/checkpoints/step-00000002" not in told and "--yes" in told
    assert steps_of(out) == [1, 2, 3, 4, 5, 6] and steps_of(runs / "deep/b") == [2, 4]
    done("llmcore", "runs", "prune", "runs", "--keep", "1", "--keep-best", "0", "--yes", cwd=cwd)
    assert steps_of(out) == [2, 6] and steps_of(runs / "deep/b") == [4]
    done("llmcore", "runs", "unpin", "runs/a", "2", cwd=cwd)
    done("llmcore", "runs", "prune", "runs/a", "--keep", "0", "--keep-best", "0", "--yes", cwd=cwd)
    assert steps_of(out) == []
    assert {path: path.read_bytes() for path in out.iterdir() if path.is_file()} == before
    assert done("llmcore", "verify", "runs/a", cwd=cwd).out
    refused = run("llmcore", "runs", "prune", "runs/deep/b", "--keep", "0", cwd=cwd)
    assert refused.code == 2 and "is not finished" in refused.err


def test_the_best_checkpoint_is_pruned_last(runs: Path) -> None:
    cwd = runs.parent
    best = json.loads(done("llmcore", "runs", "show", "runs/a", "--json", cwd=cwd).out)["best"]["step"]
    done("llmcore", "runs", "prune", "runs/a", "--yes", cwd=cwd)
    assert steps_of(runs / "a") == sorted({best, 6})


def test_a_running_run_is_seen_and_left_alone(line: Line, tmp_path: Path) -> None:
    words = ["llmpretrain", "run", "--data", line.tokens, *TINY, *QUICK, "train.steps=100000", "train.save_every=1"]
    child = start(*words, "train.keep=5", "--out", "out", cwd=tmp_path)
    waiting = ReadyTest(tmp_path / "out/run/checkpoints", "step-00000003")
    try:
        while not waiting():
            assert child.process.is_alive()
        assert json.loads(done("llmcore", "runs", "show", "out", "--json", cwd=tmp_path).out)["state"] == "running"
        pruned = done("llmcore", "runs", "prune", "out", "--yes", cwd=tmp_path).out
        assert pruned.startswith("0 removed")
    finally:
        child.process.kill()
        child.process.join()
    assert json.loads(done("llmcore", "runs", "show", "out", "--json", cwd=tmp_path).out)["state"] == "died"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["show", "nowhere"], "no folder of a run"),
        (["ls", "nowhere"], "no such folder"),
        (["plot", "runs/a", "--metric", "val_reward"], "no run has the metric 'val_reward'"),
        (["plot", "runs/a", "--out", "curves.png"], "no .svg file"),
        (["pin", "runs/a", "77"], "no checkpoint of step 77"),
        (["unpin", "runs/a", "3"], "no pin of step 3"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(words: list[str], message: str, line: Line, tmp_path: Path) -> None:
    shutil.copytree(line.base, tmp_path / "runs/a")
    refused = run("llmcore", "runs", *words, cwd=tmp_path)
    assert refused.code == 2 and message in refused.err and "Traceback" not in refused.err


def test_a_damaged_run_is_listed_as_unreadable(line: Line, tmp_path: Path) -> None:
    shutil.copytree(line.base, tmp_path / "runs/a")
    shutil.copytree(line.base, tmp_path / "runs/b")
    (tmp_path / "runs/b/run/run.json").write_text("{")
    listed = done("llmcore", "runs", "ls", cwd=tmp_path).out
    assert "finished" in listed and "unreadable" in listed


def test_init_begins_with_the_weights_of_another_and_is_no_resume(line: Line, tmp_path: Path) -> None:
    words = ["llmpretrain", "run", "--data", line.tokens, *QUICK, "--init", line.base, "--out", "out"]
    told = done(*words, cwd=tmp_path)
    assert "this is not a resume" in told.err and "resumed from" not in told.err
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert set(manifest["parents"]) == {"data", "init"}
    assert manifest["config"]["model"]["depth"] == 2, "the shape is that of the weights"
    first = json.loads((tmp_path / "out/run/metrics.jsonl").read_text().splitlines()[0])
    fresh = json.loads((line.base / "run/metrics.jsonl").read_text().splitlines()[0])
    assert first["step"] == 1 and first["loss"] < fresh["loss"]
    refused = run(*words[:-1], "other", "model.depth=3", cwd=tmp_path)
    assert refused.code == 2 and "model.depth is 3" in refused.err and "it is 2" in refused.err
    another = run(*words[:-4], "--out", "out", *TINY, cwd=tmp_path)
    assert another.code == 2 and "parent init is not set" in another.err


def test_samples_are_shown_during_training(line: Line, tmp_path: Path) -> None:
    shared = [*QUICK, "train.sample_every=3", "train.sample_tokens=8"]
    told = done("llmpretrain", "run", "--data", line.tokens, *TINY, *shared, "--out", "a", cwd=tmp_path)
    assert "step 3 says: def │" in told.err
    told = done("llmsft", "run", "--base", line.base, "--data", line.chats, *shared, "--out", "b", cwd=tmp_path)
    assert told.err.count("step 6 says:") == 3
    rows = [json.loads(text) for text in (tmp_path / "b/run/samples.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [3, 3, 3, 6, 6, 6]
    words = ["llmreward", "run", "--base", line.base, "--data", line.preferences, *shared, "--out", "c"]
    refused = run(*words, cwd=tmp_path)
    assert refused.code == 2 and "this stage has no samples" in refused.err
