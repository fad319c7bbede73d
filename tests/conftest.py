"""A whole line of tiny artifacts, made once by the project's own commands."""

from pathlib import Path
from typing import NamedTuple

import pytest

from forked import run

TINY = [
    "model.width=32", "model.depth=2", "model.context=128", "model.attention.heads=2", "model.attention.kv_heads=1",
]  # fmt: skip
QUICK = ["train.steps=6", "train.batch=8", "train.log_every=1", "train.eval_every=3", "train.save_every=2"]


class Line(NamedTuple):
    """Where the artifacts of a whole line are."""

    root: Path
    text: Path
    tokens: Path
    chats: Path
    preferences: Path
    prompts: Path
    base: Path
    sft: Path
    reward: Path


def done(*words: str | Path, cwd: Path) -> None:
    result = run(*words, cwd=cwd)
    assert result.code == 0, f"{words}: {result.err}"


@pytest.fixture(scope="session")
def line(tmp_path_factory: pytest.TempPathFactory) -> Line:
    """Text, tokens, records, and a tiny model of each stage."""
    root = tmp_path_factory.mktemp("line")
    made = Line(root, *(root / name for name in Line._fields[1:]))
    made.text.mkdir()
    for number in range(40):
        lines = (f"def f{i}(x):\n    return x + {i * number}\n" for i in range(20))
        (made.text / f"{number}.py").write_text("".join(lines))
    done("llmdata", "tokens", made.text, "--out", made.tokens, cwd=root)
    for name in ("chats", "preferences", "prompts"):
        done("llmdata", "records", "--kind", name, "--out", root / name, "problems=400", "valid_problems=60", cwd=root)
    done("llmpretrain", "run", "--data", made.tokens, "--out", made.base, *TINY, *QUICK, cwd=root)
    done("llmsft", "run", "--base", made.base, "--data", made.chats, "--out", made.sft, *QUICK, cwd=root)
    done("llmreward", "run", "--base", made.sft, "--data", made.preferences, "--out", made.reward, *QUICK, cwd=root)
    return made
