"""An option that would do nothing is refused before anything is loaded or written."""

from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import Line
from forked import run

TASK = '{"sentence_good": "a", "sentence_bad": "b"}\n'
WAYS: dict[str, Callable[[Line, Path], list[str | Path]]] = {
    "export hf --base": lambda line, here: ["llmcore", "export", "hf", line.base, here / "out", "--base", line.base],
    "pretrain eval --windows": lambda line, here: [
        "llmpretrain", "eval", line.base, "--tasks", here / "task.jsonl", "--windows", "5"],
    "sft eval --samples": lambda line, here: [
        "llmsft", "eval", line.base, "--tasks", here / "task.jsonl", "--samples", "2"],
    "sft eval --count": lambda line, here: [
        "llmsft", "eval", line.base, "--tasks", here / "task.jsonl", "--count", "500"],
    "sft eval --max-new-tokens": lambda line, here: [
        "llmsft", "eval", line.base, "--tasks", here / "task.jsonl", "--max-new-tokens", "64"],
    "reward score --answer": lambda line, _: [
        "llmreward", "score", line.reward, "--data", line.chats / "valid.jsonl", "--answer", "x"],
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_an_option_that_does_nothing_is_an_error(way: str, line: Line, tmp_path: Path) -> None:
    (tmp_path / "task.jsonl").write_text(TASK)
    words = WAYS[way](line, tmp_path)
    done = run(*words, cwd=tmp_path)
    option = way.split()[-1]
    assert done.code == 2 and "Traceback" not in done.err, done.err
    assert f"error: {option}" in done.err and "does nothing" in done.err and "fix: leave it out" in done.err, done.err
    assert not (tmp_path / "out").exists() and not done.out
