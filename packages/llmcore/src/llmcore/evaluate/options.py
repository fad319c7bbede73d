"""The options of an item as rows of tokens, and from which token on they are scored.

A row is the whole text, encoded at once, as it would stand in a document: after the beginning-of-text token, where the
tokenizer has one. Scored are the tokens after those that the context, encoded alone, begins with alike in every option:
a merge that reaches across the boundary (`Answer: ` + `A` is `Answer:` and ` A`) so belongs to the option, and all
options of a context are compared given the same tokens. Without any token before (no context, no beginning-of-text
token) the end-of-text token, which separates documents, stands in front.
"""

from collections.abc import Sequence
from typing import NamedTuple

from llmcore.chat import render_chat
from llmcore.evaluate.tasks import Item
from llmcore.records import Message
from llmcore.scoring import scored_row
from llmcore.tokenizer import Tokenizer


class Scored(NamedTuple):
    """A row of tokens; from `start` on they are scored, each given all before it."""

    ids: list[int]
    start: int


class Rows(NamedTuple):
    """One item's options as rows; none if they do not fit the model's context."""

    options: list[Scored]
    cut: bool
    """Whether the beginning of a context was cut off to fit."""


def text_rows(items: Sequence[Item], tokenizer: Tokenizer, *, context: int) -> list[Rows]:
    """Items as text, for a model with this context."""
    begin = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    texts = [part for item in items for option in item.options for part in (option.context, "".join(option))]
    encoded = iter(tokenizer.encode_batch(texts))
    found = []
    for item in items:
        contexts, wholes = [], []
        for _ in item.options:
            contexts.append(begin + next(encoded))
            wholes.append(begin + next(encoded))
        starts = shared_starts(contexts, wholes)
        front = [] if min(starts) else [tokenizer.eos_id]
        rows = [Scored(front + ids, len(front) + start) for ids, start in zip(wholes, starts, strict=True)]
        found.append(fitted(rows, kept=len(begin or front), context=context))
    return found


def chat_rows(items: Sequence[Item], tokenizer: Tokenizer, *, context: int) -> list[Rows]:
    """Questions in the user's turn and choices as the assistant's answer, in the model's chat format, without its end.

    A question that does not fit is left out: what would be cut off is not its beginning but the format's.
    """
    found = []
    for item in items:
        assert item.question is not None, "not a question"
        prompt = [Message(role="user", content=item.question)]
        before = render_chat(prompt, tokenizer, generation_prompt=True).ids
        wholes = [scored_row(prompt, option.continuation.strip(), tokenizer, ended=False) for option in item.options]
        starts = shared_starts([before] * len(wholes), wholes)
        rows = [Scored(ids, start) for ids, start in zip(wholes, starts, strict=True)]
        found.append(Rows(rows if max(map(len, wholes)) <= context + 1 else [], False))
    return found


def shared_starts(contexts: Sequence[Sequence[int]], wholes: Sequence[Sequence[int]]) -> list[int]:
    """For each option, how many tokens its whole and its context begin with alike, in all options of that context."""
    starts: dict[tuple[int, ...], int] = {}
    for ids, whole in zip(contexts, wholes, strict=True):
        key = tuple(ids)
        starts[key] = min(starts.get(key, len(ids)), common(ids, whole))
    return [starts[tuple(ids)] for ids in contexts]


def common(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens two rows begin with alike, the last of the second left out: something is to be scored."""
    limit = min(len(left), len(right) - 1)
    return next((i for i in range(limit) if left[i] != right[i]), limit)


def fitted(rows: Sequence[Scored], *, kept: int, context: int) -> Rows:
    """The rows without what is too long, cut off behind the first `kept` tokens: one length for all of one item.

    The last token is scored and never read, so a row may have one token more than the context.
    """
    over = max(len(row.ids) for row in rows) - (context + 1)
    if over <= 0:
        return Rows(list(rows), False)
    if any(row.start - over < max(kept, 1) for row in rows):
        return Rows([], False)
    return Rows([Scored(row.ids[:kept] + row.ids[kept + over :], row.start - over) for row in rows], True)
