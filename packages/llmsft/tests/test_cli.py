"""`llmsft eval`, as a person gives it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from llmcore.checkpoint import save_model
from llmcore.errors import ConfigError
from llmcore.manifest import write_manifest
from llmcore.model.config import ModelConfig
from llmcore.records import Chat, Message, write_records
from llmcore.tokenizer import Tokenizer
from llmsft import overlap
from llmsft.cli import app


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two policies, conversations, and a task of questions."""
    root = tmp_path_factory.mktemp("eval")
    for seed, name in enumerate(("base", "tuned")):
        (root / name).mkdir()
        model = ModelConfig(vocab_size=260, width=16, depth=1, context=128).build(seed=seed)
        files = save_model(root / name, model, Tokenizer.byte_level())
        write_manifest(root / name, kind="policy", made_by="test", config={}, files=files)
    chats = [
        Chat(messages=(Message(role="user", content=f"say {n}"), Message(role="assistant", content=str(n))))
        for n in range(5)
    ]
    write_records(root / "chats.jsonl", chats)
    rows = [{"question": "Which?", "choices": ["this", "that"], "answer": n % 2} for n in range(6)]
    (root / "task.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def evaluated(folder: Path, *words: str, policies: Sequence[str] = ("base", "tuned")) -> Any:
    paths = [str(folder / name) for name in policies]
    short = ["--max-new-tokens", "4"] if "--data" in words else []
    return CliRunner().invoke(app, ["eval", *paths, "--device", "cpu", *short, *words])


def test_two_policies_stand_side_by_side_with_gains_over_the_first(folder: Path) -> None:
    words = ["--data", str(folder / "chats.jsonl"), "--samples", "2"]
    found = json.loads(evaluated(folder, *words, "--json").stdout)
    base, tuned = found[str(folder / "base")], found[str(folder / "tuned")]
    names = {"loss", "perplexity", "sampled", "greedy", "asked", "exact_match", "bleu", "rougeL", "pass@1", "pass@2"}
    assert names <= base.keys() <= tuned.keys()
    assert tuned["gain/loss"]["value"] == pytest.approx(tuned["loss"] - base["loss"], abs=1e-6)
    assert {"gain/bleu", "gain/pass@2", "gain/greedy"} <= tuned.keys()
    shown = evaluated(folder, *words).stdout
    assert "against" in shown and "BLEU|0-100|" in shown and "ROUGE|0-1|" in shown


def test_tasks_alone_need_no_conversations(folder: Path) -> None:
    found = json.loads(evaluated(folder, "--tasks", str(folder / "task.jsonl"), "--chat", "--json").stdout)
    tasks = [entry["tasks"][str(folder / "task.jsonl")] for entry in found.values()]
    assert all(list(entry) == ["tasks"] for entry in found.values())
    assert tasks[0]["count"] == 6 and tasks[0]["chance"] == 0.5 and "gain/accuracy" in tasks[1]
    plain = json.loads(evaluated(folder, "--tasks", str(folder / "task.jsonl"), "--json").stdout)
    assert plain.keys() == found.keys()


def test_without_the_text_libraries_the_rest_is_measured(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlap, "find_spec", lambda _name: None)
    shown = evaluated(folder, "--data", str(folder / "chats.jsonl"), "--json", policies=["base"])
    [found] = json.loads(shown.stdout).values()
    assert "greedy" in found and not {"bleu", "rouge1", "signatures"} & found.keys()
    assert "llmsft[text]" in shown.stderr


def test_options_that_would_do_nothing_are_refused(folder: Path) -> None:
    (folder / "pairs.jsonl").write_text('{"sentence_good": "a", "sentence_bad": "b"}\n')
    data = ["--data", str(folder / "chats.jsonl")]
    for words in ([*data, "--chat"], [*data, "--task-count", "3"], ["--tasks", str(folder / "pairs.jsonl"), "--chat"]):
        assert isinstance(evaluated(folder, *words).exception, ConfigError), words
