"""Rollouts as the source of a run's steps."""

from collections.abc import Mapping

import pytest
import torch
from pydantic import JsonValue

from llmcore.errors import TrainingError
from llmrl.experience import Experience, Experiences


class Greedy:
    """An algorithm whose rollouts need more memory than there is."""

    def experience(self, number: int, *, step: int) -> Experience:
        assert (number, step) == (3, 3)
        ids = torch.empty(1 << 50, dtype=torch.long)
        return Experience(ids, ids.bool(), ids.float())

    def begin(self) -> None: ...

    def enough(self) -> bool:
        return False

    def controllers(self) -> dict[str, JsonValue]:
        return {}

    def restore(self, controllers: Mapping[str, JsonValue]) -> None: ...


def test_not_enough_memory_for_rollouts_names_the_settings_of_rollouts() -> None:
    steps = Experiences(Greedy(), seed=0).steps_from(3)
    said = r"not enough memory for the rollouts of step 4: (.|\n)*lower rollout\.max_completion_length or train\.batch"
    with pytest.raises(TrainingError, match=said):
        next(steps)
