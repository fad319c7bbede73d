"""The command line of reward modelling."""

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
    default_out,
    given,
)
from llmcore.settings_commands import add_config_commands
from llmcore.train.plan_command import add_plan_command

app = command.new_app("Reward modelling: preferences to a score.")

DataOption = Annotated[
    str | None, typer.Option("--data", metavar="PATH", help="Preferences: an artifact, a folder, or a JSONL file.")
]
RewardArgument = Annotated[Path, typer.Argument(metavar="REWARD", help="A reward checkpoint (llmreward run).")]


@app.command()
def run(
    settings: Settings = None,
    base: Annotated[str | None, typer.Option("--base", metavar="DIR", help="The policy to begin from.")] = None,
    data: DataOption = None,
    out: OutOption = None,
    resume: ResumeOption = "auto",
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train a reward model on pairs of answers.

    [bold]Examples[/bold]

      llmreward run configs/reward/tiny.toml --base runs/sft-tiny

      llmreward run --base runs/sft-tiny --data preferences.jsonl loss.kind=margin_ranking
    """
    from llmreward.config import RewardConfig
    from llmreward.run import run as run_stage

    config = load_config(RewardConfig, settings or [], given(inputs__base=base, inputs__data=data))
    run_stage(config, out or default_out("reward", settings or []), resume=resume, json=json, quiet=quiet)


@app.command(name="eval")
def evaluate(
    reward: RewardArgument,
    data: DataOption = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Score the first so many pairs; all if absent.")] = None,
    device: DeviceOption = "auto",
    json: ResultJsonOption = False,
) -> None:
    """Held-out accuracy with a 95 % interval, beside the longer-answer ruler; calibration; invariances."""
    from llmcore.scoring import load_scorer
    from llmcore.train.device import resolve_device
    from llmreward.evaluate import as_json, evaluate_file, lines

    scorer = load_scorer(reward, device=resolve_device(device))
    found = evaluate_file(scorer, Path(data) if data else builtin_data("preferences"), limit=limit)
    print(json_library.dumps(as_json(found)) if json else "\n".join(lines(found)))


@app.command()
def check(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Preferences: an artifact, a folder, or a file.")],
    base: Annotated[
        Path | None, typer.Option("--base", metavar="DIR", help="A policy: also check what its context would cut.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 2 if there is any flaw.")] = False,
    json: ResultJsonOption = False,
) -> None:
    """Look for flaws in preferences: contradictions, cycles, duplicates, empty sides, a length confound, overlap."""
    from llmcore.errors import DataError
    from llmreward.check import as_json, check_path, lines

    checked = check_path(data, base=base)
    print(json_library.dumps(as_json(checked)) if json else "\n".join(lines(checked)))
    if strict and checked.flaws:
        raise DataError(f"{data} has {checked.flaws} flaws", hint="mend or remove these rows")


@app.command()
def score(
    reward: RewardArgument,
    data: Annotated[
        str | None, typer.Option("--data", metavar="FILE", help="Conversations or preferences, one JSON a line.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="One prompt; give answers with --answer.")] = None,
    answer: Annotated[list[str] | None, typer.Option(help="An answer to the prompt; may be given again.")] = None,
    device: DeviceOption = "auto",
) -> None:
    """Print the reward of conversations, one JSON object a line.

    [bold]Examples[/bold]

      llmreward score runs/reward-tiny --prompt "len('abc')" --answer 3 --answer 4

      llmreward score runs/reward-tiny --data chats.jsonl
    """
    from llmcore.errors import ConfigError
    from llmcore.scoring import load_scorer
    from llmcore.train.device import resolve_device
    from llmreward.score import answers_to, conversations_in, score_conversations

    if (data is None) == (prompt is None):
        raise ConfigError(
            "give either --data FILE, or --prompt TEXT with one --answer or more",
            hint="leave one of the two out, or add the one that is missing",
        )
    if data is not None and answer:
        raise ConfigError(
            f"--answer {answer[0]!r} does nothing with --data", hint="leave it out, or give it with --prompt"
        )
    if prompt is not None and not answer:
        raise ConfigError("--prompt has no --answer to score", hint="add --answer TEXT, once for each answer")
    conversations = conversations_in(Path(data)) if data else answers_to(prompt or "", answer or [])
    scorer = load_scorer(reward, device=resolve_device(device))
    for line in score_conversations(scorer, conversations):
        print(json_library.dumps(line, ensure_ascii=False))


@app.command()
def shape(
    reward: RewardArgument,
    settings: Settings = None,
    data: DataOption = None,
    policy: Annotated[
        Path | None, typer.Option("--policy", metavar="DIR", help="Also rank answers that this policy samples.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Take the first so many pairs; all if absent.")] = None,
    device: DeviceOption = "auto",
    json: JsonOption = False,
) -> None:
    """Say what bonus and penalty terms (length, a missing end, repetition) would do to the ranking of answers.

    [bold]Examples[/bold]

      llmreward shape runs/reward-tiny --policy runs/sft-tiny

      llmreward shape runs/reward-tiny terms.repetition.amount=0.5 terms.length_penalty.free=100
    """
    from llmcore.scoring import load_scorer
    from llmcore.train.device import resolve_device
    from llmreward.shape import ShapeConfig, as_json, effects_on, held_out_answers, lines, sampled_answers

    config = load_config(ShapeConfig, settings or [])
    path = Path(data) if data else builtin_data("preferences")
    scorer = load_scorer(reward, device=resolve_device(device))
    found = {"held-out pairs": effects_on(held_out_answers(scorer, path, limit=limit), config.terms)}
    if policy is not None:
        answers = sampled_answers(scorer, policy, path, config.samples)
        found[f"answers of {policy}"] = effects_on(answers, config.terms)
    print(json_library.dumps(as_json(found)) if json else "\n".join(lines(found)))


def settings_class() -> type[Config]:
    """The settings of this stage, imported late because they import torch."""
    from llmreward.config import RewardConfig

    return RewardConfig


add_config_commands(app, settings_class)
add_plan_command(app, run)


def main() -> None:
    """The `llmreward` command."""
    command.main(app)
