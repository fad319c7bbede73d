"""Settings as a file, and what the options of commands say."""

from pathlib import Path

import pytest

from llmcore.config import load_config
from llmcore.errors import ConfigError
from llmcore.next_command import as_typed
from llmcore.options import default_out, refuse_unused
from llmcore.settings_commands import template


def test_a_settings_file_made_from_the_defaults_gives_the_defaults(tmp_path: Path) -> None:
    from llmcore.train.config import TrainConfig

    path = tmp_path / "all.toml"
    path.write_text("\n".join(template(TrainConfig())))
    assert load_config(TrainConfig, [str(path)]) == TrainConfig()
    assert 'watch = ["tensorboard"]' in path.read_text()


def test_a_run_is_named_after_its_stage_and_settings_file() -> None:
    assert default_out("sft", []) == Path("runs/sft")
    assert default_out("sft", ["configs/sft/tiny.toml", "train.lr=1"]) == Path("runs/sft-tiny")
    assert default_out("grpo", ["configs/rl/grpo-tiny.toml"]) == Path("runs/grpo-tiny")


def test_an_option_that_does_nothing_is_refused_by_its_name() -> None:
    refuse_unused("here", base=None, check=False)
    with pytest.raises(ConfigError, match="--max-new-tokens 0 does nothing here"):
        refuse_unused("here", base=None, max_new_tokens=0)
    with pytest.raises(ConfigError, match="--check does nothing here"):
        refuse_unused("here", check=True)


def test_the_next_command_can_be_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UV_RUN_RECURSION_DEPTH", raising=False)
    assert as_typed("llmcore doctor") == "llmcore doctor"
    monkeypatch.setenv("UV_RUN_RECURSION_DEPTH", "1")
    assert as_typed("llmcore doctor") == "uv run llmcore doctor"
