"""Our losses against independent implementations: transformers', and TRL's as tests/peers.py says."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llmcore.checkpoint import load_checkpoint, save_model
from llmcore.huggingface.writing import export_hf
from llmcore.losses import token_logprobs
from llmcore.manifest import write_manifest
from llmcore.model.config import ModelConfig
from llmcore.model.transformer import Transformer
from llmcore.records import Chat, Message
from llmcore.tokenizer import Tokenizer
from llmcore.train.config import TrainConfig
from llmsft.batches import ChatBatch, ChatBatches, numbered_rows, padded_batch
from llmsft.loss import embedding_noise, sft_loss
from peers import ask, needs_peers

TOKENIZER = Tokenizer.byte_level()
TURNS = [
    ("1 + 1?", "two", "and in French?", "deux"),
    ("q", "a longer answer, and its end"),
    ("say é!", "é", "why?", ""),
]
CHATS = [
    Chat(messages=tuple(Message(role=("user", "assistant")[i % 2], content=text) for i, text in enumerate(turns)))
    for turns in TURNS
]
GPT2: dict[str, Any] = {
    "norm": "layernorm",
    "positions": "learned",
    "feedforward": {"kind": "gelu", "bias": True},
    "attention": {"heads": 2, "kv_heads": 2, "qkv_bias": True, "out_bias": True},
}


def exported(root: Path, **settings: Any) -> tuple[Transformer, Any]:
    """A policy in float64, and what transformers makes of its export."""
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 260, "width": 32, "depth": 2, "context": 128, "initial_std": 0.2}
    folder = root / "ours"
    folder.mkdir()
    files = save_model(folder, ModelConfig.model_validate({**sizes, **settings}).build(seed=4), TOKENIZER)
    write_manifest(folder, kind="policy", made_by="test", config={}, files=files)
    export_hf(folder, root / "theirs")
    model = load_checkpoint(folder).model.double()
    model.activation_dtype = torch.float64
    return model, transformers.AutoModelForCausalLM.from_pretrained(root / "theirs", dtype=torch.float64).eval()


def rows_and_labels(*, last: bool) -> tuple[list[Any], Tensor]:
    """Our rows, and their labels without any mask of ours: the bytes of the answers, found in the rows, and -100."""
    rows = numbered_rows(CHATS, TOKENIZER, max_length=128, completion_only_loss=last).rendered
    labels = torch.full((len(rows), padded_batch(rows, TOKENIZER.pad_id).ids.shape[1]), -100)
    for number, turns in enumerate(TURNS):
        for answer in turns[1::2][-1:] if last else turns[1::2]:
            wanted = [*b"assistant", *b"\n", *answer.encode(), TOKENIZER.end_of_turn_id]
            place = beginning(rows[number].ids, wanted) + len(b"assistant\n")
            labels[number, place : place + len(answer.encode()) + 1] = torch.tensor(wanted[len(b"assistant\n") :])
    return rows, labels


def beginning(ids: Sequence[int], wanted: Sequence[int]) -> int:
    """Where the one place begins at which these ids stand."""
    [place] = [start for start in range(len(ids)) if list(ids[start : start + len(wanted)]) == list(wanted)]
    return place


def batches_of(rows: Sequence[Any]) -> list[ChatBatch]:
    """The same rows padded and packed."""
    settings = {"pad_id": TOKENIZER.pad_id, "train": TrainConfig(batch=len(rows)), "max_length": 128}
    return [ChatBatches(rows, pair_cost=cost, **settings).batch(rows) for cost in (None, 1e-3)]


@pytest.mark.parametrize("last", [False, True])
def test_loss_and_gradient_are_those_of_transformers_with_labels(tmp_path: Path, last: bool) -> None:
    model, theirs = exported(tmp_path, **GPT2)
    rows, labels = rows_and_labels(last=last)
    ids = padded_batch(rows, TOKENIZER.pad_id).ids
    logits = theirs(input_ids=ids).logits
    wanted = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
    wanted.backward()
    assert theirs(input_ids=ids, labels=labels).loss.item() == pytest.approx(wanted.item(), abs=1e-5)  # in float32
    for batch in batches_of(rows):
        model.zero_grad()
        loss = sft_loss("nll")(model, batch)
        mean = loss.total / loss.count
        mean.backward()
        assert loss.count == int((labels[:, 1:] != -100).sum())
        assert mean.item() == pytest.approx(wanted.item(), abs=1e-8)
        gradient = theirs.get_input_embeddings().weight.grad
        assert gradient.abs().max() > 1e-2
        assert model.embedding.weight.grad is not None
        torch.testing.assert_close(model.embedding.weight.grad, gradient, atol=1e-8, rtol=0)


def test_the_loss_of_a_llama_is_theirs_as_far_as_its_float32_norms_go(tmp_path: Path) -> None:
    model, theirs = exported(tmp_path)
    assert type(theirs).__name__ == "LlamaForCausalLM"
    rows, labels = rows_and_labels(last=False)
    wanted = theirs(input_ids=padded_batch(rows, TOKENIZER.pad_id).ids, labels=labels).loss.item()
    for batch in batches_of(rows):
        loss = sft_loss("nll")(model, batch)
        assert loss.total.item() / loss.count == pytest.approx(wanted, rel=1e-5)


@needs_peers
@pytest.mark.parametrize("loss_type", ["nll", "dft"])
def test_loss_and_gradient_are_trls_of_the_same_log_probabilities(tmp_path: Path, loss_type: Any) -> None:
    model, _ = exported(tmp_path, **GPT2)
    rows, labels = rows_and_labels(last=False)
    batch = padded_batch(rows, TOKENIZER.pad_id)
    logprobs = token_logprobs(model, batch.ids)
    case = {"loss_type": loss_type, "labels": labels.tolist(), "logprobs": logprobs.tolist()}
    theirs = json.loads(ask(Path(__file__).with_name("trl_sft.py"), said=json.dumps(case)).splitlines()[-1])
    weights = list(model.parameters())
    wanted = torch.autograd.grad(logprobs, weights, torch.tensor(theirs["gradient"], dtype=torch.float64))
    loss = sft_loss(loss_type)(model, batch)
    mean = loss.total / loss.count
    assert mean.item() == pytest.approx(theirs["loss"], abs=1e-8)
    for found, right in zip(torch.autograd.grad(mean, weights), wanted, strict=True):
        torch.testing.assert_close(found, right, atol=1e-8, rtol=0)


def test_noise_is_that_of_transformers_which_trl_uses(tmp_path: Path) -> None:
    hook = pytest.importorskip("transformers.integrations.neftune").neftune_post_forward_hook
    model, theirs = exported(tmp_path, **GPT2)
    model.train()
    embedding = theirs.get_input_embeddings().train()
    embedding.neftune_noise_alpha = 5.0
    embedding.register_forward_hook(hook)
    rows = numbered_rows(CHATS[:1], TOKENIZER, max_length=128).rendered  # one row: theirs counts padding as tokens
    ids = torch.tensor([rows[0].ids])
    torch.manual_seed(3)
    wanted = embedding(ids)
    torch.manual_seed(3)
    with embedding_noise(model, torch.full(ids.shape, ids.shape[1]), alpha=5.0):
        found = model.embedding(ids, torch.float64)
    plain = model.eval().embedding(ids, torch.float64)
    assert (found - plain).abs().max() > 0.05
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)  # their bound is rounded to float32
