"""One process's part of a run: from where it stopped to the last step, or to a signal.

Holds what `fit` changes from step to step, and makes it resumable. What is told of it is in `reporter`, what its
evaluations decide in `verdicts`, what is said when a step cannot be taken in `failures`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Generic, TypeVar

import torch
from torch import nn

from llmcore.train.artifact import Ending
from llmcore.train.blocks import training_blocks
from llmcore.train.config import TrainConfig
from llmcore.train.defects import note_defect
from llmcore.train.device import environment
from llmcore.train.distributed import ALONE
from llmcore.train.ema import Average
from llmcore.train.failures import step_guard
from llmcore.train.memory import memory_advice, peak_bytes
from llmcore.train.metrics import read_metrics
from llmcore.train.precision import loss_scale
from llmcore.train.rehearsal import LossFunction
from llmcore.train.reporter import Reporter
from llmcore.train.seeds import step_seed
from llmcore.train.signals import Interruption, Stopped, StopRequest
from llmcore.train.snapshot import (
    Progress,
    Snapshot,
    load_snapshot,
    model_state,
    optimizer_state,
    restore_model,
    restore_optimizer,
    save_snapshot,
)
from llmcore.train.source import SourceState
from llmcore.train.verdicts import Verdicts

if TYPE_CHECKING:
    from llmcore.train.loop import StepResult
    from llmcore.train.run import Run

M = TypeVar("M", bound=nn.Module)

EVALUATION_NEEDS = "model.context or model.width, or evaluate in less memory with train.dtype=bf16"


class Session(Generic[M]):
    """What `fit` holds while it trains; a `with` block that always leaves the folder resumable."""

    def __init__(self, run: Run, model: M, config: TrainConfig) -> None:
        self.run, self.model, self.config, self.ranks = run, model, config, run.engine.ranks
        self.placement = run.resolve(config)
        self.snapshot = run.load()
        self.progress = self.snapshot.progress if self.snapshot else Progress()
        self.saved_step = self.progress.step if self.snapshot else None
        self.source_state = self.snapshot.source if self.snapshot else None
        self.scale = loss_scale(
            self.placement.dtype, initial=config.loss_scale, growth_interval=config.loss_scale_window
        )
        self.reporter = Reporter(run, model, config, self.placement, step=self.step)
        self.stop = StopRequest()
        self.put_off = False

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.progress.step

    @property
    def seed(self) -> int:
        """What the noise of the next step is a function of."""
        return step_seed(self.config.seed, self.step, rank=self.ranks.rank)

    def __enter__(self) -> Session[M]:
        with contextlib.ExitStack() as opening:
            opening.push(self.let_go)
            run, config = self.run, self.config
            run.begin(environment(self.placement))
            opening.enter_context(self.reporter)
            self.verdicts = Verdicts(config, self.reporter.metrics, run.snapshots, self.ranks)
            self.reporter.start(resumed=self.snapshot is not None)
            run.engine.place(self.model, self.placement)
            opening.callback(run.engine.close)
            self.tell_compiled = opening.enter_context(training_blocks(self.model, config, say=run.view.say))
            self.model.train()
            opening.callback(self.model.eval)
            opening.callback(lambda: self.reporter.end(self.step))
            opening.enter_context(self.stop)
            self.closing = opening.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.__exit__(kind, error, trace)

    def let_go(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        """Leave the folder to others, if the run does not end here well."""
        if error is not None:
            note_defect(self.run.folder, error, step=self.step, rank=self.ranks.rank)
            self.run.close()

    def begin(self, optimizer: torch.optim.Optimizer) -> None:
        """Give model and optimizer what the snapshot holds, if the run goes on from one."""
        self.optimizer = optimizer
        self.average = Average(optimizer, self.config.ema)
        if self.snapshot is not None:
            self.take_weights(self.snapshot)
            self.scale.restore(self.snapshot.loss_scale)
            self.snapshot = None
        self.run.view.begin(step=self.step, steps=self.config.steps)

    def take_weights(self, snapshot: Snapshot) -> None:
        """Give the model a snapshot's weights, and the optimizer its moments and average."""
        path = self.run.snapshot_path(snapshot.progress.step)
        restore_model(self.model, snapshot.model, path, self.ranks)
        restore_optimizer(self.model, self.optimizer, snapshot.optimizer, path, self.ranks)

    def goes_on(self) -> bool:
        """Whether another step is to be taken, as all ranks agree; starts its clock."""
        self.stop_code = max(self.ranks.gather(self.stop.code or 0))
        more = self.step < self.last_step() and not self.stop_code and self.ends_early() is None
        if more:
            self.reporter.profiling.before(self.step + 1)
        self.started_at = time.perf_counter()
        return more

    def last_step(self) -> int:
        """Where this process ends."""
        early = self.config.stop_after
        return self.config.steps if early is None else min(early, self.config.steps)

    def ends_early(self) -> str | None:
        """Why this step is the last one, if the evaluations say so."""
        return self.verdicts.end_after(self.step, stopping=bool(self.stop_code))

    def step_guard(
        self, source: object, loss_fn: LossFunction, micro_batches: Sequence[object], *, lr: float
    ) -> contextlib.AbstractContextManager[None]:
        """While inside, the next step is taken; what prevents it ends the run with one sentence."""
        return step_guard(self, source, loss_fn, micro_batches, lr=lr)

    def advance(self, result: StepResult, *, lr: float) -> None:
        """Count a step that was taken, and tell what is due."""
        self.average.update(self.step)
        self.tell_compiled()
        elapsed = time.perf_counter() - self.started_at
        done = self.progress
        self.progress = Progress(done.step + 1, done.tokens + result.tokens, done.seconds + elapsed)
        row = self.reporter.step(self.progress, result, lr=lr, elapsed=elapsed)
        if self.step % self.config.log_every == 0 or self.step in (1, self.config.steps):
            self.record(row)
        if self.config.histogram_every and self.step % self.config.histogram_every == 0:
            self.reporter.histograms(self.step)
        if self.config.sample_every and self.due(self.config.sample_every):
            with self.average.applied():
                self.reporter.samples(self.step)

    def record(self, row: Mapping[str, float]) -> None:
        """Tell one line of metrics, and let it be judged."""
        self.reporter.record(row)
        self.verdicts.note(row)

    def due(self, every: int) -> bool:
        """Whether something done every so many steps, and at the last, is to be done after this one."""
        return self.step > 0 and (self.step % every == 0 or self.step == self.config.steps)

    def evaluate(self, function: Callable[[M], Mapping[str, float]] | None) -> None:
        """Add validation figures to this step's line, unless it has them; a signal puts them off to the next start."""
        if function is None or self.verdicts.evaluated(self.step):
            return
        self.model.eval()
        torch.manual_seed(step_seed(self.config.seed, self.step))
        figures: dict[str, float] | None = None
        with (
            memory_advice(f"the evaluation after step {self.step}", lower=EVALUATION_NEEDS),
            self.average.applied(),
            self.run.engine.whole(self.model) as model,
            torch.no_grad(),
            contextlib.suppress(Interruption),
            self.stop.may_break(),
        ):
            figures = {f"val_{name}": float(value) for name, value in function(model).items()}
        self.model.train()
        everyone = self.ranks.gather(figures)
        self.put_off = None in everyone
        if not self.put_off:
            self.record({"step": self.step, **everyone[0]})

    def save_due(self) -> bool:
        """Whether this step is to be saved: by its number, or because it is among the best."""
        return self.verdicts.among_best(self.step) or self.due(self.config.save_every)

    def save(self, source: SourceState | None) -> None:
        """Make this step one that the run can go on from; it is announced once it is durable."""
        run = self.run
        self.reporter.metrics.sync()
        if self.ranks.main or run.engine.sharded:
            tensors = model_state(self.model), optimizer_state(self.model, self.optimizer)
            snapshot = Snapshot(self.progress, *tensors, source, self.scale.state())
            together = self.ranks if run.engine.sharded else ALONE
            save_snapshot(run.snapshots, snapshot, made_by=run.made_by, ranks=together)
        self.ranks.wait()
        self.saved_step = self.step
        run.view.say(f"saved step {self.step}")
        self.verdicts.prune()

    def end(self, source_state: Callable[[], SourceState | None]) -> None:
        """Save the last step and choose the run's weights.

        Leaves by SystemExit if the run is not over, or its last evaluation was put off.
        """
        if self.saved_step != self.step:
            self.save(source_state())
        self.run.ending = Ending(self.progress, self.reporter.metrics.last, peak_bytes(self.placement.device))
        reason = self.ends_early()
        if reason is not None:
            self.run.view.say(f"ended at step {self.step} of {self.config.steps}: {reason}")
        elif self.step < self.config.steps or self.put_off:
            self.run.view.pause()
            self.run.view.say(
                f"stopped at step {self.step} of {self.config.steps}: give the same command again to go on"
            )
            raise Stopped(self.stop_code)
        self.choose_weights()

    def choose_weights(self) -> None:
        """Give the model the weights that the run ends with: the best, if asked for; the average, if there is one."""
        if self.config.artifact == "best":
            step = self.verdicts.best_step()
            path = self.run.snapshot_path(step)
            self.take_weights(load_snapshot(path, verify=self.ranks.main, lazily=self.run.engine.sharded))
            row = next(row for row in read_metrics(self.run.metrics_path) if row["step"] == step)
            self.run.ending = self.run.ending._replace(row=row, best_step=step)
        self.average.exchange()
