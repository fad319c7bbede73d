"""Every command answers for help at once, without torch, and knows its settings."""

import importlib
import inspect
import subprocess
import sys
from importlib.metadata import entry_points
from typing import Annotated, get_args, get_origin

import pytest

from llmcore.options import DeviceOption

PACKAGES = ["llmcore", "llmdata", "llmmoe", "llmpretrain", "llmreward", "llmrl", "llmsft"]
ASK = """
import sys
from importlib import import_module

import typer
from typer.testing import CliRunner


def walk(command, words):
    assert command.help, f"{words} has no help"
    yield words
    for name, inner in getattr(command, "commands", {}).items():
        yield from walk(inner, [*words, name])


cli = import_module(PACKAGE + ".cli")
for words in walk(typer.main.get_command(cli.app), []):
    shown = CliRunner().invoke(cli.app, [*words, "--help"])
    assert shown.exit_code == 0 and "Usage" in shown.output, (words, shown.output)
assert "torch" not in sys.modules, "torch was imported"
assert "numpy" not in sys.modules or PACKAGE == "llmdata", "numpy was imported"
sys.argv = [PACKAGE, "--help"]
cli.main()
"""


@pytest.mark.parametrize("package", PACKAGES)
def test_every_command_answers_for_help_without_torch(package: str) -> None:
    script = f"PACKAGE = {package!r}\n{ASK}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_has_its_command(package: str) -> None:
    scripts = {entry.name: entry.value for entry in entry_points(group="console_scripts")}
    assert scripts[package] == f"{package}.cli:main"


RUN_A_MODEL = [
    ("llmcore", "generate"), ("llmcore", "chat"), ("llmpretrain", "eval"), ("llmsft", "eval"), ("llmreward", "eval"),
    ("llmreward", "score"), ("llmrl", "eval"), ("llmrl", "rollout"), ("llmmoe", "usage"),
]  # fmt: skip


@pytest.mark.parametrize(("package", "name"), RUN_A_MODEL)
def test_whatever_runs_a_model_takes_one_device_option(package: str, name: str) -> None:
    """Training has the setting train.device, which is read by the same function."""
    app = importlib.import_module(f"{package}.cli").app
    callbacks = {info.name or info.callback.__name__: info.callback for info in app.registered_commands}
    device = inspect.signature(callbacks[name]).parameters["device"]
    assert get_origin(DeviceOption) is Annotated
    assert get_args(device.annotation) == get_args(DeviceOption)
    assert device.default == "auto"


def test_a_model_costs_little_more_to_import_than_torch() -> None:
    """Beyond torch: pydantic and the standard library; no tokenizers, no safetensors, no numpy, nothing optional."""
    program = """
import sys, torch
before = {name.partition(".")[0] for name in sys.modules}
compiler = {"torch._dynamo", "torch._inductor", "sympy"} & set(sys.modules)
import llmcore.model.config, llmcore.model.transformer
print(*{name.partition(".")[0] for name in sys.modules} - before - sys.stdlib_module_names)
assert {"torch._dynamo", "torch._inductor", "sympy"} & set(sys.modules) == compiler
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    light = {"llmcore", "pydantic", "pydantic_core", "annotated_types", "typing_inspection", "typing_extensions"}
    assert set(done.stdout.split()) <= light
