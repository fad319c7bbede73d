"""Held-out loss in nats per token and in bits per byte, which compares across tokenizers and with gzip."""

import math
from typing import NamedTuple

import numpy as np
import torch
from llmcore.losses import next_token_loss
from llmcore.model.transformer import Transformer
from llmcore.shards import TokenShards

from llmpretrain.batches import window_batch

Z_95 = 1.959964
ROWS = 16


class HeldOut(NamedTuple):
    """Loss on held-out text, with the half-width of its 95 % interval over windows."""

    loss: float
    """Nats per token."""
    bits_per_byte: float
    """Nats of all tokens / (ln 2 × their text bytes); document ends count neither as nats nor as bytes."""
    half_width: float
    """Half of the 95 % interval of bits_per_byte."""


def held_out(model: Transformer, shards: TokenShards, *, windows: int | None = None) -> HeldOut:
    """Score consecutive windows of the context length, spread evenly over the split (all of them if None)."""
    length = min(model.config.context, len(shards) - 1)
    total = max((len(shards) - 1) // length, 1)
    chosen = np.unique(np.linspace(0, total - 1, min(windows or total, total)).astype(np.int64)) * length
    device = next(model.parameters()).device
    nats, tokens = [], 0
    with torch.inference_mode():
        for i in range(0, len(chosen), ROWS):
            for row in shards.windows(chosen[i : i + ROWS], length + 1):
                batch = window_batch(row[None]).to(device)
                loss = next_token_loss(model, batch)
                nats.append(float(loss.total))
                tokens += loss.count
    bytes_per_token = shards.bytes / max(len(shards) - shards.documents, 1)
    per_window = np.array(nats) / (length * bytes_per_token * math.log(2))
    spread = float(per_window.std(ddof=1)) / math.sqrt(len(per_window)) if len(per_window) > 1 else 0.0
    return HeldOut(sum(nats) / tokens, float(per_window.mean()), Z_95 * spread)
