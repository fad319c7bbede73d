"""What is told of a run while it goes on, and to whom.

Each line of metrics goes to metrics.jsonl, which is the truth, and from there to the watchers, to a person and, with
--json, to another program. Samples, histograms, the profiler's traces and the use of the device are told beside them.
"""

from __future__ import annotations

import contextlib
import json
from collections import deque
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING

import torch
from torch import nn

from llmcore.errors import ExtensionError
from llmcore.train.config import TrainConfig
from llmcore.train.describe import start_facts
from llmcore.train.device import Placement
from llmcore.train.memory import peak_bytes
from llmcore.train.metrics import MetricsFile, NoMetrics
from llmcore.train.profiling import Profiling
from llmcore.train.samples import sampler_of
from llmcore.train.sharded import local_part
from llmcore.train.snapshot import Progress
from llmcore.train.utilization import matmul_peak, training_flops
from llmcore.train.view import amount
from llmcore.train.watchers import About, Watching

if TYPE_CHECKING:
    from llmcore.train.loop import StepResult
    from llmcore.train.run import Run

STANDARD = frozenset({"step", "loss", "lr", "grad_norm", "tokens", "tokens_per_s", "seconds", "mfu", "memory_gib"})
"""What lines of metrics have; a loss cannot give these names to figures of its own."""

WINDOW = 20
"""Steps over which tokens per second are taken."""


class Reporter:
    """Tells of one process's part of a run; a `with` block, in which every file is open."""

    def __init__(self, run: Run, model: nn.Module, config: TrainConfig, placement: Placement, *, step: int) -> None:
        """To tell of what comes after `step`, where the run starts or goes on."""
        self.run, self.model, self.config, self.placement, self.first = run, model, config, placement, step
        self.main = run.engine.ranks.main
        first, last = config.profiled_steps
        self.profiling = Profiling(run.folder / "profile", first=first, last=last)
        self.sampler = sampler_of(run.folder / "samples.jsonl", run.prompting, run.tokenizer, config)
        self.watchers: list[Watching] = []
        self.recent: deque[tuple[int, float]] = deque(maxlen=WINDOW)
        self.metrics: MetricsFile = NoMetrics()
        self.closing = contextlib.ExitStack()
        self.flops: int | None = None
        self.flops_peak = 0.0

    def __enter__(self) -> Reporter:
        with contextlib.ExitStack() as opening:
            if self.main:
                self.metrics = MetricsFile(self.run.metrics_path, start=self.first)
                opening.callback(self.metrics.close)
                if self.sampler is not None:
                    self.sampler.start(self.first)
                self.open_watchers(opening)
            self.closing = opening.pop_all()
        return self

    def open_watchers(self, opening: contextlib.ExitStack) -> None:
        """Open every watcher; one that nobody asked for by name may be missing."""
        run = self.run
        about = About(run.out.name, run.made_by, self.first, run.identity.config)
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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.close()

    def start(self, *, resumed: bool) -> None:
        """Say what is about to happen and what happened before; measure the device, where its use is asked for."""
        run = self.run
        facts = start_facts(self.model, self.config, self.placement, out=run.out, facts=run.facts)
        run.view.start(f"{run.made_by} · {run.out.name}", facts)
        if resumed:
            run.view.say(f"resumed from step {self.first}")
        for line in self.what_happened():
            run.view.say(line)
        if self.config.mfu:
            self.flops = training_flops(self.model)
            self.flops_peak = matmul_peak(self.placement.device, self.placement.dtype) * run.engine.ranks.size

    def what_happened(self) -> Iterator[str]:
        """What the end of the last start left behind, in words."""
        reached = self.metrics.abandoned
        if self.run.resume.isdecimal():
            if reached is not None:
                yield f"gone back from step {reached}: what came after step {self.first} is done again"
        elif self.run.died:
            where = "" if reached is None else f" at step {reached} or later"
            yield (
                f"the last start ({self.run.died}) ended without a word{where}, perhaps for memory: "
                f"it goes on after step {self.first}"
            )
        elif reached is not None:
            yield f"the last start failed after step {reached}: what came after step {self.first} is done again"
        if self.run.unfinished:
            yield f"removed what was never completed: {', '.join(self.run.unfinished)}"

    def step(self, progress: Progress, result: StepResult, *, lr: float, elapsed: float) -> dict[str, float]:
        """Show a step that was taken: its line of metrics, which is recorded when it is due."""
        self.recent.append((result.tokens, elapsed))
        row = {
            "step": progress.step,
            "loss": result.loss,
            "lr": lr,
            "grad_norm": result.grad_norm,
            **{name: value for name, value in result.metrics.items() if name not in STANDARD},
            "tokens": progress.tokens,
            "tokens_per_s": self.speed(),
            "seconds": round(progress.seconds, 3),
            **(self.utilization() if self.config.mfu else {}),
        }
        self.run.view.step({**row, "memory": amount(peak_bytes(self.placement.device), "B")})
        self.say(self.profiling.after(progress.step))
        return row

    def end(self, step: int) -> None:
        """Leave the screen as it is; write the trace of steps that ended early, at `step`."""
        self.run.view.pause()
        self.say(self.profiling.finish(step))

    def speed(self) -> float:
        """Tokens per second over the last steps, without evaluations and saves."""
        return round(sum(tokens for tokens, _ in self.recent) / (sum(s for _, s in self.recent) or 1e-9), 1)

    def utilization(self) -> dict[str, float]:
        """The last steps' FLOP/s as a share of the measured peak, and the most memory held so far."""
        share = {} if self.flops is None else {"mfu": round(self.flops * self.speed() / self.flops_peak, 4)}
        return {**share, "memory_gib": round(peak_bytes(self.placement.device) / 2**30, 3)}

    def record(self, row: Mapping[str, float | int]) -> None:
        """Write one line of metrics wherever it belongs; figures of the last line's step join it."""
        self.metrics.add(row)
        for watcher in self.watchers:
            watcher.add(row)
        self.run.view.log(row)
        if self.run.json:
            print(json.dumps(row), flush=True)

    def histograms(self, step: int) -> None:
        """Show how weights and gradients are spread."""
        spread = dict(weights_and_gradients(self.model))
        for watcher in self.watchers:
            watcher.histograms(step, spread)

    def samples(self, step: int) -> None:
        """Show what the model says."""
        if self.sampler is None:
            return
        with self.run.engine.whole(self.model, main_only=True) as model:
            pairs = self.sampler.sample(model, step) if self.main else []
        for watcher in self.watchers:
            watcher.texts(step, pairs)
        for prompt, text in pairs:
            self.run.view.say(f"step {step} says: {one_line(prompt)}│{one_line(text)}")

    def say(self, text: str | None) -> None:
        """Tell a person, if there is something to tell."""
        if text:
            self.run.view.say(text)


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
