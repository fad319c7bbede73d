"""Samples of rollouts, for people: written beside the metrics, and some of them shown."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from llmcore.storage import disk_error
from llmcore.train.samples import forget_after
from llmrl.rollout import Rollout

SHOWN_CHARACTERS = 160


class SampleLog:
    """`run/samples.jsonl`: completions with their rewards and advantages, cut at the step a run goes on from."""

    def __init__(
        self,
        path: Path | None,
        *,
        every: int,
        count: int,
        updates: int = 1,
        shown: int = 0,
        say: Callable[[str], None] = lambda _text: None,
    ) -> None:
        """Log `count` completions of a rollout if one of its `updates` is a step whose metrics are logged.

        `say` is told the first `shown` of them. Without a path nothing is logged.
        """
        self.path = path
        self.every = every
        self.count = count
        self.updates = updates
        self.shown = shown
        self.say = say

    def start(self, step: int) -> None:
        """Drop the lines of steps that will come again."""
        if self.path is not None:
            forget_after(self.path, step)

    def add(
        self, step: int, rollout: Rollout, rewards: dict[str, Tensor], total: Tensor, advantages: Tensor | None = None
    ) -> None:
        """Write the first completions of a rollout that is first used in `step` (1-based), if they are due."""
        due = step == 1 or (step + self.updates - 1) // self.every > (step - 1) // self.every
        if self.path is None or not due or not self.count:
            return
        lines = []
        for i, sample in enumerate(rollout.samples[: self.count]):
            lines.append(
                {
                    "step": step,
                    "prompt": sample.prompt.prompt[-1].content,
                    "completion": sample.text,
                    "answer": sample.prompt.answer,
                    "stopped": sample.stopped,
                    "rewards": {name: number_or_none(values[i]) for name, values in rewards.items()},
                    "reward": number_or_none(total[i]),
                    "advantage": None if advantages is None else number_or_none(advantages[i]),
                }
            )
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        except OSError as error:
            raise disk_error(self.path, error) from error
        for line in lines[: self.shown]:
            self.say(sample_line(line))


def sample_line(line: Mapping[str, Any]) -> str:
    """A sample on one line: the end of the prompt, the completion, what it earned, and by how much it was better."""
    advantage = "" if line["advantage"] is None else f" A {line['advantage']:+.2f}"
    prompt, completion = (shortened(line[name]) for name in ("prompt", "completion"))
    return f"{prompt} → {completion}{'' if line['stopped'] else ' (cut)'}  reward {line['reward']}{advantage}"


def shortened(text: str) -> str:
    """A text as a Python string, of which only the end is kept where it is long."""
    return repr(text if len(text) <= SHOWN_CHARACTERS else f"…{text[-SHOWN_CHARACTERS:]}")


def number_or_none(value: Tensor) -> float | None:
    """A scalar as JSON has it: it knows no NaN."""
    number = float(value)
    return round(number, 6) if number == number else None
