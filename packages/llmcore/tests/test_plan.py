"""The memory that a plan states, against what torch allocates in a real step."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from llmcore.losses import Batch, next_token_loss
from llmcore.model.config import ModelConfig
from llmcore.train.blocks import training_blocks
from llmcore.train.config import TrainConfig
from llmcore.train.loop import train_step
from llmcore.train.plan import plan_of
from llmcore.train.run import Run
from llmcore.train.source import FromFunction

TOLERANCE = 0.1


def batch_of(rows: int, length: int, vocabulary: int) -> Batch:
    ids = torch.randint(0, vocabulary, (rows, length), generator=torch.Generator().manual_seed(0))
    return Batch(ids, torch.ones_like(ids, dtype=torch.bool).index_fill(1, torch.tensor([0]), False))


def peak_of(work: Callable[[], Any]) -> int:
    """The most bytes that torch's CPU allocator held at once during some work, above what it held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    held = most = 0
    events = sorted(
        (event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"),
        key=lambda event: event.start_ns(),
    )
    for event in events:
        held += event.nbytes()
        most = max(most, held)
    return most


def silent(_: str) -> None:
    """Nobody listens."""


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp32 recomputed"])
@pytest.mark.parametrize(
    ("rows", "length", "width", "depth", "vocabulary"),
    [(8, 128, 128, 4, 300), (2, 64, 256, 2, 4000), (4, 256, 64, 2, 32000)],
)
def test_the_memory_of_a_plan_is_that_of_a_real_step(
    rows: int, length: int, width: int, depth: int, vocabulary: int, dtype: str, tmp_path: Path
) -> None:
    dtype, _, recomputed = dtype.partition(" ")
    config = TrainConfig(batch=rows, device="cpu", dtype=dtype, checkpoint_activations=bool(recomputed))
    shape = ModelConfig(vocab_size=vocabulary, width=width, depth=depth, context=length)
    batch = batch_of(rows, length, vocabulary)

    class Instead:
        """Nothing is to be played: the folder alone is wanted."""

        def play(self, *_: object) -> Any: ...

    with Run(tmp_path / "out", made_by="t", config=config, quiet=True, resume=Instead()) as run:
        planned = plan_of(run, shape.build(seed=0), FromFunction(lambda _: [batch]), next_token_loss, config)
    assert not (tmp_path / "out").exists()

    def whole() -> None:
        model = shape.build(seed=0)
        model.activation_dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
        optimizer = config.optimizer.build(model, 0.1)
        with training_blocks(model, config, say=silent):
            for _ in range(2):
                train_step(model, optimizer, [batch], next_token_loss, clip=1.0)

    measured = peak_of(whole)
    assert planned["memory"]["total"] == pytest.approx(measured, rel=TOLERANCE)
