"""Damaged artifacts: any byte, anywhere, is refused by one sentence that names the file, or changes nothing."""

import hashlib
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from llmcore.adapters import save_adapter
from llmcore.checkpoint import load_checkpoint, save_model
from llmcore.errors import LLMError
from llmcore.lora import LoRA
from llmcore.losses import Batch, next_token_loss
from llmcore.manifest import family, verify_artifact, write_manifest
from llmcore.model.adapters import add_adapters
from llmcore.model.config import ModelConfig
from llmcore.records import Chat, Message, load_records, write_records
from llmcore.scoring import RewardScale, load_scorer, scale_bytes
from llmcore.shards import ShardWriter, TokenShards, write_index
from llmcore.tokenizer import Tokenizer
from llmcore.train.config import TrainConfig
from llmcore.train.loop import fit
from llmcore.train.run import Run
from llmcore.train.signals import Stopped
from llmcore.train.snapshot import load_snapshot
from llmcore.train.source import FromFunction

ROUNDS = 12
"""Damages of each file."""

TRAIN = TrainConfig(steps=4, batch=2, device="cpu", dtype="fp32", log_every=1, save_every=2)
SNAPSHOT = "run/checkpoints/step-00000002"


def model_config(head: str) -> ModelConfig:
    tree = {"vocab_size": 260, "width": 16, "depth": 1, "context": 32, "head": head}
    return ModelConfig.model_validate({**tree, "attention": {"heads": 2, "kv_heads": 1}})


def make_tokens(folder: Path) -> None:
    tokenizer = Tokenizer.byte_level()
    splits = {}
    for split in ("train", "valid"):
        writer = ShardWriter(folder, split, tokenizer)
        for number in range(20):
            writer.add(tokenizer.encode(f"{split} document {number} " * 5))
        splits[split] = writer.close()
    files = [*tokenizer.save(folder), *write_index(folder, tokenizer, splits)]
    write_manifest(folder, kind="tokens", made_by="test", config={}, files=files)


def make_bpe(folder: Path) -> None:
    tokenizer = Tokenizer.train_bpe(["the cat and the dog and the hen"] * 9, 290)
    write_manifest(folder, kind="tokenizer", made_by="test", config={}, files=tokenizer.save(folder))


def make_chats(folder: Path) -> None:
    for split in ("train", "valid"):
        turns = (
            (Message(role="user", content=f"{split} {n}"), Message(role="assistant", content="ü")) for n in range(9)
        )
        write_records(folder / f"{split}.jsonl", [Chat(messages=pair) for pair in turns])
    write_manifest(folder, kind="chats", made_by="test", config={"seed": 1}, files=["train.jsonl", "valid.jsonl"])


def make_reward(folder: Path) -> None:
    files = save_model(folder, model_config("scalar").build(seed=1), Tokenizer.byte_level())
    (folder / "reward.json").write_bytes(scale_bytes(RewardScale(gain=2.5, bias=-0.25, samples=64)))
    write_manifest(folder, kind="reward", made_by="test", config={"lr": 1e-5}, files=[*files, "reward.json"])


def make_adapter(folder: Path) -> None:
    """An adapter, with the model that it stands on in a folder inside."""
    model = model_config("lm").build(seed=0)
    (folder / "below").mkdir()
    files = save_model(folder / "below", model, Tokenizer.byte_level())
    below = write_manifest(folder / "below", kind="policy", made_by="test", config={}, files=files)
    add_adapters(model, LoRA(rank=2), seed=0)
    for name, weight in model.named_parameters():
        if name.endswith(".b"):
            torch.nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(0))
    files = save_adapter(folder, model, parent="base")
    parents, places = {"base": below}, {"base": "below"}
    write_manifest(folder, kind="adapter", made_by="test", config={}, files=files, parents=parents, places=places)


def batches(step: int) -> list[Batch]:
    ids = torch.randint(0, 256, (2, 16), generator=torch.Generator().manual_seed(step))
    return [Batch(ids, torch.ones_like(ids, dtype=torch.bool).index_fill(1, torch.tensor([0]), False), None)]


def make_policy(folder: Path, *, stop_after: int | None = None) -> None:
    """A run of four steps, whole or stopped; given again it goes on."""
    train = TRAIN.model_copy(update={"stop_after": stop_after})
    run = Run(folder, made_by="test run", config=train, tokenizer=Tokenizer.byte_level(), quiet=True)
    model = model_config("lm").build(seed=0)
    try:
        fit(model, FromFunction(batches), next_token_loss, train, run)
        run.finish(model)
    except Stopped as stopped:
        assert stopped.code == 0
    finally:
        run.close()


def make_stopped(folder: Path) -> None:
    make_policy(folder, stop_after=2)


def digest(arrays: dict[str, torch.Tensor]) -> str:
    return hashlib.sha256(
        b"".join(name.encode() + arrays[name].numpy().tobytes() for name in sorted(arrays))
    ).hexdigest()


def read_tokens(folder: Path) -> object:
    manifest = verify_artifact(folder, expect="tokens")
    tokenizer = Tokenizer.load(folder)
    splits = [TokenShards(folder, split, tokenizer=tokenizer) for split in ("train", "valid")]
    return manifest, tokenizer.sha256, [(one.documents, one.bytes, one.read(0, len(one)).tolist()) for one in splits]


def read_shards(folder: Path) -> object:
    """Without the manifest, as evaluation reads them beside a tokenizer that it has."""
    splits = [TokenShards(folder, split, tokenizer=Tokenizer.byte_level()) for split in ("train", "valid")]
    return [(one.documents, one.bytes, one.read(0, len(one)).tolist()) for one in splits]


def read_bpe(folder: Path) -> object:
    return verify_artifact(folder, expect="tokenizer"), Tokenizer.load(folder).encode("the cat and the dog")


def read_chats(folder: Path) -> object:
    return [load_records(folder, Chat, split) for split in ("train", "valid")]


def read_policy(folder: Path) -> object:
    model, tokenizer, manifest = load_checkpoint(folder)
    return digest(dict(model.state_dict())), model.config, tokenizer.sha256, manifest, list(family(manifest))


def read_reward(folder: Path) -> object:
    scorer = load_scorer(folder)
    return digest(dict(scorer.model.state_dict())), scorer.scale, scorer.tokenizer.sha256, scorer.manifest


def read_snapshot(folder: Path) -> object:
    progress, model, optimizer, source, loss_scale = load_snapshot(folder / SNAPSHOT)
    return progress, digest(model), digest(optimizer), source, loss_scale


def go_on(folder: Path) -> object:
    make_policy(folder)
    return digest(dict(load_checkpoint(folder).model.state_dict()))


Case = tuple[Callable[[Path], None], Callable[[Path], object], list[str]]
MODEL_FILES = ["manifest.json", "model.json", "model.safetensors", "tokenizer.json", "special_tokens.json"]
SNAPSHOT_TENSORS = ["model.safetensors", "optimizer.safetensors"]
TOKEN_FILES = ["tokens.json", "train-00000.bin", "valid-00000.bin"]
CASES: dict[str, Case] = {
    "tokens": (make_tokens, read_tokens, ["manifest.json", "tokenizer.json", "special_tokens.json", *TOKEN_FILES]),
    "shards": (make_tokens, read_shards, TOKEN_FILES),
    "tokenizer": (make_bpe, read_bpe, ["manifest.json", "tokenizer.json", "special_tokens.json"]),
    "records": (make_chats, read_chats, ["manifest.json", "train.jsonl", "valid.jsonl"]),
    "policy": (make_policy, read_policy, MODEL_FILES),
    "adapter": (
        make_adapter,
        read_policy,
        ["manifest.json", "adapter.json", "adapter.safetensors", "below/manifest.json", "below/model.safetensors"],
    ),
    "reward": (make_reward, read_reward, [*MODEL_FILES, "reward.json"]),
    "snapshot": (
        make_stopped,
        read_snapshot,
        [
            f"{SNAPSHOT}/{name}"
            for name in ("manifest.json", "state.json", "model.safetensors", "optimizer.safetensors")
        ],
    ),
    "run": (make_stopped, go_on, ["run/run.json", "run/metrics.jsonl", f"{SNAPSHOT}/state.json"]),
}


def flip(data: bytes, chance: random.Random) -> bytes:
    place = chance.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << chance.randrange(8)]) + data[place + 1 :]


def cut(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data))]


def blank(data: bytes, chance: random.Random) -> bytes:
    place = chance.randrange(len(data))
    return data[:place] + bytes(len(data[place : place + 64])) + data[place + 64 :]


def lengthen(data: bytes, chance: random.Random) -> bytes:
    return data + chance.randbytes(8)


def digit(data: bytes, chance: random.Random) -> bytes:
    """One digit becomes another: what no parser can see."""
    places = np.flatnonzero([48 <= value <= 57 for value in data])
    if not len(places):
        return flip(data, chance)
    place = int(chance.choice(list(places)))
    return data[:place] + str((data[place] - 47) % 10).encode() + data[place + 1 :]


DAMAGES = (flip, cut, digit, blank, lengthen, flip)


@pytest.mark.parametrize("kind", CASES)
def test_damage_is_one_sentence_that_names_the_file_or_changes_nothing(kind: str, tmp_path: Path) -> None:
    make, read, names = CASES[kind]
    whole = tmp_path / "whole"
    whole.mkdir()
    make(whole)
    copy = tmp_path / "copy"
    shutil.copytree(whole, copy)
    expected = read(copy)
    refused = 0
    for name in names:
        chance = random.Random(f"{kind} {name}")
        for number in range(ROUNDS):
            shutil.rmtree(copy)
            shutil.copytree(whole, copy)
            damage = DAMAGES[number % len(DAMAGES)]
            damaged = damage((whole / name).read_bytes(), chance)
            (copy / name).write_bytes(damaged)
            told = f"{damage.__name__} of {name}, round {number}"
            try:
                found = read(copy)
            except LLMError as error:
                refused += 1
                assert Path(name).name in str(error), f"{told}: {error}"
                assert len(str(error).splitlines()) <= 12, f"{told}: {error}"
                assert "errors.pydantic" not in str(error), f"{told}: {error}"
            else:
                assert found == expected, f"{told} changed what is read, and nobody noticed"
    assert refused >= len(names)
