"""What llmreward offers to llmrl: encoders as reward models, and shaping terms by name."""

import json
from pathlib import Path

import pytest

from conftest import QUICK, Line
from forked import run
from llmcore.scoring import load_scorer


@pytest.fixture(scope="module")
def encoder(line: Line, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model that looks both ways."""
    out = tmp_path_factory.mktemp("encoder") / "reward"
    words = ["llmreward", "run", "--base", line.sft, "--data", line.preferences, "trunk.kind=encoder", *QUICK]
    result = run(*words, "normalize.prompts=8", "--out", out, cwd=out.parent)
    assert result.code == 0, result.err
    return out


def test_an_encoder_evaluates_and_scores_from_the_command_line(line: Line, encoder: Path) -> None:
    assert not load_scorer(encoder).model.config.attention.sight().causal
    shown = run("llmreward", "eval", encoder, "--data", line.preferences, "--json", cwd=encoder.parent)
    assert shown.code == 0, shown.err
    assert json.loads(shown.out)["invariance"]["padding"] < 1e-3
    words = ["--prompt", "1 + 1", "--answer", "2", "--answer", "3"]
    scored = run("llmreward", "score", encoder, *words, cwd=encoder.parent)
    assert scored.code == 0 and len(scored.out.splitlines()) == 2, scored.err
    refused = run("llmcore", "export", "hf", encoder, encoder.parent / "hf", cwd=encoder.parent)
    assert refused.code == 2 and "attention.causal=False" in refused.err


def test_a_policy_learns_from_an_encoder_and_shaping_terms(line: Line, encoder: Path, tmp_path: Path) -> None:
    reward = f"{encoder} + 0.5*repetition + missing_end"
    words = ["llmrl", "grpo", "--policy", line.sft, "--reward", reward, "--prompts", line.prompts]
    result = run(*words, "--out", tmp_path / "grpo", *QUICK, cwd=tmp_path)
    assert result.code == 0, result.err
    rows = [json.loads(text) for text in (tmp_path / "grpo" / "run" / "metrics.jsonl").read_text().splitlines()]
    watched = [row for row in rows if "rewards/repetition/mean" in row]
    assert watched and {"rewards/reward/mean", "rewards/missing_end/mean"} <= watched[-1].keys()
    assert min(row["rewards/missing_end/mean"] for row in watched) < 0  # an untrained policy runs on


def test_the_report_of_shaping_covers_pairs_and_a_policys_answers(line: Line, encoder: Path) -> None:
    words = ["llmreward", "shape", encoder, "--data", line.preferences, "--policy", line.sft, "--json"]
    shown = run(*words, "samples.prompts=8", "samples.max_new_tokens=12", cwd=encoder.parent)
    assert shown.code == 0, shown.err
    pairs, answers = json.loads(shown.out).values()
    assert pairs["effects"]["missing_end"]["touched"]["value"] == 0.0  # answers that somebody wrote end
    assert answers["effects"]["missing_end"]["touched"]["value"] > 0.5
    assert answers["accuracy"] is None and pairs["accuracy"]["cases"] > 0
