"""Chats as training rows: the loss falls on what the assistant says and on the token that ends its turn."""

from collections import Counter
from collections.abc import Sequence

import torch

from llmcore.batching import LengthBuckets, pad_rows
from llmcore.chat import Rendered, render_chat
from llmcore.errors import DataError
from llmcore.losses import Batch
from llmcore.records import Chat
from llmcore.tokenizer import Tokenizer
from llmcore.train.config import TrainConfig


class ChatBatches:
    """Rendered conversations in length-bucketed batches; `counts` says what was truncated and dropped, and why."""

    def __init__(
        self, chats: Sequence[Chat], tokenizer: Tokenizer, *, max_length: int, max_dropped: float, train: TrainConfig
    ) -> None:
        self.rows, self.counts = render_rows(chats, tokenizer, max_length=max_length)
        dropped = len(chats) - len(self.rows)
        if not self.rows or dropped > max_dropped * len(chats):
            raise DataError(
                f"{dropped} of {len(chats)} conversations have no assistant token left within {max_length} tokens",
                hint="shorten them, raise data.max_length, or allow it with data.max_dropped=1",
            )
        self.pad_id = tokenizer.pad_id
        self.train = train
        self.buckets = LengthBuckets([len(row.ids) for row in self.rows], batch=train.batch, seed=train.seed)

    def micro_batches(self, step: int) -> list[Batch]:
        """The micro-batches of one optimizer step."""
        rows = [self.rows[i] for i in self.buckets.rows_of(step)]
        size = self.train.rows
        return [chat_batch(rows[i : i + size], self.pad_id) for i in range(0, len(rows), size)]


def render_rows(
    chats: Sequence[Chat], tokenizer: Tokenizer, *, max_length: int
) -> tuple[list[Rendered], dict[str, int]]:
    """Conversations as ids and masks, cut at `max_length`; those without a trained token are dropped and counted."""
    rows: list[Rendered] = []
    counts: Counter[str] = Counter(rows=len(chats))
    for chat in chats:
        full = render_chat(chat.messages, tokenizer)
        row = Rendered(full.ids[:max_length], full.mask[:max_length])
        counts["truncated"] += len(full.ids) > max_length
        if any(row.mask[1:]):
            rows.append(row)
        else:
            counts["dropped: no assistant token"] += 1
    counts["trained tokens"] = sum(sum(row.mask) for row in rows)
    counts["tokens"] = sum(len(row.ids) for row in rows)
    return rows, dict(counts)


def chat_batch(rows: Sequence[Rendered], pad_id: int) -> Batch:
    """Rendered rows as one right-padded batch, ids and mask (B, T)."""
    ids = pad_rows([row.ids for row in rows], value=pad_id)
    mask = pad_rows([row.mask for row in rows], value=0).to(torch.bool)
    mask[:, 0] = False
    return Batch(ids=ids, mask=mask)
