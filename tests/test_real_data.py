"""Real input beyond the default runs through the same commands; skipped where the data is not there."""

from pathlib import Path

import pytest

from conftest import QUICK, TINY, Line
from forked import run
from llmcore.manifest import read_manifest
from llmcore.records import Chat, read_records

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
FEW = ["train.steps=2", "train.batch=4", *QUICK[2:]]

pytestmark = pytest.mark.skipif(not DATA.exists(), reason="needs the data folder beside the checkout")


def works(*words: str | Path, cwd: Path) -> None:
    result = run(*words, cwd=cwd, limit=300)
    assert result.code == 0, f"{words}: {result.err}"


@pytest.fixture(scope="module")
def roomy(line: Line, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base model with room for real questions and answers."""
    root = tmp_path_factory.mktemp("roomy")
    words = ["llmpretrain", "run", "--data", line.tokens, "--out", root / "base", *TINY, "model.context=1600"]
    works(*words, "train.steps=2", "train.batch=1", *QUICK[2:], cwd=root)
    return root / "base"


@pytest.mark.parametrize("text", ["english_novels/small_10mb", "tinyshakespeare/input.txt"])
def test_pretraining_on_text(text: str, tmp_path: Path) -> None:
    works("llmdata", "tokens", DATA / text, "--out", tmp_path / "tokens", cwd=tmp_path)
    works("llmpretrain", "run", "--data", tmp_path / "tokens", "--out", tmp_path / "base", *TINY, *FEW, cwd=tmp_path)
    assert read_manifest(tmp_path / "base").parents["data"].counts["train_tokens"] > 1_000_000


@pytest.mark.parametrize(
    ("file", "mapping"),
    [
        ("gsm8k/train.jsonl", ["--map", "prompt=question,completion=answer"]),
        ("rasbt/instruction-data.json", []),
        ("dolly_hhrlhf/dolly_hhrlhf_train_small.jsonl", []),
    ],
)
def test_fine_tuning_on_instructions(file: str, mapping: list[str], roomy: Path, tmp_path: Path) -> None:
    records = ["llmdata", "records", DATA / file, "--kind", "chats", *mapping, "--out", tmp_path / "chats"]
    works(*records, cwd=tmp_path)
    words = ["llmsft", "run", "--base", roomy, "--data", tmp_path / "chats", "data.max_dropped=1"]
    works(*words, "--out", tmp_path / "sft", *FEW, cwd=tmp_path)


@pytest.mark.parametrize(
    "file",
    [
        "gsm8k/test.jsonl",
        "rasbt/instruction-data.json",
        "dolly_hhrlhf/dolly_hhrlhf_train_small.jsonl",
        "gpteacher/roleplay-simple-deduped-roleplay-instruct.json",
        "self_instruct/seed_tasks.jsonl",
        "self_instruct/t0_per_template/adversarial_qa_dbert_based_on.jsonl",
        "chat_fixtures/conversations.jsonl",
        "chat_fixtures/torchtune_chat_tiny.json",
    ],
)
def test_common_shapes_of_conversations_are_seen_from_their_keys(file: str) -> None:
    assert all(chat.messages[-1].content for chat in read_records(DATA / file, Chat))


def test_fine_tuning_on_a_file_as_it_is(roomy: Path, tmp_path: Path) -> None:
    words = ["llmsft", "run", "--base", roomy, "--data", DATA / "rasbt" / "instruction-data.json"]
    works(*words, "data.max_dropped=1", "--out", tmp_path / "sft", *FEW, cwd=tmp_path)
    assert "file" in {parent.kind for parent in read_manifest(tmp_path / "sft").parents.values()}


@pytest.mark.parametrize(
    "file", ["hh_rlhf/harmless-base/test.head.jsonl.gz", "rasbt/instruction-data-with-preference.json"]
)
def test_reward_models_on_preferences(file: str, roomy: Path, tmp_path: Path) -> None:
    records = ["llmdata", "records", DATA / file, "--kind", "preferences", "--out", tmp_path / "preferences"]
    works(*records, cwd=tmp_path)
    words = ["llmreward", "run", "--base", roomy, "--data", tmp_path / "preferences", "data.max_dropped=1"]
    works(*words, "--out", tmp_path / "reward", *FEW, cwd=tmp_path)


def test_grpo_on_gsm8k_with_its_answers_checked(roomy: Path, tmp_path: Path) -> None:
    records = ["llmdata", "records", DATA / "gsm8k/train.jsonl", "--kind", "prompts"]
    mapping = ["--map", "prompt=question,answer=answer"]
    works(*records, *mapping, "--out", tmp_path / "prompts", cwd=tmp_path)
    words = ["llmrl", "grpo", "--policy", roomy, "--reward", "numeric", "--prompts", tmp_path / "prompts"]
    small = ["train.steps=2", "train.batch=4", "grpo.num_generations=2", "rollout.eval_prompts=2"]
    works(*words, "--out", tmp_path / "grpo", *small, *QUICK[2:], cwd=tmp_path)
