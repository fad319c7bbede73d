"""Resumable checkpoints hold all that the next step depends on, and damage is found."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from llmcore.errors import ArtifactError, LLMError, TrainingError
from llmcore.train import snapshot as module
from llmcore.train.optim import AdamW
from llmcore.train.retention import snapshot_paths
from llmcore.train.snapshot import (
    Progress,
    Snapshot,
    latest_intact,
    load_snapshot,
    model_state,
    optimizer_state,
    restore_model,
    restore_optimizer,
    save_snapshot,
)
from llmcore.train.source import SourceState


class Tied(nn.Module):
    """A head that is the embedding, a frozen part, a buffer, and a weight that no gradient reaches."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(6, 4)
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.embedding.weight
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.unused = nn.Parameter(torch.ones(3))
        self.register_buffer("count", torch.tensor(seed))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.head(self.frozen(self.embedding(ids)))
        return scores


def trained(seed: int = 0, steps: int = 2) -> tuple[Tied, torch.optim.Optimizer]:
    model = Tied(seed)
    optimizer = AdamW().build(model, 0.1)
    for _ in range(steps):
        take_step(model, optimizer)
    return model, optimizer


def take_step(model: Tied, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    torch.autograd.backward(model(torch.arange(6)).square().sum())
    optimizer.step()


def save(folder: Path, step: int, *, seed: int = 0, source: SourceState | None = None) -> Path:
    model, optimizer = trained(seed)
    kept = Snapshot(Progress(step, 7 * step, 1.5), model_state(model), optimizer_state(model, optimizer), source)
    return save_snapshot(folder, kept, made_by="test")


def test_what_is_restored_goes_on_like_what_was_saved(tmp_path: Path) -> None:
    model, optimizer = trained()
    source = SourceState({"moments": torch.tensor([0.1, 0.2])}, {"kl": 0.03, "seen": [1, 2]})
    path = save_snapshot(
        tmp_path,
        Snapshot(Progress(5, 9, 1.0), model_state(model), optimizer_state(model, optimizer), source),
        made_by="t",
    )
    loaded = load_snapshot(path)
    other = Tied(seed=3)
    fresh = AdamW().build(other, 0.1)
    restore_model(other, loaded.model, path)
    restore_optimizer(other, fresh, loaded.optimizer, path)
    for _ in range(3):
        take_step(model, optimizer)
        take_step(other, fresh)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))
    assert other.head.weight is other.embedding.weight
    assert loaded.progress == Progress(5, 9, 1.0)
    assert loaded.source is not None
    assert loaded.source.values == source.values
    assert torch.equal(loaded.source.tensors["moments"], source.tensors["moments"])


def test_tied_weights_are_saved_once(tmp_path: Path) -> None:
    names = load_snapshot(save(tmp_path, 1)).model.keys()
    assert names == {"embedding.weight", "frozen.weight", "frozen.bias", "unused", "count"}


def test_a_source_without_state_has_none_afterwards(tmp_path: Path) -> None:
    assert load_snapshot(save(tmp_path, 1)).source is None
    assert load_snapshot(save(tmp_path, 2, source=SourceState())).source == SourceState()


def test_a_snapshot_is_committed_whole_with_the_modes_of_the_umask(tmp_path: Path) -> None:
    path = save(tmp_path, 12)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000012"]
    assert {p.name for p in path.iterdir()} == {
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
        "manifest.json",
    }
    assert {oct(p.stat().st_mode & 0o777) for p in path.iterdir()} == {"0o644"}


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
def test_damage_is_found_and_named(tmp_path: Path, name: str, harm: str) -> None:
    path = save(tmp_path, 4)
    content = bytearray((path / name).read_bytes())
    if harm == "flip":
        content[len(content) // 2] ^= 0xFF
    (path / name).unlink()
    if harm != "remove":
        (path / name).write_bytes(content[: len(content) // 2] if harm == "cut" else content)
    with pytest.raises(ArtifactError, match=name if harm != "remove" else "step-00000004"):
        load_snapshot(path)


def test_the_last_intact_snapshot_is_found_behind_damaged_ones(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    (tmp_path / "step-00000003" / "model.safetensors").write_bytes(b"")
    assert latest_intact(snapshot_paths(tmp_path)) == 2
    (tmp_path / "step-00000002" / "state.json").write_text("{}")
    (tmp_path / "step-00000001" / "state.json").unlink()
    assert latest_intact(snapshot_paths(tmp_path)) is None


def test_a_snapshot_under_another_name_is_refused(tmp_path: Path) -> None:
    shutil.copytree(save(tmp_path, 4), tmp_path / "step-00000009")
    with pytest.raises(ArtifactError, match="holds step 4"):
        load_snapshot(tmp_path / "step-00000009")


def test_a_state_of_an_unknown_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_text(json.dumps({"schema_version": 2, "step": 1, "tokens": 1, "seconds": 1.0}))
    with pytest.raises(ArtifactError, match="not the state of a run"):
        module.read_state(path)


def test_another_model_is_refused_with_the_names_that_differ(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    loaded = load_snapshot(path)
    with pytest.raises(ArtifactError, match=r"missing \['bias', 'weight'\]"):
        restore_model(nn.Linear(4, 6), loaded.model, path)
    larger = Tied()
    larger.unused = nn.Parameter(torch.ones(4))
    with pytest.raises(ArtifactError, match=r"unused is torch.float32 \[3\], the model has torch.float32 \[4\]"):
        restore_model(larger, loaded.model, path)


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    model, optimizer = trained()
    with torch.no_grad():
        model.unused[1] = float("nan")
    with pytest.raises(TrainingError, match="unused holds values that are not finite"):
        save_snapshot(
            tmp_path, Snapshot(Progress(1), model_state(model), optimizer_state(model, optimizer), None), made_by="t"
        )
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_is_found_before_the_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 1000

    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage)
    with pytest.raises(LLMError, match=r"bytes are needed and 1,000 are free"):
        save(tmp_path, 1)
    assert list(tmp_path.iterdir()) == []
