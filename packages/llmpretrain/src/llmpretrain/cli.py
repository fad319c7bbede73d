"""The command line of pretraining."""

import json as json_library
from pathlib import Path
from typing import Annotated

import typer

from llmcore import command
from llmcore.config import Config, load_config
from llmcore.options import (
    DeviceOption,
    JsonOption,
    OutOption,
    QuietOption,
    ResultJsonOption,
    ResumeOption,
    Settings,
    TaskCountOption,
    TasksOption,
    default_out,
    given,
    refuse_unused,
)
from llmcore.settings_commands import add_config_commands
from llmcore.train.plan_command import add_plan_command

app = command.new_app("Pretraining: tokens to a base model.")

DataOption = Annotated[str | None, typer.Option("--data", metavar="DIR", help="A tokens artifact (llmdata tokens).")]


@app.command()
def run(
    settings: Settings = None,
    data: DataOption = None,
    init: Annotated[
        str | None, typer.Option("--init", metavar="DIR", help="Begin with a policy's weights; this is not a resume.")
    ] = None,
    out: OutOption = None,
    resume: ResumeOption = "auto",
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train a base model from packed tokens.

    [bold]Examples[/bold]

      llmpretrain run configs/pretrain/tiny.toml

      llmpretrain run configs/pretrain/tiny.toml train.lr=2e-4 model.feedforward.kind=moe
    """
    from llmpretrain.config import PretrainConfig
    from llmpretrain.run import run as run_stage

    config = load_config(PretrainConfig, settings or [], given(inputs__data=data, inputs__init=init))
    run_stage(config, out or default_out("pretrain", settings or []), resume=resume, json=json, quiet=quiet)


@app.command(name="eval")
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(metavar="POLICY", help="A policy.")],
    data: DataOption = None,
    windows: Annotated[int | None, typer.Option(help="Score this many windows, spread evenly; all if absent.")] = None,
    tasks: TasksOption = None,
    task_count: TaskCountOption = None,
    device: DeviceOption = "auto",
    json: ResultJsonOption = False,
) -> None:
    """Held-out loss and bits per byte, and tasks scored by log-likelihood, with 95 % intervals.

    [bold]Examples[/bold]

      llmpretrain eval runs/pretrain-tiny

      llmpretrain eval runs/pretrain-tiny --tasks blimp/data --tasks lambada.jsonl --task-count 1000
    """
    from llmcore.checkpoint import load_checkpoint
    from llmcore.evaluate.benchmark import read_tasks, report_all, report_lines, score_tasks
    from llmcore.manifest import verify_artifact
    from llmcore.shards import TokenShards
    from llmcore.train.device import place, resolve
    from llmpretrain.evaluate import held_out
    from llmpretrain.run import tokens_folder

    if tasks and not data:
        refuse_unused("with --tasks but without --data", windows=windows)
    given_tasks = read_tasks(tasks or [], count=task_count)
    loaded = load_checkpoint(checkpoint)
    place(loaded.model, resolve(device, "fp32"))
    results: dict[str, object] = {}
    if data or not given_tasks:
        folder = tokens_folder(data)
        verify_artifact(folder, expect="tokens")
        shards = TokenShards(folder, "valid", tokenizer=loaded.tokenizer)
        found = held_out(loaded.model, shards, loaded.tokenizer, windows=windows)
        results = {**found._asdict(), "bits_per_byte": found.bits_per_byte._asdict()}
        if not json:
            print(f"loss {found.loss:.4f} nats/token · {found.bits_per_byte} bits per byte")
    if given_tasks:
        results["tasks"] = reports = report_all(score_tasks(loaded, given_tasks))
        if not json:
            print("\n".join(report_lines(reports)))
    if json:
        print(json_library.dumps(results))


def settings_class() -> type[Config]:
    """The settings of this stage, imported late because they import torch."""
    from llmpretrain.config import PretrainConfig

    return PretrainConfig


add_config_commands(app, settings_class)
add_plan_command(app, run)


def main() -> None:
    """The `llmpretrain` command."""
    command.main(app)
