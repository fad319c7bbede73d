"""A model from Hugging Face, trained here, back there: transformers then says what it says here."""

import json
from pathlib import Path

import pytest
import torch

from conftest import QUICK, Line
from forked import run
from llmcore.chat import render_chat
from llmcore.checkpoint import load_checkpoint
from llmcore.generate.engine import generate
from llmcore.generate.sampling import Sampling
from llmcore.manifest import family, read_manifest
from llmcore.records import Message
from llmcore.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")


def done(*words: str | Path, cwd: Path) -> None:
    result = run(*words, cwd=cwd)
    assert result.code == 0, f"{words}: {result.err}"


def published(folder: Path) -> Path:
    """A tiny random Qwen 3, saved by transformers, with a byte tokenizer."""
    config = transformers.Qwen3Config(
        vocab_size=260,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=128,
        eos_token_id=256,
        pad_token_id=259,
    )
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes(Tokenizer.byte_level().files()["tokenizer.json"])
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>", "pad_token": "<|pad|>"}))
    return folder


def test_import_sft_grpo_export_generate(line: Line, tmp_path: Path) -> None:
    published(tmp_path / "theirs")
    done("llmcore", "import", "hf", "theirs", "--out", "base", cwd=tmp_path)
    done("llmsft", "run", "--base", "base", "--data", line.chats, "--out", "sft", *QUICK, cwd=tmp_path)
    grpo = ["--policy", "sft", "--prompts", line.prompts, "--reward", "literal", "--out", "rl", "train.steps=2"]
    quick = ["rollout.max_completion_length=8", "rollout.eval_prompts=4", "train.batch=8", "grpo.num_generations=4"]
    done("llmrl", "grpo", *grpo, *quick, cwd=tmp_path)
    done("llmcore", "export", "hf", "rl", "export", "--check", cwd=tmp_path)
    ancestry = [one.made_by for _, _, one in family(read_manifest(tmp_path / "export"))]
    assert ancestry[0] == "llmcore export hf" and "llmcore import hf" in ancestry[1:]

    policy = load_checkpoint(tmp_path / "rl")
    ids = render_chat([Message(role="user", content="1 + 2")], policy.tokenizer, generation_prompt=True).ids
    [[ours]] = generate(
        policy.model, [ids], Sampling(max_new_tokens=24, temperature=0.0), stop_ids=policy.tokenizer.stop_ids
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "export")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    messages = [{"role": "user", "content": "1 + 2"}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    assert inputs["input_ids"][0].tolist() == ids
    theirs = model.generate(**inputs, max_new_tokens=24, do_sample=False)[0, len(ids) :].tolist()
    assert theirs == list(ours.ids)
    assert tokenizer.decode(theirs, skip_special_tokens=True) == policy.tokenizer.decode(ours.ids)
