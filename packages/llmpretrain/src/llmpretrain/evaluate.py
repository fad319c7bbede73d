"""Held-out loss in nats per token and in bits per byte, which compares across tokenizers and with gzip."""

import math
from typing import NamedTuple

import numpy as np
import torch

from llmcore.intervals import Interval, ratio
from llmcore.losses import token_logprobs
from llmcore.model.transformer import Transformer
from llmcore.shards import TokenShards
from llmcore.tokenizer import Tokenizer

ROWS = 16


class HeldOut(NamedTuple):
    """Loss on held-out text; the interval of its bits per byte is over windows."""

    loss: float
    """Nats per token."""
    bits_per_byte: Interval
    """Nats / (ln 2 · bytes of text); tokens that stand for no text, as document ends, are in neither."""
    windows: int
    """How many windows were scored."""


def held_out(model: Transformer, shards: TokenShards, tokenizer: Tokenizer, *, windows: int | None = None) -> HeldOut:
    """Score windows of the context length, spread evenly over the split (all of them if None)."""
    length = min(model.config.context, len(shards))
    total = max((len(shards) - 1) // (length - 1), 1)
    chosen = np.unique(np.linspace(0, total - 1, min(windows or total, total)).astype(np.int64)) * (length - 1)
    lengths = torch.from_numpy(tokenizer.byte_lengths.astype(np.int64))
    device = next(model.parameters()).device
    nats, text_nats, text_bytes = [], [], []
    with torch.inference_mode():
        for i in range(0, len(chosen), ROWS):
            ids = torch.from_numpy(shards.windows(chosen[i : i + ROWS], length))
            losses = -token_logprobs(model, ids.to(device)).cpu().double()  # (B, T-1)
            sizes = lengths[ids[:, 1:]]
            nats.append(losses.sum(1))
            text_nats.append(torch.where(sizes > 0, losses, 0).sum(1))
            text_bytes.append(sizes.sum(1))
    loss = float(torch.cat(nats).sum()) / (len(chosen) * (length - 1))
    bits = torch.cat(text_nats).numpy() / math.log(2)
    return HeldOut(loss, ratio(bits, torch.cat(text_bytes).numpy()), len(chosen))
