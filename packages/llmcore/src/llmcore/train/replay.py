"""One step of a run again, in memory: the same loss and gradient to the bit, and the norms of every module in it.

From a dump, the step is computed from the dump's own weights and micro-batches. Any other step is reached from the
newest checkpoint before it, by taking the steps in between again. The model's shape, the data and the loss come from
the stage itself, which is found through the entry-point group `llmcore.stage`.
"""

from __future__ import annotations

import functools
import inspect
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, cast, get_type_hints

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from llmcore.errors import ArtifactError, ConfigError
from llmcore.storage import read_regular
from llmcore.tensors import load_tensors
from llmcore.train.config import TrainConfig
from llmcore.train.device import place
from llmcore.train.diverged import NotFiniteError
from llmcore.train.loop import take_step
from llmcore.train.metrics import read_metrics
from llmcore.train.optim import set_rate
from llmcore.train.precision import LossScale, loss_scale
from llmcore.train.probe import Norms, Probe
from llmcore.train.rehearsal import LossFunction
from llmcore.train.retention import snapshot_paths
from llmcore.train.run import Run
from llmcore.train.seeds import step_seed
from llmcore.train.signals import Stopped
from llmcore.train.snapshot import load_snapshot, restore_model, restore_optimizer
from llmcore.train.source import Source, Traceable
from llmcore.train.trees import Trees, put_together

LARGEST_FACTS = 64 << 20


class Figures(NamedTuple):
    """What a step measured: each micro-batch's summed loss where that is known, the mean loss, the gradient's norm."""

    losses: list[float]
    loss: float
    grad_norm: float


class Replay:
    """The rehearsal that takes one step again, without its update."""

    def __init__(self, step: int, *, dump: Path | None = None, json: bool = False) -> None:
        """Step `step`, counted from 1; from `dump` if it is one that diverged."""
        self.step, self.dump, self.json = step, dump, json

    def play(
        self, run: Run, model: nn.Module, source: Source[Any], loss_fn: LossFunction, config: TrainConfig
    ) -> NoReturn:
        if self.step > config.steps:
            raise ConfigError(
                f"--step {self.step}: the run ends with step {config.steps}",
                hint=f"give a step from 1 to {config.steps}",
            )
        placement = run.resolve(config)
        place(model, placement)
        model.train()
        if self.dump is not None:
            restore_model(model, load_tensors(self.dump / "model.safetensors"), self.dump)
            batches: Sequence[Any] = dumped_batches(self.dump, loss_fn)
            recorded = recorded_in_dump(self.dump)
            scale = LossScale(float(read_facts(self.dump).get("loss_scale", 1.0)))
        else:
            scale = loss_scale(placement.dtype, initial=config.loss_scale, growth_interval=config.loss_scale_window)
            batches = self.walk(run, model, source, loss_fn, config, scale)
            rows = [int(row) for row in source.data_rows(self.step - 1)] if isinstance(source, Traceable) else []
            recorded = {**recorded_in_metrics(run.metrics_path, self.step), "rows": rows}
        probe = Probe(model)
        with probe:
            found = one_step(
                model, batches, loss_fn, config=config, step=self.step, device=placement.device, scale=scale
            )
        self.report(found, recorded, probe)
        raise Stopped(0)

    def walk(
        self,
        run: Run,
        model: nn.Module,
        source: Source[Any],
        loss_fn: LossFunction,
        config: TrainConfig,
        scale: LossScale,
    ) -> Sequence[Any]:
        """Bring model and source to the step: its micro-batches."""
        paths = {step: path for step, path in snapshot_paths(run.snapshots).items() if step < self.step}
        optimizer = config.optimizer.build(model, config.lr)
        factor = config.schedule.build(config.steps)
        start, state = max(paths, default=0), None
        if paths:
            snapshot = load_snapshot(paths[start])
            restore_model(model, snapshot.model, paths[start])
            restore_optimizer(model, optimizer, snapshot.optimizer, paths[start])
            scale.restore(snapshot.loss_scale)
            state = snapshot.source
        steps = source.steps_from(start, state)
        device = run.resolve(config).device
        for step in range(start, self.step - 1):
            set_rate(optimizer, factor(step))
            seed = step_seed(config.seed, step)
            take_step(model, optimizer, next(steps), loss_fn, clip=config.clip, seed=seed, scale=scale, device=device)
        return next(steps)

    def report(self, found: Figures, recorded: Mapping[str, Any], probe: Probe) -> None:
        """Say what was found, beside what was recorded when the step was first taken."""
        compared = {name: same(getattr(found, name), recorded[name]) for name in Figures._fields if name in recorded}
        if self.json:
            norms = {name: {k: finite(v) for k, v in vars(norms).items()} for name, norms in probe.table()}
            facts = {"step": self.step, "rows": recorded.get("rows"), "first": probe.first, "identical": compared}
            figures = {name: finite(value) for name, value in found._asdict().items()}
            print(json.dumps({**facts, **figures, "norms": norms}))
            return
        console = Console(highlight=False, soft_wrap=True)
        rows = recorded.get("rows")
        console.print(f"step {self.step}" + (f" · rows {' '.join(map(str, rows))}" if rows else ""), markup=False)
        for name in ("loss", "grad_norm"):
            console.print(f"  {name:<9} {getattr(found, name)!r} {verdict(compared.get(name), recorded.get(name))}")
        if "losses" in compared:
            console.print(f"  losses    {found.losses} {verdict(compared['losses'], recorded['losses'])}", markup=False)
        console.print(f"  began in  {probe.first}" if probe.first else "  every number is finite", markup=False)
        console.print(norms_table(probe.table()))


def one_step(
    model: nn.Module,
    batches: Sequence[Any],
    loss_fn: LossFunction,
    *,
    config: TrainConfig,
    step: int,
    device: torch.device,
    scale: LossScale,
) -> Figures:
    """The figures of a step, whose gradients stay on the model and whose update is not made."""
    losses: list[float] = []

    def noting(model: nn.Module, batch: Any) -> Any:
        loss = loss_fn(model, batch)
        losses.append(float(loss.total.detach().float()))
        return loss

    still = cast(torch.optim.Optimizer, Still(config.optimizer.build(model, config.lr)))
    try:
        seed = step_seed(config.seed, step - 1)
        result = take_step(model, still, batches, noting, clip=math.inf, seed=seed, scale=scale, device=device)
    except NotFiniteError as error:
        return Figures(error.losses, math.fsum(error.losses), error.grad_norm)
    return Figures(losses[-len(batches) :], result.loss, result.grad_norm)


class Still:
    """In place of an optimizer: it has the weights of one, in their order (norms are sums), and moves nothing.

    Not a subclass: constructing one of torch's own imports its compiler.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.param_groups = [{"params": list(group["params"])} for group in optimizer.param_groups]

    def zero_grad(self, *, set_to_none: bool) -> None:
        """Drop the gradients."""
        assert set_to_none
        for group in self.param_groups:
            for weight in group["params"]:
                weight.grad = None

    def step(self) -> None:
        """Nothing."""


def dumped_batches(dump: Path, loss_fn: LossFunction) -> list[Any]:
    """The micro-batches of a dump, as the kind of batch that the loss takes."""
    trees = Trees(read_facts(dump)["batches"], load_tensors(dump / "batches.safetensors"))
    return put_together(trees, batch_class(loss_fn))


def batch_class(loss_fn: LossFunction) -> Any:
    """What a loss function says its second argument is."""
    while isinstance(loss_fn, functools.partial):
        loss_fn = loss_fn.func
    if not inspect.isroutine(loss_fn):
        loss_fn = type(loss_fn).__call__.__get__(loss_fn)
    second = list(inspect.signature(loss_fn).parameters)[1]
    return get_type_hints(loss_fn).get(second)


def recorded_in_dump(dump: Path) -> dict[str, Any]:
    facts: dict[str, Any] = read_facts(dump)
    losses = [float(value) for value in facts["losses"]]
    return {"losses": losses, "grad_norm": float(facts["grad_norm"]), "rows": facts.get("rows")}


def read_facts(dump: Path) -> dict[str, Any]:
    """`step.json` of a dump."""
    path = dump / "step.json"
    try:
        facts = json.loads(read_regular(path, limit=LARGEST_FACTS))
    except (ValueError, RecursionError):
        facts = None
    if not isinstance(facts, dict) or not {"step", "losses", "grad_norm", "batches"} <= facts.keys():
        raise ArtifactError(f"{path} does not describe a step that diverged", hint="give the folder of a nan-dump")
    return facts


def recorded_in_metrics(path: Path, step: int) -> dict[str, Any]:
    """The line of metrics of a step, if it was logged."""
    return next((row for row in read_metrics(path) if row["step"] == step and "loss" in row), {})


def same(found: Any, recorded: Any) -> bool:
    """Equal to the bit, where NaN equals NaN."""
    return repr(found) == repr(recorded)


def verdict(identical: bool | None, recorded: Any) -> str:
    if identical is None:
        return "(not recorded)"
    return "(as recorded, to the bit)" if identical else f"(recorded: {recorded!r}; another machine, or other threads?)"


def finite(value: Any) -> Any:
    """JSON has no NaN: such a figure is given in words."""
    if isinstance(value, list):
        return [finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def norms_table(rows: Sequence[tuple[str, Norms]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("module", "output", "∂ output", "weight", "∂ weight"):
        table.add_column(name, justify="left" if name == "module" else "right")
    for name, norms in rows:
        table.add_row(name, *(f"{value:.4g}" if value else "" for value in vars(norms).values()))
    return table
