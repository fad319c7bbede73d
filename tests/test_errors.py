"""Every error that a user can cause says what to do next."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "packages").glob("*/src/**/*.py"))
SAY_IT_THEMSELVES = {
    "ConfigError('\\n'.join(explain(error, kind, tree, origin)))",  # each line says what is known instead
    "NotFiniteError(losses=tally.losses, grad_norm=grad_norm)",  # `diverged` makes of it what is said
}
"""Errors made without a hint."""


def kinds(trees: dict[Path, ast.Module]) -> set[str]:
    """LLMError and the names of all classes below it."""
    found = {"LLMError"}
    classes = [node for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    while more := {c.name for c in classes if {ast.unparse(base) for base in c.bases} & found} - found:
        found |= more
    return found


def made(tree: ast.Module, names: set[str]) -> Iterator[ast.Call]:
    """Every call that makes such an error."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in names:
            yield node


@pytest.fixture(scope="module")
def trees() -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text()) for path in SOURCES}


def test_every_error_says_what_to_do_next(trees: dict[Path, ast.Module]) -> None:
    names = kinds(trees)
    assert {"ConfigError", "DataError", "ArtifactError", "ExtensionError", "TrainingError"} < names
    silent = []
    for path, tree in trees.items():
        place = path.relative_to(ROOT / "packages").as_posix()
        for call in made(tree, names):
            hints = [ast.unparse(keyword.value) for keyword in call.keywords if keyword.arg == "hint"]
            if hints in ([], ["''"]) and ast.unparse(call) not in SAY_IT_THEMSELVES:
                silent.append(f"{place}:{call.lineno}: {ast.unparse(call)[:120]}")
    assert not silent, "\n".join(silent)
