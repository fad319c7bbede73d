"""The one training loop.

A loss returns a sum and a count, a source yields one optimizer step's micro-batches at a time, and only this file
divides: once, after all micro-batches of the step on all ranks, so that accumulation is exact whatever the masks. The
loop *pulls*: a source that samples from the live model right before it yields is on-policy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch
from torch import nn
from torch.nn.utils import get_total_norm

from llmcore.errors import TrainingError
from llmcore.losses import Loss
from llmcore.model.transformer import take_aux_losses
from llmcore.train.config import TrainConfig
from llmcore.train.device import to_device
from llmcore.train.diverged import NotFiniteError
from llmcore.train.optim import set_rate
from llmcore.train.parallel import Engine
from llmcore.train.precision import LossScale
from llmcore.train.source import Source
from llmcore.train.tally import Tally
from llmcore.train.verdicts import need_no_evaluation

if TYPE_CHECKING:
    from llmcore.train.run import Run

M = TypeVar("M", bound=nn.Module)
B = TypeVar("B")

ONE_DEVICE = Engine()


def fit(
    model: M,
    source: Source[B],
    loss_fn: Callable[[M, B], Loss],
    config: TrainConfig,
    run: Run,
    evaluate: Callable[[M], Mapping[str, float]] | None = None,
) -> None:
    """Train `model` for `config.steps` steps, or go on where `run` stopped.

    Returns when the last step is saved; a run that stops earlier leaves by SystemExit, resumable.
    """
    if run.complete is not None:
        return
    if evaluate is None:
        need_no_evaluation(config)
    if run.rehearsal is not None:
        run.rehearsal.play(run, model, source, loss_fn, config)
    with run.session(model, config) as session:
        optimizer = config.optimizer.build(model, config.lr)
        factor = config.schedule.build(config.steps)
        session.begin(optimizer)
        steps = source.steps_from(session.step, session.source_state)
        if session.due(config.eval_every):
            session.evaluate(evaluate)  # the run was stopped before it could
        while session.goes_on():
            lr = config.lr * factor(session.step)
            set_rate(optimizer, factor(session.step))
            micro_batches = next(steps)
            with session.step_guard(source, loss_fn, micro_batches, lr=lr):
                result = take_step(
                    model,
                    optimizer,
                    micro_batches,
                    loss_fn,
                    clip=config.clip,
                    seed=session.seed,
                    scale=session.scale,
                    device=session.placement.device,
                    engine=run.engine,
                )
            session.advance(result, lr=lr)
            if session.due(config.eval_every):
                session.evaluate(evaluate)
            if session.save_due():
                session.save(source.state())
        session.end(source.state)


class StepResult(NamedTuple):
    """What one optimizer step measured."""

    loss: float
    """Mean loss per item."""
    grad_norm: float
    """Norm of the mean gradient, before clipping."""
    items: int
    """Items the loss was taken over."""
    tokens: int
    """Tokens in the batches; items, where a batch has no ids."""
    metrics: dict[str, float]
    """Means and extremes of the loss's other figures."""


def take_step(
    model: M,
    optimizer: torch.optim.Optimizer,
    micro_batches: Sequence[B],
    loss_fn: Callable[[M, B], Loss],
    *,
    clip: float,
    seed: int,
    scale: LossScale,
    device: torch.device | str = "cpu",
    engine: Engine = ONE_DEVICE,
) -> StepResult:
    """`train_step` with its noise from `seed`; where the gradient overflows float16, again with half the scale."""

    def attempt(scale: float) -> StepResult:
        return train_step(
            model, optimizer, micro_batches, loss_fn, clip=clip, device=device, engine=engine, scale=scale
        )

    return scale.take(attempt, seed=seed)


def train_step(
    model: M,
    optimizer: torch.optim.Optimizer,
    micro_batches: Sequence[B],
    loss_fn: Callable[[M, B], Loss],
    *,
    clip: float,
    device: torch.device | str = "cpu",
    engine: Engine = ONE_DEVICE,
    scale: float = 1.0,
) -> StepResult:
    """One update from the gradient of the mean loss over all micro-batches of all ranks, of `scale` times the loss.

    Raises NotFiniteError, without an update, if a loss or the gradient is not finite.
    """
    device = torch.device(device)
    optimizer.zero_grad(set_to_none=True)
    tally = Tally()
    for batch in engine.deal(micro_batches):
        batch = to_device(batch, device)
        loss = engine.loss(model, loss_fn, batch)
        auxiliary = take_aux_losses(model)  # a mean per item: weighted so that the division below leaves it one
        total = loss.total if auxiliary is None else loss.total + auxiliary * loss.count
        torch.autograd.backward(total if scale == 1.0 else total * scale)
        tally.add(loss, batch, auxiliary)
    grads = engine.gradients(optimizer)
    tally.over(engine.ranks, get_total_norm(grads))
    if tally.count == 0:
        raise TrainingError("no item of this step counts: every target is masked", hint="look at the rows and the mask")
    grad_norm = engine.norm(tally.norms) / (tally.count * scale)
    if not (math.isfinite(tally.loss) and math.isfinite(grad_norm)):
        raise NotFiniteError(losses=tally.losses, grad_norm=grad_norm)
    torch._foreach_mul_(grads, min(1.0, clip / (grad_norm + 1e-6)) / (tally.count * scale))
    optimizer.step()
    return StepResult(tally.loss / tally.count, grad_norm, tally.count, tally.tokens, tally.figures())
