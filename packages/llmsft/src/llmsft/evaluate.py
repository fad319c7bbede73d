"""Held-out loss of policies on chats, how often their answers are right, and how far those repeat the wanted ones.

Every figure comes with its 95 % interval over conversations. Policies answer the same conversations, so how a second
one differs from the first is taken conversation by conversation.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmcore.chat import Rendered
from llmcore.errors import DataError
from llmcore.evaluate.passes import pass_at, powers
from llmcore.intervals import Interval, exponential, mean, ratio, share
from llmcore.model.transformer import Transformer
from llmcore.records import Chat
from llmcore.tokenizer import Tokenizer
from llmsft import overlap
from llmsft.answers import is_right, several_answers
from llmsft.batches import numbered_rows
from llmsft.reference import row_losses

Array = NDArray[np.float64]


class Asked(NamedTuple):
    """What one policy makes of N held-out conversations."""

    wanted: list[str]
    """(N,) the last assistant turns."""
    nats: Array
    """(N,) summed over the trained tokens that fit the context."""
    tokens: Array
    """(N,) how many those are."""
    greedy: list[str]
    """(N,) greedy answers; empty where the prompt fills the context."""
    sampled: list[list[str]]
    """(N, S) samples at temperature 1."""
    repeats: overlap.Overlap | None
    """The words that greedy answers share with the wanted ones; None without sacrebleu and rouge-score."""

    @property
    def right(self) -> dict[str, Array]:
        """(N,) the share of right answers, sampled and greedy, and of greedy ones with exactly the wanted text."""
        pairs = list(zip(self.greedy, self.wanted, strict=True))
        samples = np.array(self.right_samples) / len(self.sampled[0])
        greedy = [is_right(answer, wanted) for answer, wanted in pairs]
        exact = [answer.strip() == wanted.strip() for answer, wanted in pairs]
        return {"sampled": samples, "greedy": np.array(greedy, float), "exact_match": np.array(exact, float)}

    @property
    def passes(self) -> dict[str, Array]:
        """(N,) pass@k for k = 1, 2, 4, …, where there are several samples."""
        samples = len(self.sampled[0])
        ks = powers(samples) if samples > 1 else []
        return {f"pass@{k}": np.array([pass_at(right, samples, k) for right in self.right_samples]) for k in ks}

    @property
    def right_samples(self) -> list[int]:
        """(N,) how many samples are right."""
        return [sum(is_right(a, wanted) for a in some) for some, wanted in zip(self.sampled, self.wanted, strict=True)]


def ask(
    model: Transformer,
    chats: Sequence[Chat],
    tokenizer: Tokenizer,
    *,
    samples: int = 1,
    max_new_tokens: int = 64,
    tell: Callable[[int], None] = lambda _done: None,
) -> Asked:
    """Score conversations that end with an answer, and answer them, greedily and `samples` times at temperature 1.

    `tell` hears how many answers came.
    """
    wanted = [chat.messages[-1].content for chat in chats]
    nats, tokens = conversation_losses(model, chats, tokenizer)

    def answer(temperature: float, times: int) -> list[list[str]]:
        return several_answers(
            model, chats, tokenizer, temperature=temperature, samples=times, max_new_tokens=max_new_tokens, tell=tell
        )

    sampled = answer(1.0, samples)
    greedy = [some[0] for some in answer(0.0, 1)]
    repeats = overlap.overlap(wanted, greedy) if overlap.installed() else None
    return Asked(wanted, nats, tokens, greedy, sampled, repeats)


def figures(asked: Asked) -> dict[str, object]:
    """The figures of one policy, as JSON: `loss` in nats per trained token, `perplexity` of all tokens together, …"""
    loss = ratio(asked.nats, asked.tokens)
    found: dict[str, Interval] = {"loss_interval": loss, "perplexity_interval": exponential(loss)}
    for name, values in asked.right.items():
        whole = name != "sampled" or len(asked.sampled[0]) == 1
        found[name] = share(float(values.sum()), len(values)) if whole else mean(values)
    found |= {name: mean(values) for name, values in asked.passes.items()}
    found |= overlap.overlap_figures(asked.repeats) if asked.repeats else {}
    return {
        "loss": loss.value,
        "perplexity": math.exp(min(loss.value, 700)),
        **as_json(found),
        "asked": len(asked.wanted),
        "tokens": int(asked.tokens.sum()),
        **({"signatures": asked.repeats.signatures} if asked.repeats else {}),
    }


def gains(first: Asked, second: Asked) -> dict[str, object]:
    """How the second policy differs from the first, conversation by conversation; a gain in loss is negative."""
    found: dict[str, Interval] = {}
    if np.array_equal(first.tokens, second.tokens):  # else their tokens are not the same
        found["loss"] = ratio(second.nats - first.nats, first.tokens)
    before, after = first.right | first.passes, second.right | second.passes
    found |= {name: mean(after[name] - before[name]) for name in after}
    if first.repeats and second.repeats:
        found |= overlap.overlap_gains(first.repeats, second.repeats)
    return as_json({f"gain/{name}": figure for name, figure in found.items()})


def as_json(found: Mapping[str, Interval]) -> dict[str, object]:
    return {name: figure.as_json() for name, figure in found.items()}


def conversation_losses(model: Transformer, chats: Sequence[Chat], tokenizer: Tokenizer) -> tuple[Array, Array]:
    """(N,) nats and (N,) trained tokens of each conversation; 0 and 0 where no trained token fits the context.

    Raises DataError if none does.
    """
    rows = numbered_rows(chats, tokenizer, max_length=model.config.context)
    if not rows.numbers:
        raise DataError(
            f"no answer of {len(chats)} conversations begins within {model.config.context} tokens, the model's context",
            hint="give shorter conversations, or a model with a longer context",
        )
    nats, tokens = np.zeros(len(chats)), np.zeros(len(chats))
    nats[rows.numbers], tokens[rows.numbers] = row_sums(model, rows.rendered, pad_id=tokenizer.pad_id)
    return nats, tokens


def held_out_loss(model: Transformer, rows: Sequence[Rendered], *, pad_id: int) -> float:
    """Nats per trained token over all rows together."""
    nats, tokens = row_sums(model, rows, pad_id=pad_id)
    return float(nats.sum() / tokens.sum())


def row_sums(model: Transformer, rows: Sequence[Rendered], *, pad_id: int) -> tuple[Array, Array]:
    """(R,) nats and (R,) trained tokens of each row."""
    tokens = np.array([sum(row.mask[1:]) for row in rows], dtype=np.float64)
    return row_losses(model, rows, pad_id=pad_id) * tokens, tokens
