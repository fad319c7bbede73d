"""The one loop: exact accumulation, nothing bad is learnt, and a resumed run equals an uninterrupted one to the bit."""

import contextlib
import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from llmcore.errors import TrainingError
from llmcore.losses import Batch, Loss, next_token_loss
from llmcore.model.config import ModelConfig
from llmcore.model.transformer import Transformer
from llmcore.train.config import TrainConfig
from llmcore.train.diverged import NotFiniteError
from llmcore.train.loop import fit, train_step
from llmcore.train.metrics import read_metrics
from llmcore.train.optim import AdamW
from llmcore.train.retention import snapshot_paths
from llmcore.train.run import Run
from llmcore.train.signals import Stopped
from llmcore.train.source import FromFunction, SourceState

STEPS = 7
ROWS = 11  # an epoch ends inside the run: 4 rows a step
pytestmark = pytest.mark.usefixtures("one_thread")
forking = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


class Rows:
    """Shuffled rows of random length in two uneven micro-batches: a function of (seed, step), across epochs."""

    def steps_from(self, start: int, state: SourceState | None) -> Iterator[Sequence[Batch]]:
        assert state is None
        step = start
        while True:
            yield [self.batch(step, part) for part in (slice(0, 3), slice(3, 4))]
            step += 1

    def batch(self, step: int, part: slice) -> Batch:
        numbers = [divmod(4 * step + row, ROWS) for row in range(4)][part]
        rows = [torch.randperm(ROWS, generator=seeded(epoch))[place].item() for epoch, place in numbers]
        ids = torch.stack([torch.randint(0, 13, (9,), generator=seeded(int(row))) for row in rows])
        mask = torch.arange(9) < torch.tensor([[3 + int(row) % 6] for row in rows])
        mask[:, 0] = False
        return Batch(ids, mask)

    def state(self) -> SourceState | None:
        return None


class Remembering(Rows):
    """A source whose batches depend on all steps before: what it needs to go on is in its state."""

    def __init__(self) -> None:
        self.moving, self.total = torch.zeros(13), 0

    def steps_from(self, start: int, state: SourceState | None) -> Iterator[Sequence[Batch]]:
        if state is not None:
            self.moving = state.tensors["moving"].clone()
            self.total = int(str(state.values["total"]))
        for batches in super().steps_from(start, None):
            counts = torch.bincount(batches[0].ids.flatten(), minlength=13).float()
            self.moving = 0.9 * self.moving + 0.1 * counts
            self.total += int(self.moving.argmax())
            yield [batch._replace(ids=(batch.ids + self.total) % 13) for batch in batches]

    def state(self) -> SourceState:
        return SourceState({"moving": self.moving}, {"total": self.total})


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tiny(**settings: Any) -> Transformer:
    return ModelConfig(vocab_size=13, width=16, depth=1, context=9, **{"dropout": 0.2, **settings}).build(seed=0)


def settings(**changes: Any) -> TrainConfig:
    base = TrainConfig(
        steps=STEPS,
        batch=4,
        micro_batch=3,
        lr=0.02,
        device="cpu",
        dtype="fp32",
        log_every=1,
        save_every=3,
        eval_every=2,
    )
    return base.model_copy(update=changes)


def evaluate(model: nn.Module) -> dict[str, float]:
    assert not model.training
    assert not torch.is_grad_enabled()
    assert isinstance(model, Transformer)
    loss = next_token_loss(model, Rows().batch(999, slice(0, 4)))
    return {"loss": float(loss.total) / loss.count}


def train(
    out: Path,
    config: TrainConfig | None = None,
    *,
    source: Rows | None = None,
    loss_fn: Callable[[Any, Any], Loss] = next_token_loss,
    evaluation: Callable[[nn.Module], dict[str, float]] = evaluate,
    quiet: bool = True,
) -> None:
    """What a stage does, whole."""
    config = config or settings()
    model = tiny()
    with Run(out, made_by="test", config=config, quiet=quiet) as run:
        fit(model, source or Rows(), loss_fn, config, run, evaluate=evaluation)
        run.finish(model)


def history(out: Path) -> list[dict[str, Any]]:
    """Every line of metrics without what is measured in time."""
    rows = read_metrics(out / "run/metrics.jsonl")
    return [{n: v for n, v in row.items() if n not in ("seconds", "tokens_per_s")} for row in rows]


def assert_same_run(out: Path, whole: Path) -> None:
    assert history(out) == history(whole)
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    last = f"run/checkpoints/step-{STEPS:08d}"
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (out / last / name).read_bytes() == (whole / last / name).read_bytes()
    assert not list(out.rglob(".tmp-*"))


# Accumulation


def test_micro_batches_of_unequal_counts_equal_one_big_batch() -> None:
    whole, parts = (tiny(dropout=0.0).double() for _ in range(2))
    whole.activation_dtype = parts.activation_dtype = torch.float64
    source = Rows()
    big, small = source.batch(2, slice(0, 4)), [source.batch(2, part) for part in (slice(0, 1), slice(1, 4))]
    assert small[0].targets != small[1].targets
    results = [
        train_step(model, AdamW().build(model, 0.01), batches, next_token_loss, clip=0.5)
        for model, batches in ((whole, [big]), (parts, small))
    ]
    assert results[0].loss == pytest.approx(results[1].loss, rel=1e-6)
    assert results[0].grad_norm == pytest.approx(results[1].grad_norm, rel=1e-6)
    assert results[0].items == results[1].items == big.targets
    assert results[0].metrics == results[1].metrics
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.allclose(one.grad, other.grad, rtol=1e-9, atol=1e-12)


def test_the_update_follows_the_gradient_of_the_mean_clipped() -> None:
    for clip in (1e9, 0.05):
        model, reference = nn.Linear(3, 1), nn.Linear(3, 1)
        reference.load_state_dict(model.state_dict())
        data = torch.randn(6, 3, generator=seeded(1))
        result = train_step(model, AdamW().build(model, 0.1), [data[:1], data[1:]], squares, clip=clip)
        loss = reference(data).square().mean()
        torch.autograd.backward(loss)
        norm = torch.nn.utils.clip_grad_norm_(reference.parameters(), clip)
        assert result.loss == pytest.approx(float(loss.detach()), rel=1e-5)
        assert result.grad_norm == pytest.approx(float(norm), rel=1e-5)
        assert model.weight.grad is not None
        assert reference.weight.grad is not None
        assert torch.allclose(model.weight.grad, reference.weight.grad, rtol=1e-4)


def squares(model: nn.Module, x: Tensor) -> Loss:
    return Loss(model(x).square().sum(), len(x))


class Balanced(nn.Module):
    """A layer that reports a loss of its own, as a mixture of experts does."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 1)
        self.aux_loss: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.aux_loss = 0.3 * self.inner.weight.square().sum()
        scores: Tensor = self.inner(x)
        return scores


def test_a_loss_that_layers_report_enters_once_per_step_and_is_taken_away() -> None:
    model, reference = Balanced(), Balanced()
    reference.load_state_dict(model.state_dict())
    data = torch.randn(5, 3, generator=seeded(1))
    result = train_step(model, AdamW().build(model, 0.1), [data[:2], data[2:]], squares, clip=1e9)
    loss = reference(data).square().mean() + reference.aux_loss
    torch.autograd.backward(loss)
    assert model.aux_loss is None
    assert reference.aux_loss is not None
    assert result.metrics["aux_loss"] == pytest.approx(float(reference.aux_loss.detach()), rel=1e-5)
    assert model.inner.weight.grad is not None
    assert reference.inner.weight.grad is not None
    assert torch.allclose(model.inner.weight.grad, reference.inner.weight.grad, rtol=1e-4)


def test_metrics_are_means_over_all_items_of_the_step() -> None:
    def loss_fn(model: nn.Module, x: Tensor) -> Loss:
        return squares(model, x)._replace(metrics={"first": (float(x[:, 0].sum()), len(x)), "none": (0.0, 0)})

    model, data = nn.Linear(3, 1), torch.randn(5, 3, generator=seeded(1))
    result = train_step(model, AdamW().build(model, 0.1), [data[:1], data[1:]], loss_fn, clip=1.0)
    assert result.metrics == {"first": pytest.approx(float(data[:, 0].mean()), rel=1e-5)}
    assert result.tokens == 5


# What must not be learnt


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_changes_no_weight(bad: float) -> None:
    model = nn.Linear(3, 1)
    before = [weight.detach().clone() for weight in model.parameters()]
    data = torch.ones(4, 3)
    data[2, 1] = bad
    with pytest.raises(NotFiniteError, match="the loss of micro-batch 1 is"):
        train_step(model, AdamW().build(model, 0.1), [data[:2], data[2:]], squares, clip=1.0)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_gradient_that_is_not_finite_changes_no_weight() -> None:
    def root(model: nn.Module, x: Tensor) -> Loss:
        return Loss((model(x) * 0).abs().sqrt().sum(), len(x))  # 0, with an infinite slope

    model = nn.Linear(3, 1)
    before = [weight.detach().clone() for weight in model.parameters()]
    with pytest.raises(NotFiniteError, match="the gradient's norm is nan"):
        train_step(model, AdamW().build(model, 0.1), [torch.ones(2, 3)], root, clip=1.0)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_diverged_run_names_the_step_keeps_its_batches_and_goes_on_once_mended(tmp_path: Path) -> None:
    calls = 0

    def explode(model: Transformer, batch: Batch) -> Loss:
        nonlocal calls
        calls += 1
        loss = next_token_loss(model, batch)
        return loss._replace(total=loss.total * (math.nan if calls == 10 else 1.0))  # step 5, micro-batch 1

    with pytest.raises(TrainingError) as caught:
        train(tmp_path / "out", loss_fn=explode)
    told = str(caught.value)
    for expected in (
        "micro-batch 1 is nan",
        "step 5",
        "lr 0.00",
        "seed 0",
        "llmcore replay",
        "done again was finite",
        "lower train.lr",
    ):
        assert expected in told
    dump = tmp_path / "out/run/nan-dump/step-5"
    assert torch.equal(load_file(dump / "batches.safetensors")["1/ids"], Rows().batch(4, slice(3, 4)).ids)
    assert json.loads((dump / "step.json").read_text())["losses"][1] == "nan"
    assert list(snapshot_paths(tmp_path / "out/run/checkpoints")) == [3]
    train(tmp_path / "out")
    train(tmp_path / "whole")
    assert_same_run(tmp_path / "out", tmp_path / "whole")


def test_a_step_without_a_single_target_is_an_error_not_a_loss_of_zero(tmp_path: Path) -> None:
    empty = Batch(torch.ones(2, 5, dtype=torch.long), torch.zeros(2, 5, dtype=torch.bool))
    with (
        Run(tmp_path, made_by="test", config=settings(), quiet=True) as run,
        pytest.raises(TrainingError, match="step 1: no item of this step counts"),
    ):
        fit(tiny(), FromFunction(lambda _: [empty]), next_token_loss, settings(), run)


def test_not_enough_memory_is_one_sentence_with_what_helps(tmp_path: Path) -> None:
    def greedy(model: nn.Module, batch: Batch) -> Loss:
        torch.empty(1 << 60)
        raise AssertionError

    with pytest.raises(TrainingError, match=r"not enough memory for step 1 \(3 rows at a time\)(.|\n)*micro_batch"):
        train(tmp_path, loss_fn=greedy)


def test_not_enough_memory_in_an_evaluation_names_what_helps_there(tmp_path: Path) -> None:
    def greedy(model: nn.Module) -> dict[str, float]:
        return {"loss": float(torch.empty(1 << 60).sum())}

    with pytest.raises(
        TrainingError, match=r"not enough memory for the evaluation after step 2: (.|\n)*model\.context"
    ):
        train(tmp_path, evaluation=greedy)
    assert not (tmp_path / "run" / "defects.log").exists()


def test_a_defect_leaves_its_traceback_in_the_run(tmp_path: Path) -> None:
    def wrong(model: nn.Module) -> dict[str, float]:
        return {"loss": 1 / 0}

    with pytest.raises(ZeroDivisionError) as caught:
        train(tmp_path, evaluation=wrong)
    log = tmp_path / "run" / "defects.log"
    assert log.read_text().startswith("after step 2, in process 0:\nTraceback")
    assert "in wrong" in log.read_text() and "ZeroDivisionError: division by zero" in log.read_text()
    assert caught.value.__notes__ == [f"This is also in {log}."]
    with pytest.raises(ZeroDivisionError):
        train(tmp_path, evaluation=wrong)
    assert log.read_text().count("Traceback") == 2


# Going on


@pytest.mark.parametrize(
    ("stops", "dtype"), [([0, 1], "fp32"), ([3], "fp32"), ([2, 4, 6], "fp32"), ([2, 4, 6], "bf16"), ([7], "fp32")]
)
def test_a_run_that_stops_and_goes_on_equals_an_uninterrupted_one(tmp_path: Path, stops: list[int], dtype: str) -> None:
    train(tmp_path / "whole", settings(dtype=dtype))
    for stop in stops:
        with pytest.raises(Stopped) if stop < STEPS else contextlib.nullcontext() as caught:
            train(tmp_path / "out", settings(dtype=dtype, stop_after=stop))
        assert caught is None or caught.value.code == 0
    train(tmp_path / "out", settings(dtype=dtype))
    assert_same_run(tmp_path / "out", tmp_path / "whole")
    assert [row["step"] for row in history(tmp_path / "out")] == list(range(1, STEPS + 1))


def test_a_source_with_a_memory_goes_on_with_it(tmp_path: Path) -> None:
    train(tmp_path / "whole", source=Remembering())
    for stop in (2, 5):
        with pytest.raises(Stopped):
            train(tmp_path / "out", settings(stop_after=stop), source=Remembering())
    train(tmp_path / "out", source=Remembering())
    assert_same_run(tmp_path / "out", tmp_path / "whole")
    train(tmp_path / "plain")
    assert history(tmp_path / "plain") != history(tmp_path / "whole")


def test_other_seeds_give_other_runs_and_the_same_seed_the_same(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(tmp_path / name, settings(seed=seed))
        torch.manual_seed(12345)  # what happened before in the process does not matter
    assert_same_run(tmp_path / "a", tmp_path / "b")
    assert history(tmp_path / "a") != history(tmp_path / "c")


def in_child(work: Callable[[], None]) -> int:
    """Exit status of a forked process: negative is the signal that killed it."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            work()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killing_at(step: int) -> Callable[[Any, Any], Loss]:
    """A loss that kills its process in the second micro-batch of a step."""
    calls = 0

    def loss_fn(model: Transformer, batch: Batch) -> Loss:
        nonlocal calls
        calls += 1
        if calls == 2 * step:
            os.kill(os.getpid(), signal.SIGKILL)
        return next_token_loss(model, batch)

    return loss_fn


@forking
def test_the_next_start_tells_of_a_silent_death_and_of_what_was_never_completed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert in_child(partial(train, out, loss_fn=killing_at(5), quiet=False)) == -signal.SIGKILL
    (out / "run/checkpoints/.tmp-step-00000004-77").mkdir()
    (out / "run/checkpoints/.tmp-del-step-00000001-77").mkdir()
    capfd.readouterr()
    train(out, quiet=False)
    told = capfd.readouterr().err
    for expected in (
        "resumed from step 3",
        "ended without a word at step 4 or later, perhaps for memory: it goes on after step 3",
        "removed what was never completed: step-00000004\n",
    ):
        assert expected in told
    assert "the last start (process " in told
    train(out, quiet=False)
    assert "ended without a word" not in capfd.readouterr().err


def test_a_start_that_failed_is_told_as_one_that_failed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def explode(model: Transformer, batch: Batch) -> Loss:
        raise ValueError("a defect")

    with pytest.raises(ValueError, match="a defect"):
        train(tmp_path, loss_fn=explode)
    train(tmp_path, quiet=False)
    assert "ended without a word" not in capfd.readouterr().err


@forking
def test_three_kills_lose_nothing_that_was_saved(tmp_path: Path) -> None:
    train(tmp_path / "whole")
    for calls, saved in ((1, []), (5, [3]), (4, [3, 6])):
        status = in_child(partial(train, tmp_path / "out", loss_fn=killing_at(calls)))
        assert status == -signal.SIGKILL
        assert list(snapshot_paths(tmp_path / "out/run/checkpoints")) == saved
    train(tmp_path / "out")
    assert_same_run(tmp_path / "out", tmp_path / "whole")


@forking
def test_a_kill_at_any_file_operation_of_a_save_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tmp_path / "whole", settings(save_every=1, steps=STEPS))
    real = os.fsync
    statuses = set()
    for number in range(1, 90, 8):
        calls = 0

        def killing(descriptor: int, last: int = number) -> None:
            nonlocal calls
            calls += 1
            if calls == last:
                os.kill(os.getpid(), signal.SIGKILL)
            real(descriptor)

        monkeypatch.setattr(os, "fsync", killing)
        statuses.add(in_child(lambda: train(tmp_path / "out", settings(save_every=1))))
        monkeypatch.setattr(os, "fsync", real)
    assert -signal.SIGKILL in statuses
    train(tmp_path / "out", settings(save_every=1))
    assert_same_run(tmp_path / "out", tmp_path / "whole")


@forking
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_step_saves_and_exits_with_its_code(tmp_path: Path, number: int, code: int) -> None:
    def signalling(model: Transformer, batch: Batch) -> Loss:
        os.kill(os.getpid(), number)  # in each micro-batch, but a second SIGINT would end the step
        return next_token_loss(model, batch)

    def once() -> Callable[[Any, Any], Loss]:
        sent = iter([signalling])
        return lambda model, batch: next(sent, next_token_loss)(model, batch)

    train(tmp_path / "whole")
    assert in_child(lambda: train(tmp_path / "out", loss_fn=once())) == code
    assert list(snapshot_paths(tmp_path / "out/run/checkpoints")) == [1]
    train(tmp_path / "out")
    assert_same_run(tmp_path / "out", tmp_path / "whole")


@forking
def test_a_second_interrupt_ends_the_process_at_once(tmp_path: Path) -> None:
    def twice(model: Transformer, batch: Batch) -> Loss:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
        raise AssertionError("still there")

    assert in_child(lambda: train(tmp_path / "out", loss_fn=twice)) == 130
    assert list(snapshot_paths(tmp_path / "out/run/checkpoints")) == []
    train(tmp_path / "out")


@forking
@pytest.mark.parametrize("number", [1, 4])
def test_a_signal_ends_an_evaluation_which_is_made_up_for_later(number: int, tmp_path: Path) -> None:
    """Also that of the last step, without which the run is not finished."""
    calls = iter(range(1, 9))

    def slow(model: nn.Module) -> dict[str, float]:
        if next(calls) < number:
            return evaluate(model)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
        return {}

    train(tmp_path / "whole")
    began = time.monotonic()
    assert in_child(lambda: train(tmp_path / "out", evaluation=slow)) == 143
    assert time.monotonic() - began < 10
    evaluated = [row["step"] for row in history(tmp_path / "out") if "val_loss" in row]
    assert evaluated == [2, 4, 6][: number - 1]
    assert not (tmp_path / "out/manifest.json").exists()
    train(tmp_path / "out")
    assert_same_run(tmp_path / "out", tmp_path / "whole")


def test_handlers_are_given_back(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    train(tmp_path)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


# What is measured


def test_every_line_of_metrics_tells_loss_rate_norm_and_tokens(tmp_path: Path) -> None:
    train(tmp_path)
    rows = read_metrics(tmp_path / "run/metrics.jsonl")
    factor = settings().schedule.build(STEPS)
    for index, row in enumerate(rows):
        assert row["step"] == index + 1
        assert row["lr"] == 0.02 * factor(index)
        assert row["tokens"] == 36 * (index + 1)
        assert row["grad_norm"] > 0
        assert 0 <= row["accuracy"] <= 1
        assert row["tokens_per_s"] > 0
    assert [row["step"] for row in rows if "val_loss" in row] == [2, 4, 6, 7]


def test_the_first_and_last_step_are_logged_whatever_the_interval(tmp_path: Path) -> None:
    train(tmp_path, settings(log_every=5, eval_every=100))
    assert [row["step"] for row in history(tmp_path)] == [1, 5, 7]
    assert [row["step"] for row in history(tmp_path) if "val_loss" in row] == [7]


def test_training_learns(tmp_path: Path) -> None:
    config = settings(steps=60, log_every=20, eval_every=100, save_every=100)
    train(tmp_path, config)
    rows = history(tmp_path)
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]
