"""The score of a reward model as a reward."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

from llmcore.manifest import Manifest
from llmcore.scoring import load_scorer, scored_row
from llmcore.tokenizer import Tokenizer, require_same_tokenizer
from llmrl.rewards.reward import Reward, RewardFunction, Sample


class CheckpointReward(Reward):
    """The score of a reward model."""

    kind: Literal["checkpoint"] = "checkpoint"
    path: str
    """The folder that `llmreward run` wrote."""


def checkpoint_function(
    folder: Path, tokenizer: Tokenizer, *, device: torch.device | str, dtype: torch.dtype
) -> tuple[RewardFunction, Manifest]:
    """Scores by a reward model, which must read text by the policy's own tokenizer."""
    scorer = load_scorer(folder, device=device, dtype=dtype)
    require_same_tokenizer(folder, scorer.tokenizer, tokenizer, of="the policy")

    def function(samples: Sequence[Sample]) -> list[float | None]:
        rows = [scored_row(s.prompt.prompt, s.text, scorer.tokenizer, ended=s.stopped) for s in samples]
        return list(scorer.score(rows).tolist())

    return function, scorer.manifest
