"""What is shown of a run beside its metrics: curves, histograms, samples and traces; none of it changes the run."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from llmcore.checkpoint import load_checkpoint
from llmcore.errors import ConfigError, ExtensionError
from llmcore.losses import Batch, next_token_loss
from llmcore.manifest import Manifest
from llmcore.model.config import ModelConfig
from llmcore.model.transformer import Transformer
from llmcore.tokenizer import Tokenizer
from llmcore.train.config import TrainConfig
from llmcore.train.loop import fit
from llmcore.train.metrics import read_metrics
from llmcore.train.run import Run
from llmcore.train.samples import Prompting, Sampler
from llmcore.train.signals import Stopped
from llmcore.train.source import FromFunction
from llmcore.train.utilization import matmul_peak

TOKENIZER = Tokenizer.byte_level()
IDS = torch.tensor([TOKENIZER.encode("to be or not to be")[:12]] * 2)
BATCH = Batch(IDS, torch.ones_like(IDS, dtype=torch.bool).index_fill(1, torch.tensor([0]), False))


def settings(**changes: Any) -> TrainConfig:
    plain = {"steps": 6, "batch": 2, "device": "cpu", "dtype": "fp32", "log_every": 1, "save_every": 2, "eval_every": 3}
    return TrainConfig.model_validate({**plain, **changes})


def model(context: int = 12) -> Transformer:
    config = ModelConfig(width=16, depth=1, context=context, dropout=0.1)
    return config.with_vocabulary(TOKENIZER.vocab_size).build(seed=0)


def train(out: Path, *, prompting: bool = True, quiet: bool = True, context: int = 12, **changes: Any) -> Manifest:
    config, policy = settings(**changes), model(context)
    asked = Prompting(["to be "], TOKENIZER.encode) if prompting else None
    with Run(out, made_by="t", config=config, tokenizer=TOKENIZER, quiet=quiet, prompting=asked) as run:
        fit(policy, FromFunction(lambda _: [BATCH]), next_token_loss, config, run, evaluate=lambda _: {"loss": 1.0})
        return run.finish(policy)


def events(out: Path, reader: str = "event_accumulator") -> Any:
    """What a reader of TensorBoard's own sees; the one with `plugin` is that of its web page."""
    accumulators = pytest.importorskip(f"tensorboard.backend.event_processing.{reader}")
    loaded = accumulators.EventAccumulator(str(out / "run/tensorboard"), size_guidance={"histograms": 0, "tensors": 0})
    loaded.Reload()
    return loaded


def test_tensorboard_shows_each_step_of_a_resumed_run_once(tmp_path: Path) -> None:
    shown = {"histogram_every": 2, "sample_every": 3, "sample_tokens": 3}
    for stop in (3, 5):
        with pytest.raises(Stopped):
            train(tmp_path, stop_after=stop, **shown)
        train_again_from(tmp_path, step=2)
    train(tmp_path, **shown)
    found = events(tmp_path)
    assert [event.step for event in found.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]
    assert [event.step for event in found.Scalars("val/loss")] == [3, 6]
    bars = found.Histograms("gradients/embedding.weight")
    assert [event.step for event in bars] == [2, 4, 6]
    assert sum(bars[0].histogram_value.bucket) == TOKENIZER.vocab_size * 16
    assert {"weights/embedding.weight", "weights/final_norm.weight"} <= set(found.Tags()["histograms"])
    texts = events(tmp_path, "plugin_event_accumulator").Tensors("samples/0")
    assert [event.step for event in texts] == [3, 6]
    assert texts[0].tensor_proto.string_val[0].startswith(b"**to be **")
    values = {event.step: event.value for event in found.Scalars("train/loss")}
    assert all(
        row["loss"] == pytest.approx(values[row["step"]]) for row in read_metrics(tmp_path / "run/metrics.jsonl")
    )


def train_again_from(out: Path, *, step: int) -> None:
    """Take the later checkpoints away, as if the process had been killed before it saved them."""
    for path in (out / "run/checkpoints").iterdir():
        if int(path.name.removeprefix("step-")) > step:
            for file in path.iterdir():
                file.unlink()
            path.rmdir()


def test_nothing_that_is_shown_changes_the_run(tmp_path: Path) -> None:
    plain = train(tmp_path / "plain", watch=[])
    shown = train(
        tmp_path / "shown", histogram_every=1, sample_every=1, sample_tokens=4, mfu=True, profile="2..3", keep_best=2
    )
    assert shown.files["model.safetensors"] == plain.files["model.safetensors"]
    assert not (tmp_path / "plain/run/tensorboard").exists()


def test_samples_are_seeded_and_cut_where_a_run_goes_on(tmp_path: Path) -> None:
    asked = {"sample_every": 2, "sample_prompts": ["to", "or not"], "sample_tokens": 4}
    train(tmp_path / "whole", **asked)
    with pytest.raises(Stopped):
        train(tmp_path / "out", stop_after=5, **asked)
    train_again_from(tmp_path / "out", step=2)
    train(tmp_path / "out", **asked)
    lines = (tmp_path / "out/run/samples.jsonl").read_text()
    assert lines == (tmp_path / "whole/run/samples.jsonl").read_text()
    rows = [json.loads(line) for line in lines.splitlines()]
    assert [(row["step"], row["prompt"]) for row in rows] == [(s, p) for s in (2, 4, 6) for p in ("to", "or not")]


def test_samples_are_those_of_the_average_where_there_is_one(tmp_path: Path) -> None:
    asked = {"sample_every": 6, "sample_tokens": 40, "ema": 0.99, "lr": 0.03}
    train(tmp_path / "out", context=48, **asked)
    train(tmp_path / "last", context=48, **{**asked, "ema": None})
    (said,) = (json.loads(line)["text"] for line in (tmp_path / "out/run/samples.jsonl").read_text().splitlines())
    (other,) = (json.loads(line)["text"] for line in (tmp_path / "last/run/samples.jsonl").read_text().splitlines())
    sampler = Sampler(tmp_path / "again", Prompting(["to be "], TOKENIZER.encode), TOKENIZER, settings(**asked))
    ((_, again),) = sampler.sample(load_checkpoint(tmp_path / "out").model, 6)
    assert said == again != other


def test_what_is_shown_may_change_when_a_run_goes_on(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole")
    with pytest.raises(Stopped):
        train(tmp_path / "out", stop_after=3)
    went_on = train(
        tmp_path / "out", watch=[], histogram_every=1, sample_every=1, sample_tokens=4, mfu=True, profile="5..5"
    )
    assert went_on.files["model.safetensors"] == whole.files["model.safetensors"]
    assert list((tmp_path / "out/run/profile").glob("steps-5-5.json"))


def test_samples_of_a_stage_that_has_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="train.sample_every is 2, and this stage has no samples"):
        train(tmp_path, prompting=False, sample_every=2)


def test_a_profile_is_a_trace_and_a_table_of_the_steps_asked_for(tmp_path: Path) -> None:
    train(tmp_path, profile="3..4")
    assert sorted(path.name for path in (tmp_path / "run/profile").iterdir()) == ["steps-3-4.json", "steps-3-4.txt"]
    trace = json.loads((tmp_path / "run/profile/steps-3-4.json").read_text())
    names = [event["name"] for event in trace["traceEvents"] if event.get("cat") == "cpu_op"]
    updates = [name for name in names if name == "aten::embedding" or "adam" in name.lower()]
    assert updates, "no operator of a step was traced"
    assert "aten::mm" in (tmp_path / "run/profile/steps-3-4.txt").read_text()


def test_a_profile_that_a_stop_cuts_short_is_written(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        train(tmp_path, profile="2..9", stop_after=3)
    assert (tmp_path / "run/profile/steps-2-3.json").exists()


@pytest.mark.parametrize("profile", ["5", "5..", "5..4", "a..b"])
def test_steps_to_profile_are_a_range(profile: str) -> None:
    with pytest.raises(ValueError, match="profile"):
        settings(profile=profile)


def test_utilization_is_a_share_of_the_measured_peak(tmp_path: Path) -> None:
    train(tmp_path, mfu=True)
    rows = read_metrics(tmp_path / "run/metrics.jsonl")
    assert all(0 < row["mfu"] < 1 and row["memory_gib"] > 0.01 for row in rows)
    assert matmul_peak(torch.device("cpu"), torch.float32) > 1e8


def test_a_watcher_that_is_not_installed_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.delitem(sys.modules, "llmcore.train.wandb", raising=False)
    with pytest.raises(ExtensionError, match=r"names wandb, which is not installed(.|\n)*llmcore\[wandb\]"):
        train(tmp_path, watch=["wandb"])
    with pytest.raises((ConfigError, ExtensionError), match="wandbb"):
        settings(watch=["wandbb"])


def test_a_default_watcher_that_is_not_installed_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
    monkeypatch.delitem(sys.modules, "llmcore.train.tensorboard", raising=False)
    train(tmp_path, quiet=False)
    assert "llmcore[tb]" in capsys.readouterr().err
    assert not (tmp_path / "run/tensorboard").exists()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::UserWarning")
def test_weights_and_biases_works_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    train(tmp_path, watch=["wandb"], histogram_every=3, sample_every=3, sample_tokens=3)
    written = list((tmp_path / "run/wandb").glob("offline-run-*/run-*.wandb"))
    assert len(written) == 1 and written[0].stat().st_size > 1000
