"""Prompts rendered for generation; which of them a rollout has is a function of (seed, number)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from llmcore.chat import render_chat
from llmcore.errors import DataError
from llmcore.records import Prompt, load_records
from llmcore.tokenizer import Tokenizer


class Prompts:
    """Prompts rendered for generation; those too long for the context are dropped and counted."""

    def __init__(
        self,
        records: Sequence[Prompt],
        tokenizer: Tokenizer,
        *,
        longest: int,
        max_dropped: float = 0.0,
        hint: str = "shorten them",
    ) -> None:
        """Raises DataError, with the `hint`, where more than `max_dropped` of them have over `longest` tokens."""
        rendered = [render_chat(record.prompt, tokenizer, generation_prompt=True).ids for record in records]
        kept = [i for i, ids in enumerate(rendered) if len(ids) <= longest]
        dropped = len(records) - len(kept)
        if not kept or dropped > max_dropped * len(records):
            raise DataError(
                f"{dropped} of {len(records)} prompts have more than {longest} tokens (the longest "
                f"{max(map(len, rendered), default=0)}), which with the completion is more than the model's context",
                hint=hint,
            )
        self.records = [records[i] for i in kept]
        self.ids = [rendered[i] for i in kept]
        self.counts = {"prompts": len(kept), "dropped: too long": dropped}

    def draw(self, seed: int, number: int, count: int) -> list[int]:
        """The prompts of one rollout: epochs are permutations, and rollout `number` takes the next `count` of them."""
        total = len(self.records)
        drawn: list[int] = []
        place = number * count
        while len(drawn) < count:
            epoch, start = divmod(place, total)
            order = np.random.default_rng([seed, epoch]).permutation(total)
            piece = order[start : start + count - len(drawn)].tolist()
            drawn += piece
            place += len(piece)
        return drawn

    def draw_again(self, seed: int, number: int, attempt: int, count: int) -> list[int]:
        """Other prompts for attempt `attempt` of a rollout, a function of the three."""
        chosen = np.random.default_rng([seed, number, attempt]).integers(len(self.records), size=count)
        return [int(place) for place in chosen]


def held_out_prompts(path: Path) -> list[Prompt]:
    """The prompts at `path` that no run learns from; DataError where there are none."""
    records, _ = load_records(path, Prompt, "valid")
    if not records:
        raise DataError(f"{str(path)!r} has no held-out prompt", hint="give two prompts or more")
    return records
