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
from typing import TYPE_CHECKING, Generic, TypeVar

import torch
from torch import nn

from llmcore.errors import ExtensionError, TrainingError
from llmcore.train.config import TrainConfig
from llmcore.train.describe import start_facts
from llmcore.train.device import environment
from llmcore.train.distributed import ALONE, lost_contact
from llmcore.train.diverged import NotFiniteError, diverged
from llmcore.train.ema import Average
from llmcore.train.memory import memory_advice, peak_bytes
from llmcore.train.metrics import MetricsFile, NoMetrics, read_metrics
from llmcore.train.precision import LossScale, loss_scale
from llmcore.train.probe import Probe
from llmcore.train.profiling import Profiling
from llmcore.train.rehearsal import LossFunction
from llmcore.train.retention import Retention, read_pins, snapshot_paths
from llmcore.train.samples import sampler_of
from llmcore.train.seeds import step_seed
from llmcore.train.sharded import local_part
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
from llmcore.train.source import SourceState, Traceable
from llmcore.train.stopping import EarlyStopping
from llmcore.train.utilization import matmul_peak, training_flops
from llmcore.train.view import amount
from llmcore.train.watchers import About, Watching

if TYPE_CHECKING:
    from llmcore.train.loop import StepResult
    from llmcore.train.run import Run

STANDARD = frozenset({"step", "loss", "lr", "grad_norm", "tokens", "tokens_per_s", "seconds", "mfu", "memory_gib"})
"""What lines of metrics have; a loss cannot give these names to figures of its own."""

M = TypeVar("M", bound=nn.Module)

WINDOW = 20
"""Steps over which tokens per second are taken."""


class Session(Generic[M]):
    """What `fit` holds while it trains; a `with` block that always leaves the folder resumable."""

    def __init__(self, run: Run, model: M, config: TrainConfig) -> None:
        self.run, self.model, self.config, self.ranks = run, model, config, run.engine.ranks
        self.placement = run.resolve(config)
        self.device = self.placement.device
        self.stop = StopRequest()
        self.put_off = False
        self.snapshot = run.load()
        self.progress = self.snapshot.progress if self.snapshot else Progress()
        self.saved_step = self.progress.step if self.snapshot else None
        self.source_state = self.snapshot.source if self.snapshot else None
        self.scale = loss_scale(
            self.placement.dtype, initial=config.loss_scale, growth_interval=config.loss_scale_window
        )
        self.recent: deque[tuple[int, float]] = deque(maxlen=WINDOW)
        first, last = config.profiled_steps
        self.profiling = Profiling(run.folder / "profile", first=first, last=last)
        self.sampler = sampler_of(run.folder / "samples.jsonl", run.prompting, run.tokenizer, config)
        self.watchers: list[Watching] = []
        self.flops: int | None = None
        self.flops_peak = 0.0

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.progress.step

    def __enter__(self) -> Session[M]:
        with contextlib.ExitStack() as opening:
            opening.callback(self.run.close)
            self.run.begin(environment(self.placement))
            self.metrics = MetricsFile(self.run.metrics_path, start=self.step) if self.ranks.main else NoMetrics()
            opening.callback(self.metrics.close)
            self.retention = Retention(self.config, self.metrics.rows)
            read_pins(self.run.folder)  # a damaged list is told now, not at the first save
            if self.ranks.main:
                if self.sampler is not None:
                    self.sampler.start(self.step)
                self.open_watchers(opening)
            self.tell_start()
            if self.config.mfu:
                self.flops = training_flops(self.model)
                self.flops_peak = matmul_peak(self.device, self.placement.dtype) * self.ranks.size
            self.run.engine.place(self.model, self.placement)
            opening.callback(self.run.engine.close)
            self.model.train()
            opening.enter_context(self.stop)
            opening.pop_all()
        return self

    def open_watchers(self, opening: contextlib.ExitStack) -> None:
        """Open every watcher; one that nobody asked for by name may be missing."""
        run = self.run
        about = About(run.out.name, run.made_by, self.step, run.identity.config)
        for part in self.config.watch:
            try:
                watcher = part.build(run.folder, about)
            except ExtensionError as error:
                if "watch" in self.config.model_fields_set:
                    raise
                run.view.say(f"no curves: {error.hint}")
            else:
                opening.callback(watcher.close)
                self.watchers.append(watcher)

    def tell_start(self) -> None:
        """Say what is about to happen, and what happened before."""
        run = self.run
        facts = start_facts(self.model, self.config, self.placement, out=run.out, facts=run.facts)
        run.view.start(f"{run.made_by} · {run.out.name}", facts)
        if self.snapshot:
            run.view.say(f"resumed from step {self.step}")
        for line in self.what_happened():
            run.view.say(line)

    def what_happened(self) -> Iterator[str]:
        """What the end of the last start left behind, in words."""
        reached = self.metrics.abandoned
        if self.run.died:
            where = "" if reached is None else f" at step {reached} or later"
            yield (
                f"the last start ({self.run.died}) ended without a word{where}, perhaps for memory: "
                f"it goes on after step {self.step}"
            )
        elif reached is not None:
            yield f"the last start failed after step {reached}: what came after step {self.step} is done again"
        if self.run.unfinished:
            yield f"removed what was never completed: {', '.join(self.run.unfinished)}"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.ExitStack() as closing:
            if error is not None:
                closing.callback(self.run.close)
            closing.callback(self.metrics.close)
            for watcher in self.watchers:
                closing.callback(watcher.close)
            closing.callback(self.end_profile)
            closing.callback(self.run.engine.close)
            closing.callback(self.run.view.pause)
            closing.callback(self.stop.__exit__)
            self.model.eval()

    def restore(self, optimizer: torch.optim.Optimizer) -> None:
        """Give model and optimizer what the snapshot holds, if the run goes on from one."""
        if self.snapshot is not None:
            path = self.run.snapshot_path(self.step)
            restore_model(self.model, self.snapshot.model, path, self.ranks)
            restore_optimizer(self.model, optimizer, self.snapshot.optimizer, path, self.ranks)
            self.scale.restore(self.snapshot.loss_scale)
            self.snapshot = None
        self.run.view.begin(step=self.step, steps=self.config.steps)

    def goes_on(self) -> bool:
        """Whether another step is to be taken, as all ranks agree; starts its clock."""
        self.stop_code = max(self.ranks.gather(self.stop.code or 0))
        more = self.step < self.last_step() and not self.stop_code and self.ends_early() is None
        if more:
            self.profiling.before(self.step + 1)
        self.started_at = time.perf_counter()
        return more

    def ends_early(self) -> str | None:
        """Why this evaluated step is the last one, if it is."""
        stopping = self.config.early_stopping
        if stopping is None or not self.step or self.step % self.config.eval_every:
            return None
        reason: str | None = self.ranks.first(self.verdict(stopping) if self.ranks.main else None)
        return reason

    def verdict(self, stopping: EarlyStopping) -> str | None:
        """What the evaluations so far say."""
        if self.metrics.evaluated(self.step):
            return stopping.verdict(read_metrics(self.run.metrics_path))
        if self.stop_code:  # the evaluation was put off
            return None
        raise TrainingError(
            "train.early_stopping is set, but this run has no evaluation", hint="leave it out, or hold data out"
        )

    def last_step(self) -> int:
        """Where this process ends."""
        early = self.config.stop_after
        return self.config.steps if early is None else min(early, self.config.steps)

    @contextlib.contextmanager
    def step_guard(
        self, source: object, loss_fn: LossFunction, micro_batches: Sequence[object], *, lr: float
    ) -> Iterator[None]:
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
            with self.run.engine.whole(self.model) as model:
                if not self.ranks.main:  # every rank has the whole step's micro-batches: one dumps them
                    raise
                raise diverged(
                    error,
                    self.run.folder / "nan-dump",
                    model=model,
                    micro_batches=micro_batches,
                    facts=facts | ({"loss_scale": self.scale.value} if self.scale.value != 1 else {}),
                    rows=[int(row) for row in source.data_rows(self.step)] if isinstance(source, Traceable) else [],
                    first=self.find_first(model, loss_fn, micro_batches),
                ) from None
        except TrainingError as error:
            raise TrainingError(f"step {self.step + 1}: {error.message}", hint=error.hint) from error
        except RuntimeError as error:
            lost = lost_contact(error) if self.ranks.size > 1 else None
            if lost is None:
                raise
            raise lost from error

    def find_first(self, model: nn.Module, loss_fn: LossFunction, micro_batches: Sequence[object]) -> str | None:
        """Where a number of this step was not finite first: the step done again, with every module watched."""
        from llmcore.train.replay import one_step

        probe = Probe(model)
        with probe:
            one_step(
                model,
                micro_batches,
                loss_fn,
                config=self.config,
                step=self.step + 1,
                device=self.device,
                scale=LossScale(self.scale.value),
            )
        return probe.first

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
        if self.config.mfu:
            row |= self.utilization()
        self.run.view.step({**row, "memory": amount(peak_bytes(self.device), "B")})
        traced = self.profiling.after(self.step)
        if traced:
            self.run.view.say(traced)
        if self.step % self.config.log_every == 0 or self.step in (1, self.config.steps):
            self.record(row)
        self.show_more()

    def utilization(self) -> dict[str, float]:
        """The last steps' FLOP/s as a share of the measured peak, and the most memory held so far."""
        share = {} if self.flops is None else {"mfu": round(self.flops * self.speed() / self.flops_peak, 4)}
        return {**share, "memory_gib": round(peak_bytes(self.device) / 2**30, 3)}

    def show_more(self) -> None:
        """Histograms and samples, where they are due."""
        config = self.config
        if config.histogram_every and self.step % config.histogram_every == 0:
            spread = dict(weights_and_gradients(self.model))
            for watcher in self.watchers:
                watcher.histograms(self.step, spread)
        if self.sampler is not None and config.sample_every and due(self.step, config.sample_every, config):
            with self.run.engine.whole(self.model, main_only=True) as model:
                pairs = self.sampler.sample(model, self.step) if self.ranks.main else []
            for watcher in self.watchers:
                watcher.texts(self.step, pairs)
            for prompt, text in pairs:
                self.run.view.say(f"step {self.step} says: {one_line(prompt)}│{one_line(text)}")

    def end_profile(self) -> None:
        """Write the trace of steps that ended early."""
        traced = self.profiling.finish(self.step)
        if traced:
            self.run.view.say(traced)

    def speed(self) -> float:
        """Tokens per second over the last steps, without evaluations and saves."""
        return round(sum(tokens for tokens, _ in self.recent) / (sum(s for _, s in self.recent) or 1e-9), 1)

    def evaluate(self, function: Callable[[M], Mapping[str, float]] | None) -> None:
        """Add validation figures to this step's line, unless it has them; a signal puts them off to the next start."""
        if function is None:
            self.refuse_best()
            return
        if self.ranks.first(self.metrics.evaluated(self.step)):
            return
        self.model.eval()
        torch.manual_seed(step_seed(self.config.seed, self.step))
        figures: dict[str, float] | None = None
        with (
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

    def refuse_best(self) -> None:
        """Without an evaluation no checkpoint is the best."""
        if self.config.keep_best:
            raise TrainingError(
                f"train.keep_best is {self.config.keep_best}, and this run has no evaluation to rank by",
                hint="give held-out data, or leave keep_best out",
            )

    def record(self, row: Mapping[str, float | int]) -> None:
        """Write one line of metrics wherever it belongs."""
        self.metrics.add(row)
        self.retention.note(row)
        for watcher in self.watchers:
            watcher.add(row)
        self.run.view.log(row)
        if self.run.json:
            print(json.dumps(row), flush=True)

    def save_due(self) -> bool:
        """Whether this step is to be saved: by its number, or because it is among the best."""
        best = self.config.keep_best > 0 and self.ranks.first(
            self.metrics.evaluated(self.step) and self.retention.among_best(self.step)
        )
        return best or due(self.step, self.config.save_every, self.config)

    def save(self, optimizer: torch.optim.Optimizer, source: SourceState | None) -> None:
        """Make this step one that the run can go on from; it is announced once it is durable."""
        self.metrics.sync()
        if self.ranks.main or self.run.engine.sharded:
            tensors = model_state(self.model), optimizer_state(self.model, optimizer)
            snapshot = Snapshot(self.progress, *tensors, source, self.scale.state())
            together = self.ranks if self.run.engine.sharded else ALONE
            save_snapshot(self.run.snapshots, snapshot, made_by=self.run.made_by, ranks=together)
        self.ranks.wait()
        self.saved_step = self.step
        self.run.view.say(f"saved step {self.step}")
        if self.ranks.main:
            self.retention.prune(self.run.snapshots)

    def end(self, optimizer: torch.optim.Optimizer, source_state: Callable[[], SourceState | None]) -> None:
        """Save the last step; leave by SystemExit if the run is not over, or its last evaluation was put off."""
        if self.saved_step != self.step:
            self.save(optimizer, source_state())
        self.run.note(self.progress, self.metrics.last, peak=peak_bytes(self.device))
        reason = self.ends_early()
        if reason is not None:
            self.run.view.say(f"ended at step {self.step} of {self.config.steps}: {reason}")
        elif self.step < self.config.steps or self.put_off:
            self.run.view.pause()
            self.run.view.say(
                f"stopped at step {self.step} of {self.config.steps}: give the same command again to go on"
            )
            raise Stopped(self.stop_code)

    def choose_weights(self, average: Average) -> None:
        """Give the model the weights that the run ends with: the best, if asked for; the average, if there is one."""
        if self.config.artifact == "best":
            self.take_best(average.optimizer)
        average.exchange()

    def take_best(self, optimizer: torch.optim.Optimizer) -> None:
        """Give the model the weights of the best checkpoint that is there, and the optimizer its average."""
        ranked = self.ranks.first(self.retention.best(snapshot_paths(self.run.snapshots)))
        if not ranked:
            raise TrainingError(
                f"train.artifact is 'best', and no checkpoint has a {self.config.best_metric}",
                hint="evaluate more often: train.eval_every",
            )
        path = self.run.snapshot_path(ranked[0])
        best = load_snapshot(path, verify=self.ranks.main, lazily=self.run.engine.sharded)
        restore_model(self.model, best.model, path, self.ranks)
        restore_optimizer(self.model, optimizer, best.optimizer, path, self.ranks)
        self.run.took(ranked[0], next(row for row in read_metrics(self.run.metrics_path) if row["step"] == ranked[0]))


def weights_and_gradients(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Every weight and, where it has one, its gradient (as the last update used it), by name.

    Of a model in parts, what this rank holds of them.
    """
    for name, weight in model.named_parameters():
        yield f"weights/{name}", local_part(weight)
        if weight.grad is not None:
            yield f"gradients/{name}", local_part(weight.grad)


def one_line(text: str) -> str:
    """A text on one line of the screen."""
    return text.replace("\n", "⏎")


def due(step: int, every: int, config: TrainConfig) -> bool:
    """Whether something done every so many steps, and at the last, is to be done after this one."""
    return step % every == 0 or step == config.steps
