"""The command line of llmcore: look at artifacts, talk to models, check the machine."""

import json as json_library
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.tree import Tree

from llmcore import command
from llmcore.config import load_config
from llmcore.huggingface.cli import export_app, import_app
from llmcore.manifest import Manifest, family, read_manifest, verify_artifact
from llmcore.options import BaseOption, DeviceOption, DtypeOption, ResultJsonOption
from llmcore.runs.cli import app as runs_app

NAMES_SHOWN = 3
"""Files of an outside parent that its branch of the family tree names."""

app = command.new_app("Look at artifacts, talk to models, check the machine.")

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="An artifact: a folder with a manifest.json.")]
SamplingSettings = Annotated[
    list[str] | None,
    typer.Argument(metavar="SETTINGS", help="More of sampling: min_p=0.05, repetition_penalty=1.1, stop=['END']."),
]
MaxNewTokens = Annotated[int, typer.Option(help="Stop after this many tokens.")]
Temperature = Annotated[float, typer.Option(help="0 is greedy.")]
TopK = Annotated[int, typer.Option("--top-k", help="Sample among the k likeliest tokens; 0 is all.")]
TopP = Annotated[float, typer.Option("--top-p", help="Sample among the likeliest tokens that hold this probability.")]
Seed = Annotated[int, typer.Option(help="The same seed gives the same text.")]


@app.command()
def inspect(folder: Folder, json: ResultJsonOption = False) -> None:
    """What an artifact is: kind, figures, and for a model its architecture and parameters by module."""
    from llmcore.inspection import as_table, describe

    manifest = read_manifest(folder)
    facts = describe(folder, manifest)
    if json:
        print(json_library.dumps(facts))
    else:
        Console().print(as_table(facts))


@app.command()
def verify(folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Artifacts.")]) -> None:
    """Check every file of artifacts against the hashes in their manifests."""
    for folder in folders:
        manifest = verify_artifact(folder)
        if manifest.kind == "adapter":
            from llmcore.adapters import check_adapter

            check_adapter(folder)
        if "model.safetensors" in manifest.files:
            from llmcore.checkpoint import load_checkpoint

            load_checkpoint(folder, expect=manifest.kind)
        size = sum(entry.bytes for entry in manifest.files.values())
        print(f"{folder}: {manifest.kind} {manifest.id}, {len(manifest.files)} files, {size:,} bytes: all as recorded")


@app.command()
def lineage(folder: Folder, json: ResultJsonOption = False) -> None:
    """The family tree of an artifact: everything it was made from, and by which command."""
    manifest = read_manifest(folder)
    if json:
        rows = [
            {"depth": depth, "role": role, "kind": m.kind, "id": m.id, "made_by": m.made_by, "made_at": m.made_at}
            for depth, role, m in family(manifest)
        ]
        print(json_library.dumps(rows))
        return
    tree = Tree(person(str(folder), manifest))
    grow(tree, manifest)
    Console().print(tree)


@app.command()
def generate(
    folder: Folder,
    settings: SamplingSettings = None,
    prompt: Annotated[str, typer.Option(help="The text to continue.")] = "",
    num_samples: Annotated[int, typer.Option(min=1, help="How many continuations.")] = 1,
    max_new_tokens: MaxNewTokens = 200,
    temperature: Temperature = 0.8,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    seed: Seed = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "fp32",
    base: BaseOption = None,
    json: ResultJsonOption = False,
) -> None:
    """Continue a text with a policy."""
    from llmcore.generate.chat import load_policy, run_generate
    from llmcore.generate.sampling import Sampling

    options = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p}
    sampling = load_config(Sampling, [*assignments(**options, seed=seed), *(settings or [])])
    policy = load_policy(folder, device=device, dtype=dtype, base=base)
    run_generate(policy, prompt, sampling, num_samples=num_samples, json=json)


@app.command()
def chat(
    folder: Folder,
    settings: SamplingSettings = None,
    system: Annotated[str, typer.Option(help="A system message.")] = "",
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 0.8,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    seed: Seed = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "fp32",
    base: BaseOption = None,
) -> None:
    """Talk with a policy in the terminal: Ctrl-C stops an answer, /new begins again, Ctrl-D ends.

    When a conversation outgrows the context, the oldest turns after the system
    message are dropped, each with its answer, and that is said. At most half of
    the context is kept free for the answer.
    """
    from llmcore.generate.chat import load_policy, run_chat
    from llmcore.generate.sampling import Sampling

    options = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p}
    sampling = load_config(Sampling, [*assignments(**options, seed=seed), *(settings or [])])
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin with it ignored
    run_chat(load_policy(folder, device=device, dtype=dtype, base=base), sampling, system=system)


@app.command(no_args_is_help=True)
def tokenize(
    folder: Folder,
    text: Annotated[str | None, typer.Argument(metavar="TEXT", help="A text; standard input if left out.")] = None,
    decode: Annotated[bool, typer.Option("--decode", help="TEXT is token ids: print what they say.")] = False,
    json: ResultJsonOption = False,
) -> None:
    """Show a text as the tokens of an artifact's tokenizer, or ids as text.

    [bold]Examples[/bold]

      llmcore tokenize runs/sft "Hello, world"

      llmcore tokenize runs/sft --decode "72 105"
    """
    from llmcore.preview import ids_in, text_tokens, token_lines
    from llmcore.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(folder)
    given = sys.stdin.read() if text is None else text
    if decode:
        said = tokenizer.decode(ids_in(given, tokenizer), skip_special=False)
        print(json_library.dumps({"text": said}) if json else said)
        return
    shown = text_tokens(given, tokenizer)
    if json:
        print(json_library.dumps(shown))
    else:
        print("\n".join(token_lines(shown)))
        print(f"{shown['count']:,} tokens, {shown['bytes']:,} bytes, {shown['bytes per token']} bytes a token")


@app.command(no_args_is_help=True)
def template(
    folder: Folder,
    user: Annotated[list[str] | None, typer.Option("--user", help="What the user says; again for a next turn.")] = None,
    assistant: Annotated[list[str] | None, typer.Option("--assistant", help="What was answered, turn by turn.")] = None,
    system: Annotated[str, typer.Option("--system", help="A system message.")] = "",
    tokens: Annotated[bool, typer.Option("--tokens", help="Token by token.")] = False,
    json: ResultJsonOption = False,
) -> None:
    """Show how a conversation is written for a model: its chat format, control tokens, and where answers stop."""
    from llmcore.preview import chat_tokens, conversation, token_lines
    from llmcore.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(folder)
    messages = conversation(user or ["Who are you?"], assistant or [], system=system)
    shown = chat_tokens(messages, tokenizer)
    if json:
        print(json_library.dumps(shown))
        return
    stops = ", ".join(shown["stops at"])  # type: ignore[arg-type]
    print(f"format {shown['format']}, {shown['count']} tokens; answers end with {stops or 'nothing'}", file=sys.stderr)
    print("\n".join(token_lines(shown)) if tokens else shown["text"])


@app.command()
def doctor(json: ResultJsonOption = False) -> None:
    """Check torch, devices, number formats, threads, disk and installed packages; each line says what to do."""
    from llmcore.doctor import checkup

    findings = checkup()
    if json:
        print(json_library.dumps([finding._asdict() for finding in findings]))
    else:
        colors = {"OK": "green", "WARN": "yellow", "FAIL": "red"}
        table = Table(box=None, show_header=False, pad_edge=False)
        for finding in findings:
            table.add_row(f"[{colors[finding.state]}]{finding.state}[/]", finding.subject, finding.detail)
        Console().print(table)
    if any(finding.state == "FAIL" for finding in findings):
        raise typer.Exit(2)


@app.command()
def replay(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="OUT/run/nan-dump of a run, or OUT with --step.")],
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="SETTINGS", help="Where the inputs are now: inputs.base=DIR.")
    ] = None,
    step: Annotated[int | None, typer.Option("--step", metavar="N", help="The step to take again, from 1.")] = None,
    json: ResultJsonOption = False,
) -> None:
    """Take one step of a run again: its loss and gradient to the bit, and the norms of every module in it.

    [bold]Examples[/bold]

      llmcore replay runs/pretrain-tiny/run/nan-dump

      llmcore replay runs/sft --step 120 inputs.base=elsewhere/pretrain
    """
    from llmcore.runs.again import replay_step

    replay_step(path, settings or [], step=step, json=json)


app.add_typer(runs_app, name="runs")
launch_app = command.new_app("Start runs on many machines.")
app.add_typer(launch_app, name="launch")
app.add_typer(import_app, name="import")
app.add_typer(export_app, name="export")


@launch_app.command("slurm", no_args_is_help=True)
def launch_slurm(
    words: Annotated[list[str], typer.Argument(metavar="-- COMMAND...", help="The training command.")],
    nodes: Annotated[int, typer.Option(min=1, help="Machines.")] = 1,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs, and so processes, on each machine.")] = 8,
    cpus: Annotated[int, typer.Option(min=1, help="CPU cores on each machine.")] = 64,
    time: Annotated[str, typer.Option(metavar="D-HH:MM:SS", help="The longest time.")] = "24:00:00",
    sbatch: Annotated[
        list[str] | None, typer.Option(metavar="OPTION", help="More for sbatch: --sbatch=--partition=long; repeatable.")
    ] = None,
) -> None:
    """Print an sbatch file that runs a training command with torchrun on every GPU of some machines.

    [bold]Example[/bold]

      llmcore launch slurm --nodes 4 -- llmpretrain run gpt-350m.toml train.parallel=fsdp > job.sh && sbatch job.sh
    """
    from llmcore.launch import slurm_script

    print(slurm_script(words, nodes=nodes, gpus=gpus, cpus=cpus, time=time, options=sbatch or []), end="")


def assignments(**options: float) -> list[str]:
    """Options as settings: what is set behind them stands above their defaults."""
    return [f"{name}={value}" for name, value in options.items()]


def person(name: str, manifest: Manifest) -> str:
    made = f" · {manifest.made_by} · {manifest.made_at}" if manifest.made_by else ""
    files = f" · {some(list(manifest.files))}" if manifest.kind == "file" else ""
    return f"[bold]{name}[/bold]  {manifest.kind} [cyan]{manifest.id}[/cyan]{made}{files}"


def some(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    more = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {more:,} more" if more > 0 else "")


def grow(tree: Tree, manifest: Manifest) -> None:
    for role, parent in manifest.parents.items():
        grow(tree.add(person(role, parent)), parent)


def main() -> None:
    """The `llmcore` command."""
    command.main(app)
