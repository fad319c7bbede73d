"""One process's part of a run: from where it stopped to the last step, or to a signal.

Holds what `fit` changes from step to step, and tells it: to metrics.jsonl, to TensorBoard, to a person, and to the
resumable checkpoints.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

import torch
from torch import nn

from llmcore.errors import TrainingError
from llmcore.train.config import TrainConfig
from llmcore.train.describe import start_facts
from llmcore.train.device import environment, place
from llmcore.train.diverged import NotFiniteError, diverged
from llmcore.train.memory import memory_advice, peak_bytes
from llmcore.train.metrics import MetricsFile, open_tensorboard
from llmcore.train.seeds import step_seed
from llmcore.train.signals import Interruption, Stopped, StopRequest
from llmcore.train.snapshot import (
    Progress,
    Snapshot,
    model_state,
    optimizer_state,
    prune,
    restore_model,
    restore_optimizer,
    save_snapshot,
)
from llmcore.train.source import SourceState

if TYPE_CHECKING:
    from llmcore.train.loop import StepResult
    from llmcore.train.run import Run

STANDARD = frozenset({"step", "loss", "lr", "grad_norm", "tokens", "tokens_per_s", "seconds"})
"""What every line of metrics has; a loss cannot give these names to figures of its own."""

WINDOW = 20
"""Steps over which tokens per second are taken."""


class Session:
    """What `fit` holds while it trains; a `with` block that always leaves the folder resumable."""

    def __init__(self, run: Run, model: nn.Module, config: TrainConfig) -> None:
        self.run, self.model, self.config = run, model, config
        self.placement = run.resolve(config)
        self.device = self.placement.device
        self.stop = StopRequest()
        self.snapshot = run.load()
        self.progress = self.snapshot.progress if self.snapshot else Progress()
        self.saved_step = self.progress.step if self.snapshot else None
        self.source_state = self.snapshot.source if self.snapshot else None
        self.recent: deque[tuple[int, float]] = deque(maxlen=WINDOW)

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.progress.step

    def __enter__(self) -> Session:
        with contextlib.ExitStack() as opening:
            opening.callback(self.run.close)
            place(self.model, self.placement)
            self.run.begin(environment(self.placement))
            self.metrics = MetricsFile(self.run.metrics_path, start=self.step)
            opening.callback(self.metrics.close)
            self.events = open_tensorboard(self.run.folder / "tensorboard", start=self.step)
            self.tell_start()
            self.model.train()
            opening.enter_context(self.stop)
            opening.pop_all()
        return self

    def tell_start(self) -> None:
        """Say what is about to happen, and what happened before."""
        run = self.run
        facts = start_facts(self.model, self.config, self.placement, out=run.out, facts=run.facts)
        run.view.start(f"{run.made_by} · {run.out.name}", facts)
        if self.snapshot:
            run.view.say(f"resumed from step {self.step}")
        if self.metrics.abandoned is not None:
            run.view.say(
                f"the last start reached step {self.metrics.abandoned} and ended without saving it "
                "(killed, perhaps for memory, or an error): what came after step "
                f"{self.step} is done again"
            )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.ExitStack() as closing:
            if error is not None:
                closing.callback(self.run.close)
            closing.callback(self.metrics.close)
            if self.events is not None:
                closing.callback(self.events.close)
            closing.callback(self.run.view.pause)
            closing.callback(self.stop.__exit__)
            self.model.eval()

    def restore(self, optimizer: torch.optim.Optimizer) -> None:
        """Give model and optimizer what the snapshot holds, if the run goes on from one."""
        if self.snapshot is not None:
            path = self.run.snapshot_path(self.step)
            restore_model(self.model, self.snapshot.model, path)
            restore_optimizer(self.model, optimizer, self.snapshot.optimizer, path)
            self.snapshot = None
        self.run.view.begin(step=self.step, steps=self.config.steps)

    def goes_on(self) -> bool:
        """Whether another step is to be taken; starts its clock."""
        self.started_at = time.perf_counter()
        return self.step < self.last_step() and self.stop.code is None

    def last_step(self) -> int:
        """Where this process ends."""
        early = self.config.stop_after
        return self.config.steps if early is None else min(early, self.config.steps)

    @contextlib.contextmanager
    def step_guard(self, micro_batches: Sequence[object], *, lr: float) -> Iterator[None]:
        """Say what happened when a step cannot be taken."""
        facts = {
            "step": self.step + 1,
            "lr": f"{lr:.3g}",
            "seed": self.config.seed,
            "dtype": str(self.placement.dtype).removeprefix("torch."),
        }
        try:
            with memory_advice(f"step {self.step + 1} ({self.config.rows} rows at a time)"):
                yield
        except NotFiniteError as error:
            raise diverged(
                error, self.run.folder / "nan-dump", model=self.model, micro_batches=micro_batches, facts=facts
            ) from None
        except TrainingError as error:
            raise TrainingError(f"step {self.step + 1}: {error.message}", hint=error.hint) from error

    def advance(self, result: StepResult, *, lr: float) -> None:
        """Count a step that was taken, and tell its figures when they are due."""
        elapsed = time.perf_counter() - self.started_at
        self.recent.append((result.tokens, elapsed))
        done = self.progress
        self.progress = Progress(done.step + 1, done.tokens + result.tokens, done.seconds + elapsed)
        row = {
            "step": self.step,
            "loss": result.loss,
            "lr": lr,
            "grad_norm": result.grad_norm,
            **{name: value for name, value in result.metrics.items() if name not in STANDARD},
            "tokens": self.progress.tokens,
            "tokens_per_s": self.speed(),
            "seconds": round(self.progress.seconds, 3),
        }
        self.run.view.step(row)
        if self.step % self.config.log_every == 0 or self.step in (1, self.config.steps):
            self.record(row)

    def speed(self) -> float:
        """Tokens per second over the last steps, without evaluations and saves."""
        return round(sum(tokens for tokens, _ in self.recent) / (sum(s for _, s in self.recent) or 1e-9), 1)

    def evaluate(self, function: Callable[[], Mapping[str, float]] | None) -> None:
        """Add validation figures to this step's line, unless it has them; a signal puts them off to the next start."""
        if function is None or self.metrics.evaluated(self.step):
            return
        self.model.eval()
        torch.manual_seed(step_seed(self.config.seed, self.step))
        try:
            with self.stop.may_break(), torch.no_grad():
                figures = {f"val_{name}": float(value) for name, value in function().items()}
        except Interruption:
            return
        finally:
            self.model.train()
        self.record({"step": self.step, **figures})

    def record(self, row: Mapping[str, float | int]) -> None:
        """Write one line of metrics wherever it belongs."""
        self.metrics.add(row)
        if self.events is not None:
            self.events.add(row)
        self.run.view.log(row)
        if self.run.json:
            print(json.dumps(row), flush=True)

    def save(self, optimizer: torch.optim.Optimizer, source: SourceState | None) -> None:
        """Make this step one that the run can go on from; it is announced once it is durable."""
        self.metrics.sync()
        snapshot = Snapshot(self.progress, model_state(self.model), optimizer_state(self.model, optimizer), source)
        save_snapshot(self.run.snapshots, snapshot, made_by=self.run.made_by)
        self.saved_step = self.step
        self.run.view.say(f"saved step {self.step}")
        prune(self.run.snapshots, keep=self.config.keep)

    def end(self, optimizer: torch.optim.Optimizer, source_state: Callable[[], SourceState | None]) -> None:
        """Save the last step; leave by SystemExit if it is not the last of the run."""
        if self.saved_step != self.step:
            self.save(optimizer, source_state())
        self.run.note(self.progress, self.metrics.last, peak=peak_bytes(self.device))
        if self.step < self.config.steps:
            self.run.view.pause()
            self.run.view.say(
                f"stopped at step {self.step} of {self.config.steps}: give the same command again to go on"
            )
            raise Stopped(self.stop.code or 0)
