"""Chats as training rows: the loss falls on what the assistant says and on the token that ends its turn."""

from collections import Counter
from collections.abc import Sequence
from itertools import compress
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from llmcore.batching import LengthBuckets, pad_rows
from llmcore.chat import Rendered, render_chat
from llmcore.errors import DataError
from llmcore.losses import Batch
from llmcore.records import Chat
from llmcore.tokenizer import Tokenizer
from llmcore.train.config import TrainConfig
from llmsft.packing import Packed, pack


class ChatBatch(NamedTuple):
    """Rows of token ids with what supervised fine-tuning needs to know of them."""

    ids: Tensor
    """(B, T) long."""
    mask: Tensor
    """(B, T) bool: this token is a target."""
    documents: Tensor | None
    """(B, T) long: the conversations of packed rows."""
    lengths: Tensor
    """(B, T) long: tokens of the conversation that a token is in."""
    competence: float | None = None
    """The share of the data that the curriculum has opened."""

    @property
    def plain(self) -> Batch:
        """What the next-token loss needs."""
        return Batch(self.ids, self.mask, self.documents)


class Order(Protocol):
    """Which rows a step sees: a function of (seed, step)."""

    def rows_of(self, step: int) -> np.ndarray:
        """Their numbers."""
        ...

    def competence(self, step: int) -> float | None:
        """The share of the rows that is open; None where all of them always are."""
        ...


class Rows(NamedTuple):
    """Conversations as ids and masks, each with its number among the records, and what became of the others."""

    rendered: list[Rendered]
    numbers: list[int]
    counts: dict[str, int]


class ChatBatches:
    """The micro-batches of each step, padded or packed."""

    def __init__(
        self,
        rows: Sequence[Rendered],
        *,
        pad_id: int,
        train: TrainConfig,
        order: Order | None = None,
        pair_cost: float | None = None,
        max_length: int,
    ) -> None:
        """`order` is shuffled epochs if it is absent; with a `pair_cost` rows are packed; none passes `max_length`."""
        self.rows, self.pad_id, self.train = rows, pad_id, train
        self.pair_cost, self.max_length = pair_cost, max_length
        self.order = order or Epochs(rows, train, sort=pair_cost is None)

    def data_rows(self, step: int) -> list[int]:
        """Which of the rows a step sees, in the order of their batches."""
        return [int(row) for row in self.order.rows_of(step)]

    def micro_batches(self, step: int) -> list[ChatBatch]:
        """The micro-batches of one optimizer step."""
        numbers = self.order.rows_of(step)
        competence = self.order.competence(step)
        size = self.train.rows
        pieces = [[self.rows[i] for i in numbers[start : start + size]] for start in range(0, len(numbers), size)]
        return [self.batch(piece)._replace(competence=competence) for piece in pieces]

    def batch(self, rows: Sequence[Rendered]) -> ChatBatch:
        """Some rows, as they are trained on."""
        if self.pair_cost is None:
            return padded_batch(rows, self.pad_id, limit=self.max_length)
        packed = pack([len(row.ids) for row in rows], limit=self.max_length, pair_cost=self.pair_cost)
        return packed_batch(rows, packed, self.pad_id)


class Epochs:
    """Every row once an epoch; if `sort`, neighbours in length share a batch, which packed rows need not."""

    def __init__(self, rows: Sequence[Rendered], train: TrainConfig, *, sort: bool) -> None:
        lengths = [len(row.ids) if sort else 0 for row in rows]
        self.buckets = LengthBuckets(lengths, batch=train.batch, seed=train.seed)

    def rows_of(self, step: int) -> np.ndarray:
        """Row numbers of one step."""
        return self.buckets.rows_of(step)

    def competence(self, step: int) -> None:  # noqa: ARG002
        """All rows are open from the start."""
        return None


def numbered_rows(
    chats: Sequence[Chat], tokenizer: Tokenizer, *, max_length: int, completion_only_loss: bool = False
) -> Rows:
    """Conversations as ids and masks, cut at `max_length`; those without a trained token are dropped and counted."""
    rows = Rows([], [], {})
    counts: Counter[str] = Counter(rows=len(chats))
    for number, chat in enumerate(chats):
        full = render_chat(chat.messages, tokenizer)
        if completion_only_loss:
            full = last_answer(full)
        row = Rendered(full.ids[:max_length], full.mask[:max_length])
        kept = any(row.mask[1:])
        counts[what_was_cut(full, row, kept=kept)] += 1
        if kept:
            rows.rendered.append(row)
            rows.numbers.append(number)
    counts["trained tokens"] = sum(sum(row.mask) for row in rows.rendered)
    counts["tokens in rows"] = sum(len(row.ids) for row in rows.rendered)
    del counts["whole"]
    rows.counts.update(counts)
    return rows


def check_dropped(rows: Rows, *, allowed: float, max_length: int) -> None:
    """More than the allowed share of the conversations without a target is an error, and so is no target at all."""
    dropped = rows.counts["rows"] - len(rows.rendered)
    if not rows.rendered or dropped > allowed * rows.counts["rows"]:
        raise DataError(
            f"{dropped} of {rows.counts['rows']} conversations have no assistant token left within {max_length} tokens",
            hint="shorten them, raise data.max_length, or allow it with data.max_dropped=1",
        )


WHOLE, ANSWER_CUT, ASIDE_CUT = "whole", "truncated: an answer was cut", "truncated: behind the last answer"
ANSWER_LOST, NO_ANSWER = "dropped: the answer begins beyond max_length", "dropped: no assistant token"


def what_was_cut(full: Rendered, row: Rendered, *, kept: bool) -> str:
    """Why a row is shorter than its conversation, or not there."""
    if not kept:
        return ANSWER_LOST if any(full.mask[1:]) else NO_ANSWER
    if len(row.ids) == len(full.ids):
        return WHOLE
    return ANSWER_CUT if sum(row.mask) < sum(full.mask) else ASIDE_CUT


def last_answer(row: Rendered) -> Rendered:
    """The same with targets in the assistant's last turn alone."""
    last = max(compress(range(len(row.mask)), row.mask), default=-1)
    first = last
    while first > 0 and row.mask[first - 1]:
        first -= 1
    return row._replace(mask=[trained and place >= first for place, trained in enumerate(row.mask)])


def padded_batch(rows: Sequence[Rendered], pad_id: int, *, limit: int | None = None) -> ChatBatch:
    """Each row by itself, right-padded to one length of at most `limit`."""
    ids = pad_rows([row.ids for row in rows], value=pad_id, limit=limit)
    mask = pad_rows([row.mask for row in rows], value=0, limit=limit).to(torch.bool)
    mask[:, 0] = False
    lengths = torch.tensor([len(row.ids) for row in rows]).unsqueeze(1).expand(ids.shape)
    return ChatBatch(ids, mask, None, lengths)


def packed_batch(rows: Sequence[Rendered], packed: Packed, pad_id: int) -> ChatBatch:
    """Several rows in one; padding is a document of its own, and no document's first token is a target."""
    shape = (len(packed.rows), packed.width)
    ids, mask = np.full(shape, pad_id, dtype=np.int64), np.zeros(shape, dtype=bool)
    documents, lengths = np.full(shape, len(rows), dtype=np.int64), np.ones(shape, dtype=np.int64)
    for place, numbers in enumerate(packed.rows):
        start = 0
        for number in numbers:
            row = rows[number]
            here = (place, slice(start, start + len(row.ids)))
            ids[here], mask[here], documents[here], lengths[here] = row.ids, row.mask, number, len(row.ids)
            mask[place, start] = False
            start += len(row.ids)
    make = torch.from_numpy
    return ChatBatch(make(ids), make(mask), make(documents), make(lengths))
