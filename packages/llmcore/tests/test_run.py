"""The output folder: one process, one identity, the same command goes on, and nothing foreign is touched."""

import json
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llmcore.checkpoint import load_checkpoint
from llmcore.config import Config
from llmcore.errors import ArtifactError, ConfigError, LLMError
from llmcore.losses import Batch, Loss, next_token_loss
from llmcore.manifest import Manifest, verify_artifact
from llmcore.model.config import ModelConfig
from llmcore.tokenizer import Tokenizer
from llmcore.train.config import TrainConfig
from llmcore.train.loop import fit
from llmcore.train.metrics import read_metrics
from llmcore.train.run import Run
from llmcore.train.signals import Stopped
from llmcore.train.source import FromFunction

TRAIN = TrainConfig(steps=6, batch=4, lr=0.05, device="cpu", dtype="fp32", log_every=1, save_every=2, eval_every=3)


class StageConfig(Config):
    """Settings of a stage."""

    train: TrainConfig = TRAIN
    """How to train."""
    inputs: dict[str, str] = {}
    """Paths."""
    task: str = "sum"
    """What to learn."""


def batches(step: int) -> list[Tensor]:
    rows = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
    return [rows[:2], rows[2:]]


def loss_fn(model: nn.Module, x: Tensor) -> Loss:
    off = model(x) - x.sum(1, keepdim=True)
    return Loss(off.square().sum(), len(x), {"off": (float(off.detach().abs().sum()), len(x))})


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(3, 1)


def open_run(out: Path, config: Config | None = None, *, resume: str = "auto", json: bool = False, **train: int) -> Run:
    config = config or StageConfig(train=TRAIN.model_copy(update=train))
    return Run(out, made_by="llmtest run", config=config, resume=resume, quiet=True, json=json)


def train(
    out: Path, config: Config | None = None, *, resume: str = "auto", json: bool = False, **settings: int
) -> Manifest:
    with open_run(out, config, resume=resume, json=json, **settings) as run:
        model = small()
        stage = run.config
        fit(
            model,
            FromFunction(batches),
            loss_fn,
            stage.train if isinstance(stage, StageConfig) else TRAIN,
            run,
            evaluate=lambda m: {"off": float(m(torch.ones(1, 3)).sum())},
        )
        return run.finish(model)


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != ".lock"
    }


def test_a_run_leaves_a_verified_artifact_and_no_temporary_file(tmp_path: Path) -> None:
    manifest = train(tmp_path / "out")
    assert verify_artifact(tmp_path / "out", expect="policy").id == manifest.id
    assert manifest.made_by == "llmtest run"
    assert manifest.counts == {"steps": 6, "tokens": 24}
    assert {"loss", "off", "val_off", "grad_norm", "lr"} <= manifest.metrics.keys()
    assert not list(tmp_path.rglob(".tmp-*"))
    assert str(tmp_path) not in (tmp_path / "out" / "manifest.json").read_text()


def test_a_transformer_becomes_a_checkpoint_that_loads(tmp_path: Path) -> None:
    tokenizer = Tokenizer.byte_level()
    model = ModelConfig(width=16, depth=1, context=8).with_vocabulary(tokenizer.vocab_size).build(seed=0)
    ids = torch.tensor([tokenizer.encode("to be or")[:8]])
    batch = Batch(ids, torch.ones_like(ids, dtype=torch.bool))
    config = TrainConfig(steps=2, device="cpu", dtype="bf16")
    with Run(tmp_path / "out", made_by="me", config=config, tokenizer=tokenizer, quiet=True) as run:
        fit(model, FromFunction(lambda _: [batch]), next_token_loss, config, run)
        manifest = run.finish(model)
    loaded = load_checkpoint(tmp_path / "out")
    assert loaded.manifest.id == manifest.id
    assert loaded.tokenizer.sha256 == tokenizer.sha256
    assert all(torch.equal(a, b) for a, b in zip(loaded.model.parameters(), model.parameters(), strict=True))
    assert {weight.dtype for weight in loaded.model.parameters()} == {torch.float32}


def test_a_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    first = train(tmp_path / "out")
    before = files(tmp_path)
    assert train(tmp_path / "out") == first
    assert files(tmp_path) == before


def test_identical_runs_have_identical_ids_wherever_they_are(tmp_path: Path) -> None:
    there = StageConfig(inputs={"base": "/somewhere/else"})
    assert train(tmp_path / "a").id == train(tmp_path / "b" / "c", there).id


def test_another_setting_is_refused_with_both_values_and_nothing_changes(tmp_path: Path) -> None:
    train(tmp_path / "out", stop_after=6)
    before = files(tmp_path)
    other = StageConfig(train=TRAIN.model_copy(update={"lr": 0.1, "steps": 9}), task="product")
    with pytest.raises(ConfigError) as caught:
        open_run(tmp_path / "out", other)
    told = str(caught.value)
    for expected in ("train.lr is 0.1, it was 0.05", "train.steps is 9, it was 6", "task is 'product', it was 'sum'"):
        assert expected in told
    assert "--out" in told
    assert files(tmp_path) == before


def test_another_stage_or_parent_is_refused(tmp_path: Path) -> None:
    config = StageConfig()
    parent = Manifest(kind="policy", made_by="x")
    with Run(tmp_path, made_by="a", config=config, parents={"base": parent}, quiet=True) as run:
        fit(small(), FromFunction(batches), loss_fn, config.train, run)
    with pytest.raises(ConfigError, match="made_by is 'b', it was 'a'"):
        Run(tmp_path, made_by="b", config=config, parents={"base": parent}, quiet=True)
    other = Manifest(kind="policy", made_by="x", config={"lr": 1})
    with pytest.raises(ConfigError, match=f"parent base is '{other.id}', it was '{parent.id}'"):
        Run(tmp_path, made_by="a", config=config, parents={"base": other}, quiet=True)


def test_settings_that_change_no_update_may_change(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        train(tmp_path / "out", stop_after=3)
    whole = train(tmp_path / "whole")
    went_on = train(tmp_path / "out", log_every=2, save_every=1, eval_every=6, keep=4)
    assert went_on.files == whole.files


def without(tree: object, *names: str) -> object:
    """Settings without those of some names, at any depth."""
    if not isinstance(tree, dict):
        return tree
    return {name: without(value, *names) for name, value in tree.items() if name not in names}


def edit_identity(out: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = out / "run" / "run.json"
    identity = json.loads(path.read_text())
    identity["config"] = change(identity["config"])
    path.write_text(json.dumps(identity))


def test_a_run_from_before_some_settings_goes_on_with_their_defaults(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        train(tmp_path / "old", stop_after=3)
    edit_identity(tmp_path / "old", lambda config: without(config, "ema", "parallel", "watch", "fused", "task"))
    changed = StageConfig(task="difference", train=TRAIN)
    with pytest.raises(ConfigError, match="task is 'difference', it was 'sum'"):
        train(tmp_path / "old", changed)
    assert train(tmp_path / "old").id == train(tmp_path / "new").id


def test_a_run_with_a_setting_that_is_gone_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        train(tmp_path, stop_after=3)
    edit_identity(tmp_path, lambda config: {**config, "bygone": 3})
    with pytest.raises(ConfigError, match="bygone is not set, it was 3"):
        train(tmp_path)


def test_auto_is_resolved_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = StageConfig(train=TRAIN.model_copy(update={"dtype": "auto", "device": "auto", "stop_after": 2}))
    monkeypatch.setattr("llmcore.train.device.cpu_flags", lambda: frozenset({"avx512_bf16"}))
    monkeypatch.setattr("llmcore.train.device.torch.cuda.is_available", lambda: False)
    with pytest.raises(Stopped):
        train(tmp_path, config)
    monkeypatch.setattr("llmcore.train.device.cpu_flags", lambda: frozenset())
    with open_run(tmp_path, config) as run:
        assert run.resolve(config.train).dtype == torch.bfloat16
        assert "as the run started" in run.resolve(config.train).reason


def test_a_folder_with_something_else_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match=r"thesis\.txt"):
        open_run(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(ConfigError, match="is a file"):
        open_run(tmp_path / "thesis.txt")


def test_an_artifact_of_another_kind_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(Manifest(kind="tokens", made_by="llmdata").model_dump_json())
    before = files(tmp_path)
    with pytest.raises(ConfigError, match="no run of ours"):
        open_run(tmp_path)
    assert files(tmp_path) == before
    assert not (tmp_path / "run").exists()


def test_never_starts_only_in_a_new_folder(tmp_path: Path) -> None:
    train(tmp_path / "new", resume="never")
    with pytest.raises(ConfigError, match="holds a run already"):
        train(tmp_path / "new", resume="never")
    with pytest.raises(ConfigError, match="'sometimes' is none of auto, never"):
        open_run(tmp_path / "other", resume="sometimes")


def test_a_step_can_be_chosen_and_later_ones_are_discarded(tmp_path: Path) -> None:
    first = train(tmp_path / "out", keep=9)
    again = train(tmp_path / "out", resume="4", keep=9, stop_after=6)
    assert again.files == first.files
    with pytest.raises(ConfigError, match=r"no such step \(there are: 2, 4, 6\)"):
        train(tmp_path / "out", resume="5")
    with pytest.raises(Stopped):
        train(tmp_path / "out", resume="2", keep=9, stop_after=3)
    assert sorted(p.name for p in (tmp_path / "out/run/checkpoints").iterdir()) == ["step-00000002", "step-00000003"]
    assert [row["step"] for row in read_metrics(tmp_path / "out/run/metrics.jsonl")] == [1, 2, 3]
    assert not (tmp_path / "out/manifest.json").exists()


def test_going_back_on_purpose_is_not_told_as_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path / "out")
    config = StageConfig(train=TRAIN)
    with Run(tmp_path / "out", made_by="llmtest run", config=config, resume="4") as run, run.session(small(), TRAIN):
        pass
    told = capsys.readouterr().err
    assert "gone back from step 6: what came after step 4 is done again" in told and "failed" not in told


def test_a_damaged_newest_checkpoint_names_the_last_good_one(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        train(tmp_path, stop_after=4)
    weights = tmp_path / "run/checkpoints/step-00000004/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    before = files(tmp_path)
    with pytest.raises(ArtifactError, match=r"step-00000004.*damaged(.|\n)*--resume 2"):
        train(tmp_path)
    assert files(tmp_path) == before
    assert train(tmp_path, resume="2").files == train(tmp_path.with_name("whole")).files


def test_a_damaged_identity_is_named(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        train(tmp_path, stop_after=2)
    (tmp_path / "run/run.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"run\.json is not the description of a run"):
        open_run(tmp_path)


def test_leftovers_of_a_killed_process_are_removed_at_the_next_start(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        train(tmp_path, stop_after=2)
    for folder in (tmp_path, tmp_path / "run", tmp_path / "run/checkpoints"):
        (folder / ".tmp-step-00000003-77").mkdir()
        (folder / ".tmp-step-00000003-77" / "model.safetensors").write_bytes(b"half")
    train(tmp_path)
    assert not list(tmp_path.rglob(".tmp-*"))


def test_a_second_process_is_told_who_holds_the_folder(tmp_path: Path) -> None:
    with open_run(tmp_path), pytest.raises(LLMError, match=rf"in use by process {os.getpid()} on"):
        open_run(tmp_path)
    open_run(tmp_path).close()


def hold_and_die(out: Path) -> None:
    open_run(out)
    os._exit(9)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_death_releases_the_folder(tmp_path: Path) -> None:
    child = multiprocessing.get_context("fork").Process(target=hold_and_die, args=(tmp_path,))
    child.start()
    child.join(30)
    assert child.exitcode == 9
    open_run(tmp_path).close()


def test_an_error_lets_go_of_the_folder(tmp_path: Path) -> None:
    def bad(step: int) -> list[Tensor]:
        raise ZeroDivisionError

    run = open_run(tmp_path)
    with pytest.raises(ZeroDivisionError):
        fit(small(), FromFunction(bad), loss_fn, TRAIN, run)
    assert train(tmp_path).counts["steps"] == 6


def test_retention_keeps_the_newest(tmp_path: Path) -> None:
    train(tmp_path, save_every=1, keep=3)
    kept = sorted(p.name for p in (tmp_path / "run/checkpoints").iterdir())
    assert kept == ["step-00000004", "step-00000005", "step-00000006"]


def test_json_is_metrics_lines_then_the_manifest_on_stdout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = train(tmp_path, json=True)
    out, err = capsys.readouterr()
    printed = [json.loads(line) for line in out.splitlines()]
    assert [row["step"] for row in printed[:-1] if "loss" in row] == [1, 2, 3, 4, 5, 6]
    assert printed[-1] == manifest.model_dump(mode="json")
    assert err == ""


def test_a_run_folder_can_be_moved(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        train(tmp_path / "here", stop_after=3)
    (tmp_path / "here").rename(tmp_path / "there")
    assert train(tmp_path / "there").files == train(tmp_path / "whole").files


def test_a_changed_machine_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Stopped):
        train(tmp_path, stop_after=2)
    path = tmp_path / "run/run.json"
    document = json.loads(path.read_text())
    document["environment"]["torch"] = "1.0"
    path.write_text(json.dumps(document))
    config = StageConfig()
    with Run(tmp_path, made_by="llmtest run", config=config) as run:
        fit(small(), FromFunction(batches), loss_fn, config.train, run)
    assert f"warning: torch is {torch.__version__!r}, the run started with '1.0'" in capsys.readouterr().err
