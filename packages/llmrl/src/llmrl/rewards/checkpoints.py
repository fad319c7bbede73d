"""The score of a reward model as a reward."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

from llmcore.errors import ArtifactError
from llmcore.manifest import Manifest
from llmcore.scoring import load_scorer, scored_row
from llmcore.tokenizer import Tokenizer
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
    if scorer.tokenizer.sha256 != tokenizer.sha256:
        raise ArtifactError(
            f"{folder} has another tokenizer than the policy: "
            f"{scorer.tokenizer.sha256[:16]!r} and {tokenizer.sha256[:16]!r}",
            hint="train the reward model from this policy, or one with the same tokenizer",
        )

    def function(samples: Sequence[Sample]) -> list[float | None]:
        rows = [scored_row(s.prompt.prompt, s.text, scorer.tokenizer, ended=s.stopped) for s in samples]
        return list(scorer.score(rows).tolist())

    return function, scorer.manifest
