"""Damaged artifacts: any byte, anywhere, is refused by one sentence that names the file, or changes nothing."""

import hashlib
import json
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import save

from conftest import QUICK, TINY, Line
from forked import Done, run
from llmcore.adapters import save_adapter
from llmcore.checkpoint import load_checkpoint, save_model
from llmcore.errors import LLMError
from llmcore.lora import LoRA
from llmcore.losses import Batch, next_token_loss
from llmcore.manifest import checksum, family, verify_artifact, write_manifest
from llmcore.model.adapters import add_adapters
from llmcore.model.config import ModelConfig
from llmcore.records import Chat, Message, load_records, write_records
from llmcore.scoring import RewardScale, load_scorer, scale_bytes
from llmcore.shards import ShardWriter, TokenShards, write_index
from llmcore.tokenizer import Tokenizer
from llmcore.train.config import TrainConfig
from llmcore.train.loop import fit
from llmcore.train.retention import write_pins
from llmcore.train.run import Run
from llmcore.train.signals import Stopped
from llmcore.train.snapshot import load_snapshot
from llmcore.train.source import FromFunction

ROUNDS = 14
"""Damages of each file: more than 500 in all."""

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
    write_pins(folder / "run", [2])


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
    "run": (make_stopped, go_on, ["run/run.json", "run/metrics.jsonl", "run/pins.json", f"{SNAPSHOT}/state.json"]),
}


def flip(data: bytes, chance: random.Random, _: bytes) -> bytes:
    place = chance.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << chance.randrange(8)]) + data[place + 1 :]


def cut(data: bytes, chance: random.Random, _: bytes) -> bytes:
    return data[: chance.randrange(len(data))]


def blank(data: bytes, chance: random.Random, _: bytes) -> bytes:
    place = chance.randrange(len(data))
    return data[:place] + bytes(len(data[place : place + 64])) + data[place + 64 :]


def lengthen(data: bytes, chance: random.Random, _: bytes) -> bytes:
    return data + chance.randbytes(8)


def digit(data: bytes, chance: random.Random, other: bytes) -> bytes:
    """One digit becomes another: what no parser can see."""
    places = np.flatnonzero([48 <= value <= 57 for value in data])
    if not len(places):
        return flip(data, chance, other)
    place = int(chance.choice(list(places)))
    return data[:place] + str((data[place] - 47) % 10).encode() + data[place + 1 :]


def foreign(data: bytes, chance: random.Random, _: bytes) -> bytes:
    """The beginning, or all, of a file of another kind."""
    header = chance.choice(FOREIGN)
    return chance.choice([header, header + data, header + data[len(header) :]])


def swap(data: bytes, chance: random.Random, other: bytes) -> bytes:
    """Another file of the same artifact."""
    return other


def edit(data: bytes, chance: random.Random, other: bytes) -> bytes:
    """One value of a JSON file, or of one of its lines, becomes another, goes, or gets company."""
    rows = data.split(b"\n")
    whole = len(rows) < 3 or rows[0] in (b"{", b"[")
    number = 0 if whole else chance.randrange(len(rows))
    try:
        tree = json.loads(data if whole else rows[number])
    except ValueError:
        return digit(data, chance, other)
    line = json.dumps(edited(tree, chance), ensure_ascii=False).encode()
    return line if whole else b"\n".join([*rows[:number], line, *rows[number + 1 :]])


def edited(tree: object, chance: random.Random) -> object:
    """A copy of a JSON value with one change somewhere inside."""
    if chance.random() < 0.15 or not isinstance(tree, dict | list) or not tree:
        return chance.choice(VALUES)
    places: list[str] | list[int] = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
    place = chance.choice(places)  # type: ignore[var-annotated, arg-type]
    if isinstance(tree, list):
        return [edited(value, chance) if index == place else value for index, value in enumerate(tree)]
    what = chance.random()
    if what < 0.15:
        return {name: value for name, value in tree.items() if name != place}
    if what < 0.25:
        return {**tree, f"{place}_": tree[place]}
    return {**tree, place: edited(tree[place], chance)}


Damage = Callable[[bytes, random.Random, bytes], bytes]
DAMAGES: tuple[Damage, ...] = (flip, cut, edit, digit, foreign, blank, swap, lengthen, edit, flip)
FOREIGN = (b"PK\3\4", b"\x1f\x8b\x08", b"\x89PNG\r\n", b"\x80\4\x95", b"\x7fELF", b"GGUF\3\0\0\0", b"\xef\xbb\xbf",
           b"\xff" * 8, b"\0" * 8, b"[" * 9999, b"", save({"a": torch.zeros(3)}))  # fmt: skip
VALUES = (None, True, -1, 0, 2**63, 10**400, 0.5, 1e308, float("nan"), float("inf"), "", "x", "../x", "/etc/passwd",
          "\0", [], {}, [[]], {"a": {"b": None}})  # fmt: skip


class Outcomes(NamedTuple):
    """What became of some damages."""

    refused: int
    harmless: int


def inflict(kind: str, root: Path, *, rounds: int, seed: str = "", sealed: bool = False) -> Outcomes:
    """Damage each file of an artifact so many times: refused by a sentence that names it, or nothing is changed.

    With `sealed` the manifest is made to agree with the damaged file, as an attacker would: then what is read may be
    another thing, but a refusal is still a sentence.
    """
    make, read, names = CASES[kind]
    whole, copy = root / "whole", root / "copy"
    whole.mkdir()
    make(whole)
    shutil.copytree(whole, copy)
    expected = read(copy)
    refused = harmless = 0
    for index, name in enumerate(names):
        chance = random.Random(f"{kind} {name}{seed}")
        for number in range(rounds):
            damage = DAMAGES[number % len(DAMAGES)]
            if damage is swap and kind == "shards":
                continue  # two files that count the same, only the manifest can tell apart
            shutil.rmtree(copy)
            shutil.copytree(whole, copy)
            other = (whole / names[index - 1]).read_bytes()
            (copy / name).write_bytes(damage((whole / name).read_bytes(), chance, other))
            if sealed:
                seal(copy / name)
            told = f"{damage.__name__} of {name}, round {number}{seed}"
            began = time.monotonic()
            try:
                found = read(copy)
            except LLMError as error:
                refused += 1
                assert sealed or Path(name).name in str(error), f"{told}: {error}"
                assert len(str(error).splitlines()) <= 24, f"{told}: {error}"
                assert max(map(len, str(error).splitlines())) <= 1000, f"{told}: {error}"
                assert "errors.pydantic" not in str(error), f"{told}: {error}"
            except Exception as error:
                raise AssertionError(f"{told}: {type(error).__name__}: {error}") from error
            else:
                assert sealed or found == expected, f"{told} changed what is read, and nobody noticed"
                harmless += 1
            assert time.monotonic() - began < 30, told
    return Outcomes(refused, harmless)


def seal(path: Path) -> None:
    """Make the manifest beside a file agree with it."""
    manifest = path.with_name("manifest.json")
    tree = json.loads(manifest.read_text()) if manifest != path and manifest.exists() else {}
    if path.name in tree.get("files", {}):
        data = path.read_bytes()
        tree["files"][path.name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        del tree["checksum"]
        manifest.write_text(json.dumps({**tree, "checksum": checksum(tree)}))


@pytest.mark.parametrize("kind", CASES)
def test_damage_is_one_sentence_that_names_the_file_or_changes_nothing(kind: str, tmp_path: Path) -> None:
    assert inflict(kind, tmp_path, rounds=ROUNDS).refused >= len(CASES[kind][2])


@pytest.mark.parametrize("kind", CASES)
def test_what_agrees_with_its_manifest_and_is_wrong_is_never_a_defect(kind: str, tmp_path: Path) -> None:
    inflict(kind, tmp_path, rounds=len(DAMAGES), sealed=True)


@pytest.mark.nightly
@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("kind", CASES)
def test_a_hundred_damages_of_every_file(kind: str, sealed: bool, tmp_path: Path) -> None:
    found = inflict(kind, tmp_path, rounds=100, seed=" nightly", sealed=sealed)
    print(f"\n{kind}, {'sealed' if sealed else 'as it is'}: {found}")


# The same through real commands


def damaged_copy(folder: Path, name: str, work: Path, *, number: int) -> Path:
    """A copy of an artifact with one damaged file."""
    copy = work / f"{folder.name}-{number}"
    shutil.copytree(folder, copy)
    chance = random.Random(f"{folder.name} {name} {number}")
    other = (copy / "manifest.json").read_bytes()
    path = copy / name
    path.write_bytes(DAMAGES[number % len(DAMAGES)](path.read_bytes(), chance, other))
    return copy


LAST = "run/checkpoints/step-00000006"
THROUGH_COMMANDS = [
    ("tokens", "train-00000.bin", "pretrain"), ("tokens", "tokens.json", "pretrain"),
    ("tokens", "tokenizer.json", "pretrain"), ("tokens", "manifest.json", "pretrain"),
    ("tokens", "valid-00000.bin", "eval"), ("tokens", "special_tokens.json", "eval"),
    ("base", "model.safetensors", "sft"), ("base", "model.json", "sft"), ("base", "manifest.json", "sft"),
    ("base", "tokenizer.json", "generate"), ("base", "model.safetensors", "generate"),
    ("chats", "train.jsonl", "sft chats"), ("chats", "manifest.json", "sft chats"),
    ("reward", "reward.json", "grpo"), ("reward", "model.safetensors", "grpo"), ("reward", "manifest.json", "grpo"),
    ("base", f"{LAST}/optimizer.safetensors", "go back"), ("base", f"{LAST}/state.json", "go back"),
    ("base", f"{LAST}/manifest.json", "go back"), ("base", "run/run.json", "go back"),
]  # fmt: skip
"""Twenty: an artifact, its file, and the command that meets it."""


def words_for(what: str, line: Line, folder: Path, work: Path) -> list[str | Path]:
    """The command that reads `folder`."""
    out = ["--out", work / "out", *QUICK]
    pretrain: list[str | Path] = ["llmpretrain", "run", "--data"]
    words: dict[str, list[str | Path]] = {
        "pretrain": [*pretrain, folder, *TINY, *out],
        "eval": ["llmpretrain", "eval", line.base, "--data", folder, "--json"],
        "generate": ["llmcore", "generate", folder, "--prompt", "def ", "--max-new-tokens", "9"],
        "sft": ["llmsft", "run", "--base", folder, "--data", line.chats, *out],
        "sft chats": ["llmsft", "run", "--base", line.base, "--data", folder, *out],
        "grpo": ["llmrl", "grpo", "--policy", line.sft, "--prompts", line.prompts, "--reward", str(folder), *out],
        "go back": [*pretrain, line.tokens, "--resume", "6", "--out", folder, *TINY, *QUICK],
    }
    return words[what]


def results(done: Done, out: Path) -> object:
    """What a command made: its files' hashes, or what it printed."""
    return verify_artifact(out).files if (out / "manifest.json").exists() else done.out


def check_command(case: tuple[str, str, str], number: int, line: Line, work: Path) -> str:
    """`refused` or `harmless`."""
    artifact, name, what = case
    copy = damaged_copy(getattr(line, artifact), name, work, number=number)
    done = run(*words_for(what, line, copy, work), cwd=work)
    told = f"{case}, {DAMAGES[number % len(DAMAGES)].__name__}: {done.code}\n{done.err}"
    assert done.code in (0, 2) and "Traceback" not in done.out + done.err, told
    if done.code == 2:
        message = done.err[done.err.rindex("error: ") :]
        assert Path(name).name in message and len(message.splitlines()) <= 24, told
        return "refused"
    made = results(done, copy if what == "go back" else work / "out")
    shutil.rmtree(work / "out", ignore_errors=True)
    whole = work / "whole"
    shutil.copytree(getattr(line, artifact), whole)
    again = run(*words_for(what, line, whole, work), cwd=work)
    assert again.code == 0 and made == results(again, whole if what == "go back" else work / "out"), told
    return "harmless"


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(THROUGH_COMMANDS)))
def test_damage_through_a_command_is_one_message_that_names_the_file(number: int, line: Line, tmp_path: Path) -> None:
    check_command(THROUGH_COMMANDS[number], number, line, tmp_path)
