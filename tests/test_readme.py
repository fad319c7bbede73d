"""Pages: links lead somewhere, commands are known, docs/tree.md is up to date, every shipped settings file is valid."""

import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import typer

from llmcore.config import Config, load_config

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
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


def test_the_page_of_the_tree_is_up_to_date() -> None:
    subprocess.run([sys.executable, ROOT / "tools" / "tree.py", "--check"], check=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing


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
