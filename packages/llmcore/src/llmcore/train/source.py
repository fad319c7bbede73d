"""What a stage's data must offer the loop: one optimizer step's micro-batches at a time, for ever, from any step."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

from pydantic import JsonValue
from torch import Tensor

B = TypeVar("B")
B_co = TypeVar("B_co", covariant=True)


class SourceState(NamedTuple):
    """What a source needs to go on, beyond the number of the step: saved with every resumable checkpoint."""

    tensors: dict[str, Tensor] = {}
    values: dict[str, JsonValue] = {}


class Source(Protocol[B_co]):
    """Micro-batches by optimizer step."""

    def steps_from(self, start: int, state: SourceState | None) -> Iterator[Sequence[B_co]]:
        """Yield the micro-batches of step `start` (0-based), then of each next one, without end."""
        ...

    def state(self) -> SourceState | None:
        """What `steps_from` needs to go on after the last step yielded; None if that step's number is enough."""
        ...


@runtime_checkable
class Traceable(Protocol):
    """A source that can say which rows of its data a step sees."""

    def data_rows(self, step: int) -> Sequence[int]:
        """The numbers of the rows of step `step` (0-based), in their order."""
        ...


class FromFunction(Source[B]):
    """A source whose micro-batches are a function of the step: `FromFunction(lambda step: [batch(step)])`."""

    def __init__(
        self, micro_batches: Callable[[int], Sequence[B]], rows: Callable[[int], Sequence[int]] | None = None
    ) -> None:
        """`rows` says which rows of the data a step sees."""
        self.micro_batches = micro_batches
        self.rows = rows

    def data_rows(self, step: int) -> Sequence[int]:
        return [] if self.rows is None else self.rows(step)

    def steps_from(self, start: int, state: SourceState | None) -> Iterator[Sequence[B]]:  # noqa: ARG002
        step = start
        while True:
            yield self.micro_batches(step)
            step += 1

    def state(self) -> SourceState | None:
        return None
