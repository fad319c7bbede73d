"""Pairs of answers to rows of tokens and batches: which pairs a step sees is a function of (seed, step) alone."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from llmcore.batching import LengthBuckets, pad_rows
from llmcore.errors import DataError
from llmcore.records import Preference
from llmcore.scoring import scored_row
from llmcore.tokenizer import Tokenizer
from llmcore.train.config import TrainConfig
from llmcore.train.source import SourceState
from llmreward.config import RewardData
from llmreward.loss import PairBatch


class Pair(NamedTuple):
    """Two conversations with one prompt, as tokens."""

    chosen: list[int]
    rejected: list[int]
    margin: float
    """NaN where the data gives none."""


class Pairs(NamedTuple):
    """Tokenized pairs, and what became of the others: counts by reason."""

    kept: list[Pair]
    sources: list[int]
    """The number of each kept pair's record."""
    counts: Mapping[str, int]


def tokenize_pairs(records: Sequence[Preference], tokenizer: Tokenizer, *, data: RewardData, context: int) -> Pairs:
    """Render both sides of each preference; pairs that cannot be told apart, or are too long, are counted by reason."""
    limit = min(data.max_length or context, context)
    kept: list[Pair] = []
    sources: list[int] = []
    counts: Counter[str] = Counter()
    for number, record in enumerate(records):
        chosen, rejected = (scored_row(record.prompt, side, tokenizer) for side in (record.chosen, record.rejected))
        if max(len(chosen), len(rejected)) > limit:
            if data.long == "drop":
                counts["dropped_too_long"] += 1
                continue
            counts["cut"] += 1
            chosen, rejected = cut_pair(chosen, rejected, limit=limit, keep_first=tokenizer.bos_id is not None)
        if chosen == rejected:
            counts["dropped_equal"] += 1
            continue
        kept.append(Pair(chosen, rejected, math.nan if record.margin is None else record.margin))
        sources.append(number)
    counts["pairs"] = len(kept)
    return Pairs(kept, sources, dict(counts))


def cut_pair(chosen: list[int], rejected: list[int], *, limit: int, keep_first: bool) -> tuple[list[int], list[int]]:
    """Cut both sides alike: answers lose their ends, the shared beginning loses its start, to `limit` tokens.

    A quarter of the limit is kept for the end of what both share. An answer without its end has no end-of-turn, as a
    completion that was stopped by length has none.
    """
    shared = shared_length(chosen, rejected)
    first = int(keep_first and shared > 0)
    room = limit - min(shared, max(limit // 4, first + 1))
    tails = [side[shared : shared + room] for side in (chosen, rejected)]
    left = limit - max(len(tail) for tail in tails)
    start = max(shared - (left - first), first)
    head = chosen[:first] + chosen[start:shared]
    return head + tails[0], head + tails[1]


def shared_length(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens both rows begin with alike."""
    same = (i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b)
    return next(same, min(len(left), len(right)))


def check_dropped(counts: Mapping[str, int], *, allowed: float) -> None:
    """Refuse data of which nothing, or less than the settings allow, can be used."""
    dropped = {name.removeprefix("dropped_"): n for name, n in counts.items() if name.startswith("dropped_")}
    total = counts["pairs"] + sum(dropped.values())
    reasons = ", ".join(f"{n} {name}" for name, n in sorted(dropped.items()))
    if counts["pairs"] == 0:
        raise DataError(f"no pair of {total} can be learned from ({reasons or 'the split is empty'})")
    if sum(dropped.values()) > allowed * total:
        raise DataError(
            f"{sum(dropped.values())} of {total} pairs would be dropped ({reasons}), "
            f"more than data.max_dropped={allowed} of them",
            hint="mend or shorten them, or allow it: data.max_dropped=1, data.long=cut",
        )


class PreferenceBatches:
    """Batches of pairs of similar length, each pair once per epoch in an order drawn anew."""

    def __init__(self, pairs: Sequence[Pair], *, pad_id: int, context: int, train: TrainConfig) -> None:
        self.pairs = pairs
        self.pad_id = pad_id
        self.context = context
        self.train = train
        lengths = [max(len(pair.chosen), len(pair.rejected)) for pair in pairs]
        self.buckets = LengthBuckets(lengths, batch=train.batch, seed=train.seed)

    def steps_from(self, start: int, state: SourceState | None = None) -> Iterator[Sequence[PairBatch]]:  # noqa: ARG002
        """Yield each step's micro-batches, for ever, from step `start`."""
        step = start
        while True:
            yield self.micro_batches(step)
            step += 1

    def state(self) -> SourceState | None:
        """Nothing: the step number is all that a resume needs."""
        return None

    def micro_batches(self, step: int) -> list[PairBatch]:
        """The micro-batches of one optimizer step."""
        rows = self.buckets.rows_of(step)
        size = self.train.rows
        return [self.batch_of(rows[i : i + size]) for i in range(0, len(rows), size)]

    def batch_of(self, numbers: np.ndarray) -> PairBatch:
        pairs = [self.pairs[number] for number in numbers]
        return pair_batch(pairs, pad_id=self.pad_id, context=self.context)


def pair_batch(pairs: Sequence[Pair], *, pad_id: int, context: int) -> PairBatch:
    """Both sides of some pairs in one batch, (2B, T)."""
    rows = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    return PairBatch(
        ids=pad_rows(rows, value=pad_id)[:, :context],
        lengths=torch.tensor([len(row) for row in rows]),
        margins=torch.tensor([pair.margin for pair in pairs], dtype=torch.float32),
    )
