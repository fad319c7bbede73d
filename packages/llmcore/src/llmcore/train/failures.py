"""What is said when a step cannot be taken: no memory, a number that is not finite, a process that is gone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from torch import nn

from llmcore.errors import TrainingError
from llmcore.train.distributed import lost_contact
from llmcore.train.diverged import NotFiniteError, diverged
from llmcore.train.memory import memory_advice
from llmcore.train.precision import LossScale
from llmcore.train.probe import Probe
from llmcore.train.rehearsal import LossFunction
from llmcore.train.source import Traceable

if TYPE_CHECKING:
    from llmcore.train.session import Session

M = TypeVar("M", bound=nn.Module)

STEP_NEEDS = "train.micro_batch (the update stays the same), model.context or model.width"


@contextlib.contextmanager
def step_guard(
    session: Session[M], source: object, loss_fn: LossFunction, micro_batches: Sequence[object], *, lr: float
) -> Iterator[None]:
    """While inside, the session's next step is taken; what prevents it ends the run with one sentence."""
    step, config = session.step + 1, session.config
    try:
        with memory_advice(f"step {step} ({config.rows} rows at a time)", lower=STEP_NEEDS):
            yield
    except NotFiniteError as error:
        raise dumped(error, session, source, loss_fn, micro_batches, lr=lr) from None
    except TrainingError as error:
        raise TrainingError(f"step {step}: {error.message}", hint=error.hint) from error
    except RuntimeError as error:
        lost = lost_contact(error) if session.ranks.size > 1 else None
        if lost is None:
            raise
        raise lost from error


def dumped(
    error: NotFiniteError,
    session: Session[M],
    source: object,
    loss_fn: LossFunction,
    micro_batches: Sequence[object],
    *,
    lr: float,
) -> TrainingError:
    """The error that ends the run, with all that the step was computed from in run/nan-dump.

    Every rank has the whole step's micro-batches: rank 0 dumps them, the others end with what they have.
    """
    facts = {
        "step": session.step + 1,
        "lr": f"{lr:.3g}",
        "seed": session.config.seed,
        "dtype": str(session.placement.dtype).removeprefix("torch."),
        **({"loss_scale": session.scale.value} if session.scale.value != 1 else {}),
    }
    with session.run.engine.whole(session.model) as model:
        if not session.ranks.main:
            return error
        return diverged(
            error,
            session.run.folder / "nan-dump",
            model=model,
            micro_batches=micro_batches,
            facts=facts,
            rows=[int(row) for row in source.data_rows(session.step)] if isinstance(source, Traceable) else [],
            first=find_first(session, model, loss_fn, micro_batches),
        )


def find_first(
    session: Session[M], model: nn.Module, loss_fn: LossFunction, micro_batches: Sequence[object]
) -> str | None:
    """Where a number of the step was not finite first: the step done again, with every module watched."""
    from llmcore.train.replay import one_step

    probe = Probe(model)
    with probe:
        one_step(
            model,
            micro_batches,
            loss_fn,
            config=session.config,
            step=session.step + 1,
            device=session.placement.device,
            scale=LossScale(session.scale.value),
        )
    return probe.first
