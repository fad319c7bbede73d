"""Held-out loss of a policy on chats, and how often its answers are right."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from llmcore.chat import render_chat
from llmcore.generate.engine import generate
from llmcore.generate.sampling import Sampling
from llmcore.intervals import Interval, share
from llmcore.literals import same_literal
from llmcore.losses import next_token_loss
from llmcore.model.transformer import Transformer
from llmcore.records import Chat
from llmcore.tokenizer import Tokenizer
from llmsft.batches import chat_batch, render_rows

ROWS = 64


class ChatScores(NamedTuple):
    """How a policy does on held-out conversations."""

    loss: float
    """Nats per trained token."""
    perplexity: float
    """exp(loss), over all tokens together."""
    sampled: Interval
    """Share of right answers, one sample each at temperature 1."""
    greedy: Interval
    """Share of right greedy answers."""
    asked: int
    """Conversations asked."""


def chat_loss(model: Transformer, chats: Sequence[Chat], tokenizer: Tokenizer) -> float:
    """Nats per trained token over all conversations together."""
    rows, _ = render_rows(chats, tokenizer, max_length=model.config.context)
    rows = sorted(rows, key=lambda row: len(row.ids))
    device = next(model.parameters()).device
    nats, tokens = 0.0, 0
    with torch.inference_mode():
        for i in range(0, len(rows), ROWS):
            batch = chat_batch(rows[i : i + ROWS], tokenizer.pad_id, limit=model.config.context)
            loss = next_token_loss(model, batch.to(device))
            nats, tokens = nats + float(loss.total), tokens + loss.count
    return nats / tokens


def answers(
    model: Transformer,
    chats: Sequence[Chat],
    tokenizer: Tokenizer,
    *,
    temperature: float,
    max_new_tokens: int = 64,
    seed: int = 0,
) -> list[str]:
    """The policy's answer to everything before the last assistant turn of each conversation."""
    prompts = [render_chat(chat.messages[:-1], tokenizer, generation_prompt=True).ids for chat in chats]
    sampling = Sampling(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
    found: list[str] = []
    for i in range(0, len(prompts), 2 * ROWS):
        samples = generate(model, prompts[i : i + 2 * ROWS], sampling, stop_ids=tokenizer.stop_ids)
        found += [tokenizer.decode(sample[0].ids) for sample in samples]
    return found


def is_right(answer: str, wanted: str) -> bool:
    """Exact match of the text, or the same Python literal written otherwise."""
    return answer.strip() == wanted.strip() or same_literal(answer, wanted)


def evaluate_chats(
    model: Transformer, chats: Sequence[Chat], tokenizer: Tokenizer, *, max_new_tokens: int = 64
) -> ChatScores:
    """Loss on all conversations, and the share of right answers, sampled and greedy."""
    loss = chat_loss(model, chats, tokenizer)
    shares = []
    for temperature in (1.0, 0.0):
        given = answers(model, chats, tokenizer, temperature=temperature, max_new_tokens=max_new_tokens)
        right = sum(is_right(a, chat.messages[-1].content) for a, chat in zip(given, chats, strict=True))
        shares.append(share(right, len(chats)))
    return ChatScores(loss, math.exp(min(loss, 700)), shares[0], shares[1], len(chats))
