"""torch's optimizers without torch's compiler.

Every public method of a torch optimizer is wrapped so that `torch.compile` leaves it alone, and the wrapper imports the
whole compiler at its first call: as long again as importing torch itself, in every process that trains. What the
wrappers hide is used here directly; where a version of torch hides nothing, these are torch's classes as they are.
"""

import inspect
from collections.abc import Callable
from typing import TypeVar

import torch

Closure = Callable[[], float] | None
T = TypeVar("T", bound=torch.optim.Optimizer)


def unwrapped(kind: type[T]) -> type[T]:
    """The class with what torch's wrappers hide; a step is taken without gradients, which its wrapper saw to."""
    for name in ("add_param_group", "state_dict", "load_state_dict", "zero_grad"):
        setattr(kind, name, inspect.unwrap(getattr(kind, name)))
    setattr(kind, "step", torch.no_grad()(inspect.unwrap(kind.step)))  # noqa: B010
    return kind


@unwrapped
class QuickAdamW(torch.optim.AdamW):
    """`torch.optim.AdamW`, to the bit."""


@unwrapped
class QuickSGD(torch.optim.SGD):
    """`torch.optim.SGD`, to the bit."""
