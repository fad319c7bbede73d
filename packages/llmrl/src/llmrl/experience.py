"""From rollouts to the loop's micro-batches: the source that samples from the live policy when it is asked for a step.

A rollout serves one update or several. What a run needs to go on in the middle of one (its tensors, which update comes
next, the algorithm's controllers) is the source's state; between rollouts everything is a function of (seed, number).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from pydantic import JsonValue
from torch import Tensor

from llmcore.losses import Figure
from llmcore.train.memory import memory_advice
from llmcore.train.source import SourceState

ROLLOUTS_NEED = "rollout.max_completion_length or train.batch (the completions of an update), or take a smaller policy"

Metrics = Mapping[str, Figure]


class Experience(NamedTuple):
    """Completions with all that an update needs. T-1 columns belong to the tokens ids[:, 1:]."""

    ids: Tensor
    """(B, T) prompt and completion, padded on the right."""
    mask: Tensor
    """(B, T) bool: the policy sampled this token; the first stop token is included, column 0 never is."""
    advantages: Tensor
    """(B, T-1) float32."""
    old_logprobs: Tensor | None = None
    """(B, T-1) of the policy that sampled; none where the update's own, detached, are the same."""
    reference_logprobs: Tensor | None = None
    """(B, T-1) of the reference policy."""
    values: Tensor | None = None
    """(B, T-1) of the value function at sampling."""
    returns: Tensor | None = None
    """(B, T-1) what the value function should have said."""
    metrics: Metrics = {}
    """Figures of the rollout, reported with the first micro-batch of each update."""

    def take(self, rows: Tensor, *, metrics: Metrics | None = None) -> "Experience":
        """Some rows, cut at the longest of them."""
        mask = self.mask[rows]
        columns = 1 + int(mask.any(0).nonzero().max()) if bool(mask.any()) else 2

        def cut(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[rows, : columns - 1]

        return Experience(
            self.ids[rows, :columns],
            mask[:, :columns],
            self.advantages[rows, : columns - 1],
            old_logprobs=cut(self.old_logprobs),
            reference_logprobs=cut(self.reference_logprobs),
            values=cut(self.values),
            returns=cut(self.returns),
            metrics=metrics or {},
        )

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that are there, by name."""
        return {name: value for name, value in self._asdict().items() if isinstance(value, Tensor)}


class Maker(Protocol):
    """An algorithm, as the source sees it."""

    def experience(self, number: int, *, step: int) -> Experience:
        """Sample rollout `number` from the live policy, for the update of `step`, and value it."""
        ...

    def begin(self) -> None:
        """An update is about to be made."""
        ...

    def enough(self) -> bool:
        """Whether the rest of this rollout's updates is to be left out, after the one just made."""
        ...

    def controllers(self) -> dict[str, JsonValue]:
        """What the algorithm carries from one rollout to the next."""
        ...

    def restore(self, controllers: Mapping[str, JsonValue]) -> None:
        """Take up what `controllers` gave."""
        ...


class Experiences:
    """Yields each rollout `epochs` times, in `mini_batches` parts; every part is one optimizer step."""

    def __init__(
        self,
        maker: Maker,
        *,
        seed: int,
        epochs: int = 1,
        mini_batches: int = 1,
        micro_batch: int | None = None,
        on_start: Callable[[int], None] = lambda _step: None,
    ) -> None:
        self.maker = maker
        self.seed = seed
        self.epochs = epochs
        self.mini_batches = mini_batches
        self.micro_batch = micro_batch
        self.on_start = on_start
        self.number = 0
        self.update = 0
        self.current: Experience | None = None

    def steps_from(self, start: int, state: SourceState | None = None) -> Iterator[Sequence[Experience]]:
        """Yield each step's micro-batches, for ever, from step `start`."""
        self.on_start(start)
        self.number, self.update, self.current = start // self.updates, 0, None
        if state is not None:
            self.resume(state)
        step = start
        while True:
            if self.current is None:
                with memory_advice(f"the rollouts of step {step + 1}", lower=ROLLOUTS_NEED):
                    self.current = self.maker.experience(self.number, step=step)
            self.maker.begin()
            yield self.micro_batches(self.current)
            step += 1
            self.number, self.update, self.current = self.following()

    def state(self) -> SourceState | None:
        """Where to go on after the update just made."""
        number, update, current = self.following()
        values: dict[str, JsonValue] = {"rollout": number, "update": update}
        values["controllers"] = self.maker.controllers()
        values["metrics"] = {} if current is None else {name: list(pair) for name, pair in current.metrics.items()}
        return SourceState({} if current is None else current.tensors(), values)

    def following(self) -> tuple[int, int, Experience | None]:
        """The next update's rollout, place and tensors; no tensors where a new rollout is to be sampled."""
        if self.current is None:
            return self.number, self.update, None
        if self.update + 1 == self.updates or self.maker.enough():
            return self.number + 1, 0, None
        return self.number, self.update + 1, self.current

    def resume(self, state: SourceState) -> None:
        rollout, update, controllers = (state.values[name] for name in ("rollout", "update", "controllers"))
        assert isinstance(rollout, int) and isinstance(update, int) and isinstance(controllers, dict), state.values
        self.number, self.update = rollout, update
        self.maker.restore(controllers)
        if state.tensors:
            self.current = Experience(**state.tensors, metrics=as_metrics(state.values["metrics"]))

    @property
    def updates(self) -> int:
        """Optimizer steps from one rollout, if none is left out."""
        return self.epochs * self.mini_batches

    def micro_batches(self, experience: Experience) -> list[Experience]:
        """This update's rows, those of one prompt together; the first part carries the rollout's figures."""
        rows = self.rows_of(len(experience.ids))
        size = self.micro_batch or len(rows)
        parts = [rows[i : i + size] for i in range(0, len(rows), size)]
        return [experience.take(part, metrics=experience.metrics if i == 0 else None) for i, part in enumerate(parts)]

    def rows_of(self, count: int) -> Tensor:
        """The rows of this update: in each epoch every row comes once."""
        if self.mini_batches == 1:
            return torch.arange(count)
        epoch, place = divmod(self.update, self.mini_batches)
        order = np.random.default_rng([self.seed, self.number, epoch]).permutation(count)
        return torch.from_numpy(np.array_split(order, self.mini_batches)[place].copy())


def as_metrics(values: JsonValue) -> Metrics:
    """The figures of a rollout, from the state of a run."""
    assert isinstance(values, dict), values
    return {name: as_figure(*pair) for name, pair in values.items() if isinstance(pair, list)}


def as_figure(value: JsonValue, how: JsonValue) -> Figure:
    """A figure, from its two parts."""
    assert isinstance(value, float | int) and isinstance(how, int | str), (value, how)
    if isinstance(how, str):
        return float(value), "max" if how == "max" else "min"
    return float(value), how
