"""Artifacts go forward from stage to stage, and each knows its whole history."""

import json
from pathlib import Path

import pytest

from conftest import QUICK, TINY, Line
from forked import run
from llmcore.manifest import family, read_manifest, verify_artifact


@pytest.fixture(scope="module")
def grpo(line: Line, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The end of the line."""
    out = tmp_path_factory.mktemp("grpo") / "grpo"
    words = ["llmrl", "grpo", "--policy", line.sft, "--reward", f"literal + 0*{line.reward}", "--prompts", line.prompts]
    result = run(*words, "--out", out, *QUICK, cwd=out.parent)
    assert result.code == 0, result.err
    return out


def test_the_last_artifact_knows_every_one_before_it(line: Line, grpo: Path) -> None:
    tree = {manifest.id: manifest.kind for _, _, manifest in family(read_manifest(grpo))}
    for folder in (line.tokens, line.chats, line.preferences, line.prompts, line.base, line.sft, line.reward):
        manifest = verify_artifact(folder)
        assert tree[manifest.id] == manifest.kind
    shown = run("llmcore", "lineage", grpo, cwd=grpo.parent)
    assert shown.code == 0 and all(identity in shown.out for identity in tree)
    listed = json.loads(run("llmcore", "lineage", grpo, "--json", cwd=grpo.parent).out)
    assert {row["id"] for row in listed} == tree.keys()


def test_artifacts_hold_no_absolute_path_and_may_be_moved(line: Line, grpo: Path, tmp_path: Path) -> None:
    for folder in (grpo, line.sft, line.reward, line.tokens, line.chats):
        for path in folder.rglob("*.json*"):
            assert str(line.root) not in path.read_text(), path
            assert str(grpo.parent) not in path.read_text(), path
    grpo.rename(tmp_path / "moved")
    try:
        result = run("llmcore", "generate", tmp_path / "moved", "--prompt", "1 + 1", cwd=tmp_path)
        assert result.code == 0, result.err
    finally:
        (tmp_path / "moved").rename(grpo)


def test_reference_and_reward_weights_are_untouched_by_training(line: Line, grpo: Path) -> None:
    assert grpo.exists()
    for folder in (line.sft, line.reward):
        verify_artifact(folder)


def test_a_mixture_of_experts_goes_on_to_fine_tuning(line: Line, tmp_path: Path) -> None:
    words = ["llmpretrain", "run", "--data", line.tokens, *TINY, "model.feedforward.kind=moe", *QUICK]
    assert run(*words, "--out", tmp_path / "moe", cwd=tmp_path).code == 0
    words = ["llmsft", "run", "--base", tmp_path / "moe", "--data", line.chats, *QUICK, "--out", tmp_path / "sft"]
    result = run(*words, cwd=tmp_path)
    assert result.code == 0, result.err
    assert read_manifest(tmp_path / "sft").needs.keys() == {"llmmoe"}


def test_the_same_words_elsewhere_give_the_same_identity(line: Line, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    words = ["llmsft", "run", "--base", line.base, "--data", line.chats, *QUICK, "--out", tmp_path / "other" / "sft"]
    assert run(*words, cwd=tmp_path / "other").code == 0
    assert read_manifest(tmp_path / "other" / "sft").id == read_manifest(line.sft).id


@pytest.mark.parametrize("stage", ["base", "sft", "reward"])
def test_json_is_one_document_per_line_and_nothing_else(stage: str, line: Line, tmp_path: Path) -> None:
    words = {
        "base": ["llmpretrain", "run", "--data", line.tokens, *TINY],
        "sft": ["llmsft", "run", "--base", line.base, "--data", line.chats],
        "reward": ["llmreward", "run", "--base", line.sft, "--data", line.preferences],
    }[stage]
    result = run(*words, *QUICK, "--json", "--quiet", "--out", tmp_path / "out", cwd=tmp_path)
    rows = [json.loads(row) for row in result.out.splitlines()]
    assert result.code == 0 and rows[0]["step"] == 1 and rows[-1]["kind"] == read_manifest(tmp_path / "out").kind
    assert result.err == ""
