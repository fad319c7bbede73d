import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmcore.checkpoint import load_checkpoint, save_model
from llmcore.errors import ArtifactError
from llmcore.manifest import write_manifest
from llmcore.model.config import ModelConfig
from llmcore.model.transformer import Transformer
from llmcore.tokenizer import Tokenizer

IDS = torch.tensor([[1, 2, 3, 4]])


def saved(folder: Path, kind: str = "policy", **model: object) -> Transformer:
    """A tiny model written as an artifact."""
    folder.mkdir(exist_ok=True)
    tokenizer = Tokenizer.byte_level()
    settings = {"vocab_size": tokenizer.vocab_size, "width": 32, "depth": 2, "context": 16, **model}
    built = ModelConfig.model_validate(settings).build(seed=0)
    write_manifest(folder, kind=kind, made_by="test", config={}, files=save_model(folder, built, tokenizer))
    return built


def rehash(folder: Path) -> None:
    """Make the manifest agree with the files again, so that only the loader's own checks are left."""
    files = json.loads((folder / "manifest.json").read_text())["files"]
    write_manifest(folder, kind="policy", made_by="test", config={}, files=list(files))


@pytest.mark.parametrize("tied", [True, False])
def test_loaded_model_is_the_saved_one(tmp_path: Path, tied: bool) -> None:
    model = saved(tmp_path, tie_embeddings=tied)
    loaded = load_checkpoint(tmp_path)
    assert torch.equal(loaded.model(IDS), model(IDS))
    assert loaded.model.config == model.config and loaded.tokenizer.vocab_size == 260
    assert not loaded.model.training and all(p.requires_grad for p in loaded.model.parameters())


def test_loaded_weights_can_be_trained_without_touching_the_file(tmp_path: Path) -> None:
    saved(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    model = load_checkpoint(tmp_path).model
    model(IDS).sum().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_fresh_scalar_head_keeps_the_trunk(tmp_path: Path) -> None:
    policy = saved(tmp_path)
    reward = load_checkpoint(tmp_path, head="scalar").model
    assert torch.equal(reward.hidden(IDS), policy.hidden(IDS)) and reward(IDS).shape == (1, 4, 1)


def test_of_a_fresh_head_nothing_else_is_drawn(tmp_path: Path) -> None:
    width = saved(tmp_path).config.width
    torch.manual_seed(0)
    load_checkpoint(tmp_path, head="scalar")
    after = torch.random.get_rng_state()
    torch.manual_seed(0)
    torch.empty(1, width).normal_()
    assert torch.equal(after, torch.random.get_rng_state())


def test_the_wrong_kind_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, kind="reward", head="scalar")
    with pytest.raises(ArtifactError, match="holds a reward"):
        load_checkpoint(tmp_path, expect="policy")


def test_an_artifact_without_a_model_is_called_that(tmp_path: Path) -> None:
    write_manifest(tmp_path, kind="tokens", made_by="test", config={}, files=Tokenizer.byte_level().save(tmp_path))
    with pytest.raises(ArtifactError, match=r"holds no model: its manifest says 'tokens'"):
        load_checkpoint(tmp_path, expect=None)


@pytest.mark.parametrize("place", [0.3, 0.9])
def test_a_flipped_bit_is_found(tmp_path: Path, place: float) -> None:
    saved(tmp_path)
    path = tmp_path / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"model\.safetensors is damaged"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: t.pop("final_norm.weight"), "missing.*final_norm"),
        (lambda t: t.update(extra=torch.zeros(1)), "unexpected.*extra"),
        (lambda t: t.update({"embedding.weight": t["embedding.weight"].T.contiguous()}), "embedding.weight is"),
        (lambda t: t.update({"embedding.weight": t["embedding.weight"].double()}), "float64"),
        (lambda t: t["final_norm.weight"].fill_(float("nan")), "not finite"),
    ],
)
def test_tensors_must_fit_exactly(tmp_path: Path, change: object, sentence: str) -> None:
    saved(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    change(tensors)  # type: ignore[operator]
    save_file(tensors, tmp_path / "model.safetensors")
    rehash(tmp_path)
    with pytest.raises(ArtifactError, match=sentence):
        load_checkpoint(tmp_path)


def test_foreign_weight_files_are_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    for junk in (b"", b"\x00" * 7, b"\xff" * 64, b"PK\x03\x04 not safetensors"):
        (tmp_path / "model.safetensors").write_bytes(junk)
        rehash(tmp_path)
        with pytest.raises(ArtifactError, match="not a readable safetensors"):
            load_checkpoint(tmp_path)
