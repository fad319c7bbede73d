"""Which share of the tokens each expert serves, layer by layer, on given tokens."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from llmcore.model.transformer import Transformer
from llmmoe.router import Router, Routing


def expert_usage(model: Transformer, batches: Iterable[Tensor]) -> dict[str, list[float]]:
    """The shares of assignments, by layer name, summing to 1; each batch is (B, T) ids."""
    counts: dict[str, Tensor] = {}
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, Router):
            layer = name.removesuffix(".router")
            counts[layer] = torch.zeros(len(module.weight), dtype=torch.long)
            handles.append(module.register_forward_hook(counter(counts[layer])))
    training, device = model.training, next(model.parameters()).device
    model.eval()
    try:
        with torch.inference_mode():
            for ids in batches:
                model.hidden(ids.to(device))
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return {layer: (count / count.sum().clamp(min=1)).tolist() for layer, count in counts.items()}


def evenness(shares: list[float]) -> float:
    """Entropy of the shares over that of even ones: 1 when all serve alike, 0 when one serves all."""
    if len(shares) == 1:
        return 1.0
    return -sum(share * math.log(share) for share in shares if share > 0) / math.log(len(shares))


def counter(counts: Tensor) -> Callable[[nn.Module, tuple[Tensor], Routing], None]:
    """A forward hook that adds how often each expert was chosen."""

    def count(_router: nn.Module, _inputs: tuple[Tensor], routing: Routing) -> None:
        counts.add_(torch.bincount(routing.chosen.flatten().cpu(), minlength=len(counts)))

    return count
