"""The README's tree is the real one, its commands are known, and every shipped settings file is valid."""

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest
import typer

from llmcore.config import Config, load_config

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
CONFIGS = sorted((ROOT / "configs").rglob("*.toml"))


def settings_class(path: Path) -> type[Config]:
    """The settings that a file below configs/<stage>/ is for."""
    stage = path.parent.name
    if stage == "rl":
        name = "GRPOConfig" if path.stem.startswith("grpo") else "PPOConfig"
        return getattr(import_module("llmrl.config"), name)
    names = {"data": "RecordsConfig", "pretrain": "PretrainConfig", "sft": "SFTConfig", "reward": "RewardConfig"}
    return getattr(import_module(f"llm{stage}.config"), names[stage])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_shipped_settings_are_valid(path: Path) -> None:
    assert load_config(settings_class(path), [str(path)])


@pytest.mark.parametrize("kind", {settings_class(path) for path in CONFIGS}, ids=lambda kind: kind.__name__)
def test_settings_have_a_json_schema(kind: type[Config]) -> None:
    assert set(kind.model_json_schema()["properties"]) == set(kind.model_fields)


def tree_paths() -> set[str]:
    """The Python files that the README's tree names."""
    block = README.split("## The tree")[1].split("```")[1]
    found: set[str] = set()
    folder = ""
    for row in block.splitlines():
        if match := re.match(r"^(packages/\S+/|tools/|tests/)", row):
            folder = match[1]
        elif match := re.match(r"^\s+(\S+?)(?:\.py)?\s{2,}", row):
            found.add(folder + match[1])
    return found


def test_the_tree_is_the_real_one() -> None:
    real: set[str] = set()
    for source in sorted((ROOT / "packages").glob("*/src/*")):
        for path in source.rglob("*.py"):
            relative = path.relative_to(source).with_suffix("").as_posix()
            if not path.name.startswith("__"):
                real.add(f"packages/{source.name}/{relative}")
    real |= {f"tools/{path.stem}" for path in (ROOT / "tools").glob("*.py")}
    assert tree_paths() == real


def commands() -> list[list[str]]:
    """Every `uv run llm…` line of the README."""
    lines = re.findall(r"^uv run (llm.*?)(?:\s+#.*)?$", README, re.MULTILINE)
    return [shlex.split(line) for line in lines]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_the_readmes_commands_are_known(words: list[str]) -> None:
    app = typer.main.get_command(import_module(f"{words[0]}.cli").app)
    for word in words[1:]:
        inner = getattr(app, "commands", {})
        if word not in inner:
            break
        app = inner[word]
    assert not getattr(app, "commands", None), f"{words} names no command"
    options = {name for parameter in app.params for name in parameter.opts}
    given = {word for word in words if word.startswith("--")}
    assert given <= options, given - options
    for word in words:
        if word.startswith("configs/"):
            assert (ROOT / word).exists()
