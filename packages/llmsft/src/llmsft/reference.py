"""What a reference checkpoint finds hard: computed once a run, and kept beside it with a hash of what it is of."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from llmcore.chat import Rendered
from llmcore.losses import token_logprobs
from llmcore.model.transformer import Transformer
from llmcore.storage import read_regular, write_durably
from llmsft.batches import padded_batch
from llmsft.curriculum import Scores

NAME = "difficulty.json"
ROWS = 64
LARGEST = 1 << 30


def stored_losses(folder: Path, model: Transformer, rows: Sequence[Rendered], *, pad_id: int, reference: str) -> Scores:
    """`row_losses`, read from `folder` if they are there and of the same rows and the reference of this id."""
    path, wanted = folder / NAME, fingerprint(rows, reference)
    if path.exists():
        stored = json.loads(read_regular(path, limit=LARGEST))
        if stored["of"] == wanted:
            return np.array(stored["nats"], dtype=np.float64)
    losses = row_losses(model, rows, pad_id=pad_id)
    write_durably(path, json.dumps({"of": wanted, "nats": losses.tolist()}).encode())
    return losses


def fingerprint(rows: Sequence[Rendered], reference: str) -> str:
    """A hash of what the losses are of."""
    digest = hashlib.sha256(reference.encode())
    for row in rows:
        digest.update(json.dumps(row).encode())
    return digest.hexdigest()


@torch.inference_mode()
def row_losses(model: Transformer, rows: Sequence[Rendered], *, pad_id: int) -> Scores:
    """Nats per trained token of each row under a model."""
    losses = np.zeros(len(rows))
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
    device = next(model.parameters()).device
    for start in range(0, len(order), ROWS):
        numbers = order[start : start + ROWS]
        batch = padded_batch([rows[i] for i in numbers], pad_id, limit=model.config.context).plain.to(device)
        mask = batch.mask[:, 1:]
        logprobs = token_logprobs(model, batch.ids)
        losses[numbers] = (-(logprobs * mask).sum(1) / mask.sum(1)).double().cpu().numpy()
    return losses
