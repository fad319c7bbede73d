"""Weights & Biases: metrics, histograms and samples of one start of a run, offline unless asked otherwise."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import wandb
from torch import Tensor

from llmcore.train.watchers import About, Row

BINS = 64


class Online:
    """One run there; a start that goes on from a step is a run of its own, because offline runs cannot be rewound."""

    def __init__(self, folder: Path, about: About, *, project: str, mode: Literal["offline", "online"]) -> None:
        settings = wandb.Settings(silent=True, console="off", disable_git=True, save_code=False, x_disable_meta=True)
        chosen = os.environ.get("WANDB_MODE", mode)
        self.run = wandb.init(
            project=project,
            dir=str(folder),
            group=about.name,
            name=f"{about.name} from step {about.start}" if about.start else about.name,
            job_type=about.made_by,
            config=dict(about.config),
            mode="offline" if chosen == "offline" else "disabled" if chosen == "disabled" else "online",
            settings=settings,
        )
        self.run.define_metric("*", step_metric="step")

    def add(self, row: Row) -> None:
        self.run.log({name: value for name, value in row.items() if value is not None})

    def histograms(self, step: int, values: Mapping[str, Tensor]) -> None:
        flat = {name: value.detach().flatten().float().cpu().numpy() for name, value in values.items()}
        spread = {name: np.histogram(numbers, BINS) for name, numbers in flat.items()}
        drawn = {name: wandb.Histogram(np_histogram=bars) for name, bars in spread.items()}
        self.run.log({"step": step, **drawn})

    def texts(self, step: int, texts: Sequence[tuple[str, str]]) -> None:
        table = wandb.Table(columns=["prompt", "text"], data=[list(pair) for pair in texts])
        self.run.log({"step": step, "samples": table})

    def close(self) -> None:
        self.run.finish()
