"""An adapter through the commands: trained, looked at, talked with, merged, exported, and built upon."""

import json
from pathlib import Path

import pytest

from conftest import QUICK, Line
from forked import run


@pytest.fixture(scope="module")
def adapter(line: Line) -> Path:
    """What `llmsft run … lora.rank=2` writes."""
    out = line.root / "adapter"
    words = ["--base", line.base, "--data", line.chats, "--out", out, *QUICK, "lora.rank=2", "data.packing=true"]
    done = run("llmsft", "run", *words, cwd=line.root)
    assert done.code == 0, done.err
    assert "of them trained" in done.err and "⟦" in done.err
    return out


def test_an_adapter_is_looked_at_like_any_artifact(line: Line, adapter: Path) -> None:
    for command in (["inspect"], ["verify"], ["lineage"]):
        done = run("llmcore", *command, adapter, cwd=line.root)
        assert done.code == 0, done.err
        assert "adapter" in done.out
    facts = json.loads(run("llmcore", "inspect", adapter, "--json", cwd=line.root).out)
    assert facts["adapter"]["rank"] == 2 and facts["parents"]["base"].startswith("policy")


def test_an_adapter_serves_where_a_policy_does(line: Line, adapter: Path, tmp_path: Path) -> None:
    for words in (
        ["llmcore", "generate", adapter, "--prompt", "1", "--max-new-tokens", "4"],
        ["llmsft", "eval", adapter, "--data", line.chats, "--count", "4", "--max-new-tokens", "4"],
        ["llmreward", "run", "--base", adapter, "--data", line.preferences, "--out", "on-adapter", *QUICK],
        ["llmcore", "export", "hf", adapter, "peft"],
        ["llmsft", "merge", adapter, "--out", "merged"],
        ["llmcore", "generate", "merged", "--prompt", "1", "--max-new-tokens", "4"],
        ["llmcore", "export", "hf", "merged", "hf"],
    ):
        done = run(*words, cwd=tmp_path)
        assert done.code == 0, f"{words}: {done.err}"
    assert (tmp_path / "peft" / "adapter_model.safetensors").exists()
    texts = [
        run("llmcore", "generate", folder, "--prompt", "1", "--max-new-tokens", "8", cwd=tmp_path).out
        for folder in (adapter, "merged")
    ]
    assert texts[0] == texts[1]


def test_an_adapter_away_from_its_base_says_what_to_give(line: Line, adapter: Path, tmp_path: Path) -> None:
    moved = tmp_path / "adapter"
    moved.mkdir()
    for name in ("manifest.json", "adapter.json", "adapter.safetensors"):
        (moved / name).write_bytes((adapter / name).read_bytes())
    lost = run("llmcore", "generate", moved, "--prompt", "1", cwd=tmp_path)
    assert lost.code == 2 and "not where it was" in lost.err and "--base" in lost.err
    wrong = run("llmcore", "generate", moved, "--prompt", "1", "--base", line.sft, cwd=tmp_path)
    assert wrong.code == 2 and "stands on another model" in wrong.err
    right = run("llmcore", "generate", moved, "--prompt", "1", "--base", line.base, cwd=tmp_path)
    assert right.code == 0, right.err


def test_the_preview_shows_what_is_trained_on(line: Line) -> None:
    words = ["llmsft", "preview", "--base", line.base, "--data", line.chats, "--count", "2"]
    done = run(*words, cwd=line.root)
    assert done.code == 0 and done.out.count("── conversation") == 2 and "⟦" in done.out and "\x1b" not in done.out
    told = json.loads(run(*words, "--json", cwd=line.root).out)
    assert len(told["conversations"]) == 2 and told["counts"]["trained tokens"] > 0
