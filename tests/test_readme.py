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
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("packages/*/README.md"))]
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing


def test_the_tests_that_pages_name_are_there() -> None:
    files = [*ROOT.glob("tests/test_*.py"), *ROOT.glob("packages/*/tests/test_*.py")]
    functions = {name for path in files for name in re.findall(r"^def (\w+)", path.read_text(), re.MULTILINE)}
    named = {name for page in PAGES for name in re.findall(r"`(?:[\w/]+/)?(test_\w+)(?:\.py)?`", page.read_text())}
    there = functions | {path.stem for path in files}
    assert len(named) > 100 and named <= there, named - there


SETTINGS = {
    "llmdata tokenizer": "llmdata.config.TokenizerConfig",
    "llmdata tokens": "llmdata.config.TokensConfig",
    "llmdata records": "llmdata.config.RecordsConfig",
    "llmdata config tokens show": "llmdata.config.TokensConfig",
    "llmpretrain run": "llmpretrain.config.PretrainConfig",
    "llmpretrain plan": "llmpretrain.config.PretrainConfig",
    "llmsft run": "llmsft.config.SFTConfig",
    "llmsft plan": "llmsft.config.SFTConfig",
    "llmsft preview": "llmsft.config.SFTConfig",
    "llmreward run": "llmreward.config.RewardConfig",
    "llmreward plan": "llmreward.config.RewardConfig",
    "llmreward shape": "llmreward.config.ShapeConfig",
    "llmrl grpo": "llmrl.config.GRPOConfig",
    "llmrl plan grpo": "llmrl.config.GRPOConfig",
    "llmrl ppo": "llmrl.config.PPOConfig",
    "llmrl plan ppo": "llmrl.config.PPOConfig",
    "llmcore generate": "llmcore.generate.sampling.Sampling",
    "llmcore chat": "llmcore.generate.sampling.Sampling",
}
"""What the settings of a command make."""


def command_lines(page: Path) -> set[str]:
    """Our commands as a page has them: lines of its blocks, and words between backticks."""
    text = page.read_text()
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    ours = (re.fullmatch(r"(?:uv run )?(?:torchrun .* -m )?(llm[a-z]+ [a-z].*)", line.strip()) for line in lines)
    return {found[1] for found in ours if found}


LINES = sorted({(page.relative_to(ROOT).as_posix(), line) for page in PAGES for line in command_lines(page)})


@pytest.mark.parametrize(("page", "line"), LINES, ids=lambda value: value)
def test_commands_of_the_pages_and_their_settings_are_known(page: str, line: str) -> None:
    words = shlex.split(line.partition(" > ")[0], comments=True)
    command = typer.main.get_command(import_module(f"{words[0]}.cli").app)
    name, rest = words[:1], words[1:]
    while rest and rest[0] in getattr(command, "commands", {}):
        command = command.commands[rest[0]]
        name, rest = [*name, rest[0]], rest[1:]
    assert not getattr(command, "commands", None) or not rest, f"{words} names no command"
    rest = rest[: rest.index("--")] if "--" in rest else rest
    options = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in rest if word.startswith("--")} <= options
    given = settings_among(command, rest)
    assert all((ROOT / word).exists() for word in given if word.startswith("configs/"))
    known = [word for word in given if "=" in word or (ROOT / word).exists()]
    if known:
        module, _, kind = SETTINGS[" ".join(name)].rpartition(".")
        load_config(getattr(import_module(module), kind), [str(ROOT / w) if "=" not in w else w for w in known])


def settings_among(command: typer.core.TyperCommand, words: list[str]) -> list[str]:
    """The words of a command that are neither options nor their values, and set something."""
    parsed = command.make_context("", [word for word in words if word != "…"], resilient_parsing=True)
    assert not parsed.args, f"nothing takes {parsed.args}"
    several = [value for value in parsed.params.values() if isinstance(value, list | tuple)]
    return [word for value in several for word in map(str, value) if "=" in word or word.endswith(".toml")]
