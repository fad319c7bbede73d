"""The command line of supervised fine-tuning."""

import json as json_library
from pathlib import Path
from typing import Annotated

import typer

from llmcore import command
from llmcore.builtin import builtin_data
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

COUNT, SAMPLES, MAX_NEW_TOKENS = 500, 1, 64
"""Of an evaluation on conversations, unless it says otherwise."""

app = command.new_app("Supervised fine-tuning: chats to an assistant.")

DataOption = Annotated[
    str | None, typer.Option("--data", metavar="PATH", help="Chats: a records artifact or a JSONL file.")
]


@app.command()
def run(
    settings: Settings = None,
    base: Annotated[str | None, typer.Option("--base", metavar="DIR", help="The policy to fine-tune.")] = None,
    data: DataOption = None,
    reference: Annotated[
        str | None, typer.Option("--reference", metavar="DIR", help="The policy whose loss orders a curriculum.")
    ] = None,
    out: OutOption = None,
    resume: ResumeOption = "auto",
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Fine-tune a policy on chats.

    [bold]Examples[/bold]

      llmsft run --base runs/pretrain-tiny

      llmsft run configs/sft/tiny.toml --base runs/pretrain-tiny --data my-chats.jsonl train.steps=200

      llmsft run --base runs/pretrain-tiny lora.rank=8 data.packing=true curriculum.by=length
    """
    from llmsft.config import SFTConfig
    from llmsft.run import run as run_stage

    config = load_config(
        SFTConfig, settings or [], given(inputs__base=base, inputs__data=data, inputs__reference=reference)
    )
    run_stage(config, out or default_out("sft", settings or []), resume=resume, json=json, quiet=quiet)


@app.command(name="eval")
def evaluate(
    checkpoints: Annotated[
        list[Path],
        typer.Argument(metavar="POLICY", help="Policies, compared with the first: give the base model first."),
    ],
    data: DataOption = None,
    count: Annotated[
        int | None, typer.Option(min=1, help="Held-out conversations to ask.", show_default=str(COUNT))
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Samples of each; several give pass@k.", show_default=str(SAMPLES))
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest answer, in tokens.", show_default=str(MAX_NEW_TOKENS))
    ] = None,
    tasks: TasksOption = None,
    task_count: TaskCountOption = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Ask a task's questions in the model's chat format, not as plain text.")
    ] = False,
    device: DeviceOption = "auto",
    json: ResultJsonOption = False,
) -> None:
    """Held-out loss, right answers, BLEU, ROUGE, pass@k, and tasks by log-likelihood, with 95 % intervals.

    An answer is right if it has the wanted text, or is the same Python literal; `exact match` is the text alone.

    [bold]Examples[/bold]

      llmsft eval runs/pretrain-tiny runs/sft-tiny

      llmsft eval runs/pretrain-tiny runs/sft-tiny --data my-chats.jsonl --samples 8

      llmsft eval runs/pretrain-tiny runs/sft-tiny --tasks mmlu.jsonl --chat
    """
    from llmsft.compare import compare, report_lines

    if tasks and not data:
        refuse_unused("with --tasks but without --data", count=count, samples=samples, max_new_tokens=max_new_tokens)
    results = compare(
        checkpoints,
        data=Path(data) if data else None if tasks else builtin_data("chats"),
        count=count or COUNT,
        samples=samples or SAMPLES,
        max_new_tokens=max_new_tokens or MAX_NEW_TOKENS,
        tasks=tasks or [],
        task_count=task_count,
        chat=chat,
        device=device,
    )
    print(json_library.dumps(results) if json else "\n".join(report_lines(results)))


@app.command()
def preview(
    settings: Settings = None,
    base: Annotated[str | None, typer.Option("--base", metavar="DIR", help="The policy whose format is used.")] = None,
    data: DataOption = None,
    count: Annotated[int, typer.Option(min=1, help="Conversations to show.")] = 3,
    json: ResultJsonOption = False,
) -> None:
    """Show which tokens a run would train on: in colour on a terminal, between ⟦ and ⟧ elsewhere.

    [bold]Example[/bold]

      llmsft preview --base runs/pretrain-tiny --data my-chats.jsonl data.completion_only_loss=true
    """
    from llmsft.config import SFTConfig
    from llmsft.preview import print_preview
    from llmsft.run import prepare

    config = load_config(SFTConfig, settings or [], given(inputs__base=base, inputs__data=data))
    start = prepare(config)
    print_preview(start.rows, start.base.tokenizer, count=count, json=json)


@app.command(no_args_is_help=True)
def merge(
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="What `llmsft run … lora.rank=8` wrote.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The policy to write.")],
    base: Annotated[
        Path | None, typer.Option("--base", metavar="DIR", help="The model below it, if it is not where it was.")
    ] = None,
) -> None:
    """Add an adapter to the weights of the model below it: a policy like any other."""
    from llmcore.adapters import merge_to

    manifest = merge_to(out, adapter, made_by="llmsft merge", base=base)
    print(f"{out}: {manifest.kind} {manifest.id}")


def settings_class() -> type[Config]:
    """The settings of this stage, imported late because they import torch."""
    from llmsft.config import SFTConfig

    return SFTConfig


add_config_commands(app, settings_class)
add_plan_command(app, run)


def main() -> None:
    """The `llmsft` command."""
    command.main(app)
