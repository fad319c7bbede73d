"""torch's optimizers without torch's compiler.

Every public method of a torch optimizer is wrapped so that `torch.compile` leaves it alone, and the wrapper imports the
whole compiler at its first call: as long again as importing torch itself, in every process that trains. What the
wrappers hide is used here directly; where a version of torch hides nothing, these are torch's classes as they are.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch

Closure = Callable[[], float] | None


class QuickAdamW(torch.optim.AdamW):
    """`torch.optim.AdamW`, to the bit."""

    add_param_group = inspect.unwrap(torch.optim.AdamW.add_param_group)
    state_dict = inspect.unwrap(torch.optim.AdamW.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.AdamW.load_state_dict)
    zero_grad = inspect.unwrap(torch.optim.AdamW.zero_grad)

    @torch.no_grad()
    def step(self, closure: Closure = None) -> Any:
        """One update."""
        return inspect.unwrap(torch.optim.AdamW.step)(self, closure)


class QuickSGD(torch.optim.SGD):
    """`torch.optim.SGD`, to the bit."""

    add_param_group = inspect.unwrap(torch.optim.SGD.add_param_group)
    state_dict = inspect.unwrap(torch.optim.SGD.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.SGD.load_state_dict)
    zero_grad = inspect.unwrap(torch.optim.SGD.zero_grad)

    @torch.no_grad()
    def step(self, closure: Closure = None) -> Any:
        """One update."""
        return inspect.unwrap(torch.optim.SGD.step)(self, closure)
