"""The main of every command: mistakes in one sentence, output that cannot be written, processes that fail together."""

import subprocess
import sys
from pathlib import Path

import pytest

from llmcore import command
from llmcore.config import load_config
from llmcore.errors import ConfigError, LLMError
from llmcore.train.distributed import LostContactError


def test_settings_of_generation_stand_above_the_defaults_of_its_options() -> None:
    from llmcore.cli import assignments
    from llmcore.generate.sampling import Sampling

    options = assignments(max_new_tokens=200, temperature=0.8)
    assert load_config(Sampling, [*options, "temperature=0.5"]).temperature == 0.5
    assert load_config(Sampling, options).temperature == 0.8
    with pytest.raises(ConfigError, match="temperature=-1"):
        load_config(Sampling, [*options, "temperature=-1"])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_output_that_cannot_be_written_is_one_sentence() -> None:
    printing = (
        "import typer\nfrom llmcore import command\napp = typer.Typer()\n"
        "@app.command()\ndef say(lines: int) -> None:\n    print('word ' * lines)\n"
        "command.main(app)"
    )
    for lines in ("1", "100000"):
        with Path("/dev/full").open("w") as full:
            words = [sys.executable, "-c", printing, lines]
            done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
        assert done.returncode == 2, done.stderr
        assert "could not be written: the disk is full" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("rank", "error", "waits"),
    [
        ("0", ConfigError("a mistake"), False),
        ("1", ConfigError("a mistake"), True),
        ("0", LostContactError("the other is gone"), True),
    ],
)
def test_of_processes_that_fail_together_those_that_only_follow_wait(
    rank: str,
    error: LLMError,
    waits: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "2")
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    command.let_the_cause_speak_first(error)
    assert slept == ([command.PATIENCE] if waits else [])
    assert capsys.readouterr().err == (f"process {rank} of 2:\n" if waits else "")
