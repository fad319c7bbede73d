"""Preferences to rows of tokens and batches: which prompts a step sees is a function of (seed, step) alone."""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from llmcore.batching import LengthBuckets
from llmcore.branches import largest_tree, lay_out, shared_length
from llmcore.errors import DataError
from llmcore.records import Message, Preference
from llmcore.scoring import scored_row
from llmcore.tokenizer import Tokenizer
from llmcore.train.config import TrainConfig
from llmcore.train.source import SourceState
from llmreward.config import RewardData
from llmreward.loss import PreferenceBatch


class Comparison(NamedTuple):
    """Which of a group's answers is better than which."""

    better: int
    worse: int
    margin: float = math.nan
    """NaN where the data gives none."""


class Group(NamedTuple):
    """Answers to one prompt as rows of tokens, each once, and the comparisons among them."""

    rows: list[list[int]]
    comparisons: list[Comparison]
    answers: Sequence[str] = ()
    """The answers' texts."""


class Groups(NamedTuple):
    """Tokenized preferences, and what became of the pairs: counts by reason."""

    kept: list[Group]
    counts: Mapping[str, int]


def tokenize_groups(records: Sequence[Preference], tokenizer: Tokenizer, *, data: RewardData, context: int) -> Groups:
    """Render the answers of each prompt; pairs that cannot be told apart, or are too long, are counted by reason."""
    limit = min(data.max_length or context, context)
    kept: list[Group] = []
    counts: Counter[str] = Counter({"pairs": 0})
    for together in by_prompt(records, data) if data.group == "prompt" else ([record] for record in records):
        whole = render_group(together, tokenizer)
        group = within(limit, whole, data=data, keep_first=tokenizer.bos_id is not None, counts=counts)
        counts["pairs"] += len(group.comparisons)
        kept += [group] if group.comparisons else []
    counts["prompts"] = len(kept)
    return Groups(kept, {name: count for name, count in counts.items() if count or name in ("pairs", "prompts")})


def by_prompt(records: Sequence[Preference], data: RewardData) -> Iterator[list[Preference]]:
    """The pairs of each prompt together, of at most `data.answers` different answers."""
    prompts: dict[tuple[Message, ...], list[Preference]] = {}
    for record in records:
        prompts.setdefault(record.prompt, []).append(record)
    for pairs in prompts.values():
        together: list[Preference] = []
        answers: set[str] = set()
        for pair in pairs:
            more = answers | {pair.chosen, pair.rejected}
            if together and len(more) > data.answers:
                yield together
                together, more = [], {pair.chosen, pair.rejected}
            together.append(pair)
            answers = more
        yield together


def render_group(pairs: Sequence[Preference], tokenizer: Tokenizer) -> Group:
    """The answers of one prompt, each once, and the comparisons among them."""
    answers = list(dict.fromkeys(side for pair in pairs for side in (pair.chosen, pair.rejected)))
    number = {answer: n for n, answer in enumerate(answers)}
    comparisons = [
        Comparison(number[pair.chosen], number[pair.rejected], math.nan if pair.margin is None else pair.margin)
        for pair in pairs
    ]
    return Group([scored_row(pairs[0].prompt, answer, tokenizer) for answer in answers], comparisons, answers)


def within(limit: int, group: Group, *, data: RewardData, keep_first: bool, counts: Counter[str]) -> Group:
    """The group with rows of at most `limit` tokens, and without comparisons that say nothing."""
    rows, comparisons = group.rows, group.comparisons
    long = [len(row) > limit for row in rows]
    if any(long) and data.long == "drop":
        comparisons, dropped = divide(comparisons, lambda one: not long[one.better] and not long[one.worse])
        counts["dropped_too_long"] += dropped
    elif any(long):
        counts["cut"] += len(comparisons)
        rows = cut_rows(rows, limit=limit, keep_first=keep_first)
    comparisons, dropped = divide(comparisons, lambda one: rows[one.better] != rows[one.worse])
    counts["dropped_equal"] += dropped
    used = sorted({n for one in comparisons for n in (one.better, one.worse)})
    place = {n: number for number, n in enumerate(used)}
    return Group(
        [rows[n] for n in used],
        [Comparison(place[one.better], place[one.worse], one.margin) for one in comparisons],
        [group.answers[n] for n in used],
    )


def divide(comparisons: Sequence[Comparison], keep: Callable[[Comparison], bool]) -> tuple[list[Comparison], int]:
    """The comparisons to keep, and how many others there are."""
    kept = [one for one in comparisons if keep(one)]
    return kept, len(comparisons) - len(kept)


def cut_rows(rows: Sequence[list[int]], *, limit: int, keep_first: bool) -> list[list[int]]:
    """Cut all rows alike: answers lose their ends, the shared beginning loses its start, to `limit` tokens.

    A quarter of the limit is kept for the end of what all share. An answer without its end has no end-of-turn, as a
    completion that was stopped by length has none.
    """
    shared = shared_length(rows)
    first = int(keep_first and shared > 0)
    room = limit - min(shared, max(limit // 4, first + 1))
    tails = [row[shared : shared + room] for row in rows]
    left = limit - max(len(tail) for tail in tails)
    start = max(shared - (left - first), first)
    head = rows[0][:first] + rows[0][start:shared]
    return [head + tail for tail in tails]


def check_margins(records: Sequence[Preference]) -> None:
    """Refuse a margin that would make the worse answer the better one."""
    for record in records:
        if record.margin is not None and record.margin < 0:
            raise DataError(
                f"a pair has the margin {record.margin!r}, but a margin says by how much chosen is better: "
                f"{record.chosen[:40]!r} over {record.rejected[:40]!r}",
                hint="swap its answers, or remove the margin; llmreward check finds all such rows",
            )


def check_dropped(counts: Mapping[str, int], *, allowed: float) -> None:
    """Refuse data of which nothing, or less than the settings allow, can be used."""
    dropped = {name.removeprefix("dropped_"): n for name, n in counts.items() if name.startswith("dropped_")}
    total = counts["pairs"] + sum(dropped.values())
    reasons = ", ".join(f"{n} {name}" for name, n in sorted(dropped.items()))
    if counts["pairs"] == 0:
        raise DataError(
            f"no pair of {total} can be learned from ({reasons or 'the split is empty'})",
            hint="give pairs whose answers differ and fit, or a higher data.max_length",
        )
    if sum(dropped.values()) > allowed * total:
        raise DataError(
            f"{sum(dropped.values())} of {total} pairs would be dropped ({reasons}), "
            f"more than data.max_dropped={allowed} of them",
            hint="mend or shorten them, or allow it: data.max_dropped=1, data.long=cut",
        )


class PreferenceBatches:
    """Batches of prompts of similar size, each prompt once per epoch in an order drawn anew."""

    def __init__(self, groups: Sequence[Group], *, pad_id: int, share: bool, train: TrainConfig) -> None:
        self.groups = groups
        self.pad_id = pad_id
        self.share = share
        self.train = train
        lengths = [largest_tree(group.rows, share=share) for group in groups]
        self.buckets = LengthBuckets(lengths, batch=train.batch, seed=train.seed)

    def steps_from(self, start: int, state: SourceState | None = None) -> Iterator[Sequence[PreferenceBatch]]:  # noqa: ARG002
        """Yield each step's micro-batches, for ever, from step `start`."""
        step = start
        while True:
            yield self.micro_batches(step)
            step += 1

    def state(self) -> SourceState | None:
        """Nothing: the step number is all that a resume needs."""
        return None

    def data_rows(self, step: int) -> list[int]:
        """Which of the groups that are kept a step sees, in the order of their batch."""
        return [int(row) for row in self.buckets.rows_of(step)]

    def micro_batches(self, step: int) -> list[PreferenceBatch]:
        """The micro-batches of one optimizer step."""
        rows = self.buckets.rows_of(step)
        size = self.train.rows
        return [self.batch_of(rows[i : i + size]) for i in range(0, len(rows), size)]

    def batch_of(self, numbers: np.ndarray) -> PreferenceBatch:
        """The batch of some groups, by number."""
        return preference_batch([self.groups[number] for number in numbers], pad_id=self.pad_id, share=self.share)


def preference_batch(groups: Sequence[Group], *, pad_id: int, share: bool = True) -> PreferenceBatch:
    """All answers of some prompts, laid out for one forward; `share` reads each prompt once."""
    starts = np.cumsum([0, *(len(group.rows) for group in groups)]).tolist()
    families = [range(start, end) for start, end in itertools.pairwise(starts)]
    layout = lay_out([row for group in groups for row in group.rows], families, pad_id=pad_id, share=share)
    pairs = [
        (start + one.better, start + one.worse, one.margin, 1 / len(group.comparisons))
        for start, group in zip(starts, groups, strict=False)
        for one in group.comparisons
    ]
    better, worse, margins, weights = zip(*pairs, strict=True)
    return PreferenceBatch(
        layout,
        better=torch.tensor(better),
        worse=torch.tensor(worse),
        margins=torch.tensor(margins, dtype=torch.float32),
        weights=torch.tensor(weights, dtype=torch.float32),
        prompts=len(groups),
    )
