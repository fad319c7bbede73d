"""Scores of conversations: the one path by which reward training, evaluation and reinforcement learning do it.

    scorer = load_scorer(Path("runs/reward"))
    rewards = scorer.score([scored_row(prompt, answer, scorer.tokenizer) for answer in answers])

A reward is the scalar at the last attended token, which is the end-of-turn where the answer has one. Training fixes it
only up to a constant and a scale, so `reward.json` beside the weights holds the gain and bias that give it mean 0 and
deviation 1 over samples of the policy it began from.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from pydantic import Field, ValidationError
from torch import Tensor

from llmcore.batching import pad_rows
from llmcore.branches import Layout, row_states
from llmcore.chat import render_chat
from llmcore.checkpoint import load_checkpoint
from llmcore.config import Config, first_problem
from llmcore.errors import ArtifactError, DataError
from llmcore.manifest import Manifest
from llmcore.model.linear import widen
from llmcore.model.transformer import Transformer, last_attended, mean_attended
from llmcore.records import Message
from llmcore.storage import read_regular
from llmcore.tokenizer import Tokenizer

SCALE_FILE = "reward.json"
SCALE_VERSION = 1
ROWS = 64
TOKENS = 16384
"""At most this many rows and padded tokens in one forward."""


class RewardScale(Config):
    """How a raw score becomes a reward: gain * raw + bias."""

    schema_version: int = SCALE_VERSION
    """The version of this format; readers refuse one they do not know."""
    gain: float = Field(default=1.0, gt=0)
    """1 / the deviation of raw scores over the samples."""
    bias: float = 0.0
    """-(the mean of raw scores over the samples) * gain."""
    samples: int = Field(default=0, ge=0)
    """How many samples the two figures come from; 0 where they are not measured."""


class Scorer:
    """A reward model ready to score rows of tokens."""

    def __init__(self, model: Transformer, tokenizer: Tokenizer, manifest: Manifest, scale: RewardScale) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.manifest = manifest
        self.scale = scale

    def score(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Normalised rewards of token rows -> (rows,), float32 on the CPU, in the order given."""
        return self.raw(rows) * self.scale.gain + self.scale.bias

    def raw(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Scores as the model gives them -> (rows,); their differences are the logits that training fits."""
        return score_rows(self.model, rows, pad_id=self.tokenizer.pad_id)


def load_scorer(folder: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Scorer:
    """Load and verify a reward checkpoint; anything else is refused with one sentence."""
    model, tokenizer, manifest = load_checkpoint(folder, expect="reward", device=device)
    model.activation_dtype = dtype
    return Scorer(model, tokenizer, manifest, read_scale(folder))


def scored_row(prompt: Sequence[Message], answer: str, tokenizer: Tokenizer, *, ended: bool = True) -> list[int]:
    """The tokens that are scored: the rendered conversation up to the end-of-turn after `answer`, nothing after it.

    An answer that was stopped by length has not `ended`, and has no end-of-turn.
    """
    rendered = render_chat([*prompt, Message(role="assistant", content=answer)], tokenizer)
    end = max(i for i, trained in enumerate(rendered.mask) if trained)
    return rendered.ids[: end + 1 if ended else end]


def score_rows(model: Transformer, rows: Sequence[Sequence[int]], *, pad_id: int) -> Tensor:
    """Raw scores of rows of any lengths -> (rows,), in batches of similar length; without gradient or dropout."""
    check_lengths(rows, model.config.context)
    device = next(model.parameters()).device
    scores = torch.empty(len(rows), dtype=torch.float32)
    training = model.training
    model.eval()
    with torch.no_grad():
        for numbers in similar_lengths([len(row) for row in rows]):
            chosen = [rows[number] for number in numbers]
            ids = pad_rows(chosen, value=pad_id)[:, : model.config.context]
            lengths = torch.tensor([len(row) for row in chosen])
            scores[numbers] = sequence_scores(model, ids.to(device), lengths.to(device)).cpu()
    model.train(training)
    return scores


def sequence_scores(model: Transformer, ids: Tensor, lengths: Tensor) -> Tensor:
    """Right-padded ids (B, T), lengths (B,) -> (B,), in float32, with gradient.

    The score of the last attended token; of a model that also looks ahead, the score of the mean over its tokens.
    """
    attended = torch.arange(ids.shape[1], device=ids.device) < lengths.unsqueeze(1)  # (B, T)
    if model.config.attention.sight().causal:
        pooled = last_attended(model.hidden(ids), attended)  # (B, D)
    else:
        pooled = mean_attended(model.hidden(ids, attended=attended), attended)  # (B, D)
    return head_scores(model, pooled)


def layout_scores(model: Transformer, layout: Layout) -> Tensor:
    """The same of rows in a layout -> (N,), in float32, with gradient."""
    states, places = row_states(model, layout)  # (M, D), (N, T)
    if model.config.attention.sight().causal:
        last = places.gather(1, (layout.lengths - 1).unsqueeze(1)).squeeze(1)
        return head_scores(model, states[last])
    attended = torch.arange(places.shape[1], device=places.device) < layout.lengths.unsqueeze(1)
    return head_scores(model, mean_attended(states[places], attended))


def layout_token_scores(model: Transformer, layout: Layout) -> Tensor:
    """The score after every token of each row -> (N, T), in float32, with gradient; any number beyond a row's end."""
    states, places = row_states(model, layout)
    return head_scores(model, states)[places]


def head_scores(model: Transformer, hidden: Tensor) -> Tensor:
    """(…, D) -> (…): in float32 at least, because half precision would round scores to three digits and make ties."""
    return (widen(hidden) @ widen(model.head_weight()).T).squeeze(-1)


def scale_of(raw: Tensor) -> RewardScale:
    """The scale that gives these raw scores (N,) mean 0 and deviation 1; equal scores are only centred."""
    values = raw.double()
    deviation = float(values.std(correction=0)) if len(values) else 0.0
    gain = 1.0 / deviation if deviation > 1e-6 else 1.0
    mean = float(values.mean()) if len(values) else 0.0
    return RewardScale(gain=gain, bias=-mean * gain, samples=len(values))


def scale_bytes(scale: RewardScale) -> bytes:
    """The contents of `reward.json`."""
    return scale.model_dump_json(indent=1).encode()


def read_scale(folder: Path) -> RewardScale:
    """Read the scale that belongs to a reward checkpoint."""
    path = folder / SCALE_FILE
    try:
        raw = json.loads(read_regular(path, limit=1 << 16))
        found = raw.get("schema_version") if isinstance(raw, dict) else None
        if found != SCALE_VERSION:
            raise ArtifactError(
                f"{path} has schema version {found!r}, this llmcore reads {SCALE_VERSION}",
                hint="use the llmcore that wrote it, or train the reward model again",
            )
        return RewardScale.model_validate(raw)
    except (ValueError, ValidationError, RecursionError) as error:
        raise ArtifactError(
            f"{path} is not a reward scale: {first_problem(error)}", hint="restore it from a copy"
        ) from None


def check_lengths(rows: Sequence[Sequence[int]], context: int) -> None:
    for number, row in enumerate(rows):
        if not row:
            raise DataError(
                f"conversation {number + 1} has no tokens, so there is nothing to score",
                hint="give it a prompt and an answer",
            )
        if len(row) > context:
            raise DataError(
                f"conversation {number + 1} has {len(row)} tokens, the reward model's context is {context}",
                hint="shorten it, or train a reward model on a policy with a longer context",
            )


def similar_lengths(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Row numbers in batches of similar length, longest first, so that memory peaks at once and padding is little."""
    order = sorted(range(len(lengths)), key=lambda number: (-lengths[number], number))
    start = 0
    while start < len(order):
        size = max(1, min(ROWS, TOKENS // lengths[order[start]]))
        yield order[start : start + size]
        start += size
