"""Whole runs on a tiny base: what they leave, and that an interrupted one ends in the same bits."""

import itertools
import json
from pathlib import Path

import pytest
import torch

from llmcore.adapters import merge_to
from llmcore.chat import render_chat
from llmcore.checkpoint import load_checkpoint, save_model
from llmcore.config import load_config
from llmcore.errors import ConfigError, DataError, TrainingError
from llmcore.losses import token_logprobs
from llmcore.manifest import Manifest, verify_artifact, write_manifest
from llmcore.model.config import ModelConfig
from llmcore.records import Chat
from llmcore.tokenizer import Tokenizer
from llmcore.train.metrics import read_metrics
from llmcore.train.signals import Stopped
from llmsft.config import SFTConfig
from llmsft.run import run

QUICK = ["train.steps=6", "train.batch=4", "train.log_every=1", "train.eval_every=6", "train.save_every=3",
         "data.max_dropped=1"]  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    model = ModelConfig(vocab_size=260, width=32, depth=2, context=128).build(seed=0)
    files = save_model(folder, model, Tokenizer.byte_level())
    write_manifest(folder, kind="policy", made_by="test", config={}, files=files)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "chats.jsonl"
    rows = [{"prompt": f"{n} + {n}?", "completion": str(2 * n) * (1 + n % 7), "index": n % 5} for n in range(60)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def fine_tune(base: Path, data: Path, out: Path, *settings: str) -> Manifest:
    config = load_config(SFTConfig, [*QUICK, *settings], {"inputs.base": str(base), "inputs.data": str(data)})
    return run(config, out, quiet=True)


def stopped_and_resumed(base: Path, data: Path, out: Path, *settings: str) -> Manifest:
    with pytest.raises(Stopped):
        fine_tune(base, data, out, *settings, "train.stop_after=2")
    return fine_tune(base, data, out, *settings)


def test_an_adapter_is_written_that_serves_as_a_policy(base: Path, data: Path, tmp_path: Path) -> None:
    manifest = fine_tune(base, data, tmp_path / "out", "lora.rank=2", "train.lr=0.02")
    assert manifest.kind == "adapter" and set(manifest.files) == {"adapter.json", "adapter.safetensors"}
    assert manifest.parents["base"].id == load_checkpoint(base).manifest.id
    ids = torch.arange(20)[None]
    below, tuned = load_checkpoint(base).model, load_checkpoint(tmp_path / "out").model
    assert (below(ids) - tuned(ids)).abs().max() > 1e-3
    again = fine_tune(tmp_path / "out", data, tmp_path / "second", "lora.rank=1")
    assert again.parents["base"].kind == "adapter"
    assert load_checkpoint(tmp_path / "second").manifest.id == again.id
    verify_artifact(tmp_path / "second")


def test_a_merged_adapter_is_a_policy_of_the_same_words(base: Path, data: Path, tmp_path: Path) -> None:
    fine_tune(base, data, tmp_path / "out", "lora.rank=2", "train.lr=0.02")
    merged = merge_to(tmp_path / "merged", tmp_path / "out", made_by="test")
    assert merged.kind == "policy" and merged.parents["adapter"].kind == "adapter"
    ids = torch.arange(20)[None]
    assert load_checkpoint(tmp_path / "merged").model(ids).equal(load_checkpoint(tmp_path / "out").model(ids))


def test_a_run_with_adapters_goes_on_exactly(base: Path, data: Path, tmp_path: Path) -> None:
    settings = ("lora.rank=2", "lora.dropout=0.2")
    whole = fine_tune(base, data, tmp_path / "whole", *settings)
    parts = stopped_and_resumed(base, data, tmp_path / "parts", *settings)
    assert whole.id == parts.id


def test_a_projection_that_is_not_there_is_named(base: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'q_proj' — 'qkv' holds it"):
        fine_tune(base, data, tmp_path / "out", 'lora.target_modules=["q_proj"]')


@pytest.mark.parametrize(
    "settings",
    [
        ("data.packing=true", "neftune_noise_alpha=5"),
        ("curriculum.by=length", "curriculum.pacing=linear", "loss_type=dft"),
        ("curriculum.by=loss", "curriculum.ramp=4", "data.packing=true"),
        ("curriculum.by.kind=key", "curriculum.by.key=index", "curriculum.pacing=step"),
    ],
    ids=["packing", "length", "loss", "key"],
)
def test_what_is_drawn_and_what_is_noise_go_on_exactly(
    base: Path, data: Path, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    whole = fine_tune(base, data, tmp_path / "whole", *settings)
    parts = stopped_and_resumed(base, data, tmp_path / "parts", *settings)
    assert whole.id == parts.id and whole.kind == "policy"
    lines = [read_metrics(tmp_path / name / "run" / "metrics.jsonl") for name in ("whole", "parts")]
    assert [line["loss"] for line in lines[0]] == [line["loss"] for line in lines[1]]
    if "curriculum.by=length" in settings:
        competence = [line["competence"] for line in lines[0]]
        assert competence == pytest.approx([0.1, 0.4, 0.7, 1.0, 1.0, 1.0])


def test_packing_changes_neither_losses_nor_steps(base: Path, data: Path, tmp_path: Path) -> None:
    packed = fine_tune(base, data, tmp_path / "packed", "data.packing=true", "train.batch=57")
    padded = fine_tune(base, data, tmp_path / "padded", "train.batch=57")
    assert packed.metrics["val_loss"] == pytest.approx(padded.metrics["val_loss"], rel=1e-4)
    assert packed.counts["tokens"] < padded.counts["tokens"]


def test_the_data_is_counted_and_shown_before_the_first_step(
    base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_config(
        SFTConfig, [*QUICK, "data.max_length=40"], {"inputs.base": str(base), "inputs.data": str(data)}
    )
    manifest = run(config, tmp_path / "out")
    told = capsys.readouterr().err
    cut = manifest.counts["truncated: an answer was cut"]
    assert cut > 0 and f"{cut} truncated: an answer was cut" in told
    shown = [line for line in told.splitlines() if line.strip().startswith("example")]
    assert len(shown) == 3 and all("⟦" in line and len(line) < 150 for line in shown)
    assert "tokens trained on" in told and "epochs" in told and "  held out " in told


def test_a_row_without_the_key_of_the_curriculum_is_named(base: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"q{n}", "completion": "a", **({"hardness": n} if n != 3 else {})} for n in range(20)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    curriculum = ("curriculum.by.kind=key", "curriculum.by.key=hardness")
    with pytest.raises(DataError, match="hardness is None, a curriculum needs a number"):
        fine_tune(base, tmp_path / "data.jsonl", tmp_path / "out", *curriculum)


def test_a_row_is_named_by_its_place_among_all_also_those_that_were_dropped(base: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "x" * (200 if n < 5 else 1) + str(n), "completion": "a", "hardness": n} for n in range(20)]
    rows[11]["hardness"] = "hm"
    held_out = [{"prompt": "held out", "completion": "a", "hardness": 1}]
    for name, some in (("train", rows), ("valid", held_out)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    curriculum = ("curriculum.by.kind=key", "curriculum.by.key=hardness")
    with pytest.raises(DataError, match="conversation 12: hardness is 'hm'"):
        fine_tune(base, tmp_path, tmp_path / "out", *curriculum)


def in_two_files(folder: Path, held_out: dict[str, object]) -> Path:
    folder.mkdir()
    rows = [{"prompt": f"{n} + {n}?", "completion": str(2 * n)} for n in range(20)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "valid.jsonl").write_text(json.dumps(held_out) + "\n")
    return folder


def test_without_a_held_out_target_a_run_says_so_and_evaluates_nothing(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = in_two_files(tmp_path / "data", {"prompt": "q" * 200, "completion": "beyond the context"})
    config = load_config(SFTConfig, QUICK, {"inputs.base": str(base), "inputs.data": str(data)})
    manifest = run(config, tmp_path / "out")
    assert "no answer of 1 conversations begins within data.max_length: no val_loss" in capsys.readouterr().err
    assert "val_loss" not in manifest.metrics
    with pytest.raises(TrainingError, match="no evaluation to rank by"):
        fine_tune(base, data, tmp_path / "best", "train.artifact=best", "train.keep_best=1")


def test_the_held_out_loss_is_cut_and_masked_as_training_is(base: Path, tmp_path: Path) -> None:
    turns = [("user", "1?"), ("assistant", "one"), ("user", "2?"), ("assistant", "twenty-two")]
    held_out = {"messages": [{"role": role, "content": content} for role, content in turns]}
    data = in_two_files(tmp_path / "data", held_out)
    settings = ["train.lr=1e-9", "train.dtype=fp32", "train.steps=1", "train.eval_every=1", "train.save_every=1"]
    found = {
        name: fine_tune(base, data, tmp_path / name, *settings, *more).metrics["val_loss"]
        for name, more in {
            "all": [],
            "last": ["data.completion_only_loss=true"],
            "first": ["data.max_length=30"],
        }.items()
    }
    policy = load_checkpoint(base)
    chat = Chat.model_validate(held_out)
    rendered = render_chat(chat.messages, policy.tokenizer)
    logprobs = token_logprobs(policy.model, torch.tensor([rendered.ids]))[0].tolist()
    targets = [place for place in range(1, len(rendered.ids)) if rendered.mask[place]]
    wanted = {
        "all": targets,
        "last": targets[-len("twenty-two") - 1 :],
        "first": [place for place in targets if place < 30],
    }
    assert 0 < len(wanted["first"]) < len(targets)
    assert min(abs(found[one] - found[other]) for one, other in itertools.combinations(found, 2)) > 1e-3
    for name, places in wanted.items():
        assert found[name] == pytest.approx(-sum(logprobs[place - 1] for place in places) / len(places), abs=1e-5)


def test_a_reference_is_a_parent_and_one_that_nothing_asks_is_refused(base: Path, data: Path, tmp_path: Path) -> None:
    settings = ("curriculum.by=loss", f"inputs.reference={base}")
    assert fine_tune(base, data, tmp_path / "out", *settings).parents["reference"].kind == "policy"
    with pytest.raises(ConfigError, match="nothing asks it"):
        fine_tune(base, data, tmp_path / "other", settings[1])


def test_a_context_that_no_row_length_divides_is_filled_to_its_last_token(data: Path, tmp_path: Path) -> None:
    model = ModelConfig(vocab_size=260, width=16, depth=1, context=43).build(seed=0)
    (tmp_path / "base").mkdir()
    files = save_model(tmp_path / "base", model, Tokenizer.byte_level())
    write_manifest(tmp_path / "base", kind="policy", made_by="test", config={}, files=files)
    for settings in (["data.packing=true"], ["curriculum.by=loss"]):
        manifest = fine_tune(tmp_path / "base", data, tmp_path / settings[0], *settings)
        assert manifest.counts["truncated: an answer was cut"] > 0
