"""What a run says before its first step and after its last: every derived value with its reason."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import nn

from llmcore.manifest import Manifest
from llmcore.next_command import as_typed
from llmcore.train.artifact import Ending
from llmcore.train.config import TrainConfig
from llmcore.train.device import Placement
from llmcore.train.distributed import place_from_environment
from llmcore.train.schedule import warmup_steps
from llmcore.train.view import amount, duration, number


def start_facts(
    model: nn.Module, config: TrainConfig, placement: Placement, *, out: Path, facts: Mapping[str, str]
) -> dict[str, str]:
    """The lines of the start panel; the stage's own `facts` stand after the model."""
    return {
        "model": describe_model(model),
        **facts,
        "train": describe_training(config),
        **processes_told(config),
        "device": placement.reason,
        "folder": f"{out} · Ctrl-C once saves and stops, twice quits now",
    }


def processes_told(config: TrainConfig) -> dict[str, str]:
    """How many processes share the work, if several do, and how."""
    size = place_from_environment().size
    return {"ranks": f"{size} processes · {config.parallel.kind}"} if size > 1 else {}


def describe_model(model: nn.Module) -> str:
    """Its shape, where it has a config of ours, and how many weights it has and trains."""
    shape = getattr(model, "config", None)
    words = {"depth": "layers", "width": "wide", "vocab_size": "vocabulary", "context": "context"}
    values = {word: getattr(shape, name, None) for name, word in words.items()}
    known = [f"{value:,} {word}" for word, value in values.items() if isinstance(value, int)]
    weights = list(model.parameters())
    total = sum(weight.numel() for weight in weights)
    trained = sum(weight.numel() for weight in weights if weight.requires_grad)
    counted = f"{amount(total)} parameters" + (f", {amount(trained)} of them trained" if trained != total else "")
    return " · ".join([*(known or [type(model).__name__]), counted])


def describe_training(config: TrainConfig) -> str:
    """Steps and rows, then what updates the weights."""
    parts = -(-config.batch // config.rows)
    rows = f"{config.batch} rows" + (f" (in {parts} micro-batches of {config.rows})" if parts > 1 else "")
    warmup = warmup_steps(config.schedule.warmup, config.steps)
    return " · ".join(
        [
            f"{config.steps:,} steps × {rows}",
            f"{config.optimizer.kind} lr {config.lr:g}",
            f"warmup {warmup}, then {config.schedule.kind}",
            f"clip {config.clip:g}",
            f"seed {config.seed}",
        ]
    )


def end_figures(manifest: Manifest, ending: Ending) -> dict[str, str]:
    """The end table: whose weights, the last loss and what was held out; the rest of the step is in the manifest."""
    progress = ending.progress
    held_out = any(name.startswith("val_") for name in manifest.metrics)
    figures = {
        name: number(value)
        for name, value in manifest.metrics.items()
        if not held_out or name == "loss" or name.startswith("val_")
    }
    speed = {"speed": f"{amount(progress.tokens / progress.seconds)} tokens/s"} if progress.seconds else {}
    return {
        "weights": ending.weights,
        **figures,
        "steps": f"{progress.step:,}",
        "tokens": amount(progress.tokens),
        **speed,
        "time in steps": duration(progress.seconds),
        "peak memory": amount(ending.peak, "B"),
    }


def end_places(out: Path, metrics: Path, next_commands: Sequence[str]) -> dict[str, str]:
    """Where things are, and what to do next."""
    places = {"model": str(out), "metrics": str(metrics), "curves": as_typed(f"tensorboard --logdir {out}")}
    return places | {"next" + " " * index: as_typed(command) for index, command in enumerate(next_commands)}
