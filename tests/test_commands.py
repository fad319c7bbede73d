"""Every command answers for help at once, without torch, and knows its settings."""

import subprocess
import sys
from importlib.metadata import entry_points

import pytest

PACKAGES = ["llmcore", "llmdata", "llmmoe", "llmpretrain", "llmreward", "llmrl", "llmsft"]
ASK = """
import sys, runpy
sys.argv = {argv!r}
from llmcore import command
try:
    from {package}.cli import main
    main()
except SystemExit as stop:
    assert "torch" not in sys.modules, "torch was imported"
    assert "numpy" not in sys.modules or {package!r} == "llmdata", "numpy was imported"
    sys.exit(stop.code)
"""


@pytest.mark.parametrize("package", PACKAGES)
def test_help_answers_without_torch(package: str) -> None:
    script = ASK.format(argv=[package, "--help"], package=package)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_has_its_command(package: str) -> None:
    scripts = {entry.name: entry.value for entry in entry_points(group="console_scripts")}
    assert scripts[package] == f"{package}.cli:main"
