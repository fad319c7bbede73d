"""The command line of reinforcement learning."""

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

app = command.new_app("Reinforcement learning: a policy that a reward likes better.")

PolicyOption = Annotated[str | None, typer.Option("--policy", metavar="DIR", help="The policy to improve.")]
RewardOption = Annotated[
    str | None,
    typer.Option("--reward", metavar="REWARD", help="A rule, a reward checkpoint, or '0.7*runs/reward + 0.3*literal'."),
]
PromptsOption = Annotated[
    str | None, typer.Option("--prompts", metavar="PATH", help="Prompts: a records artifact or a JSONL file.")
]
ReferenceOption = Annotated[
    str | None, typer.Option("--reference", metavar="DIR", help="The policy to which the KL divergence is taken.")
]


@app.command()
def grpo(
    settings: Settings = None,
    policy: PolicyOption = None,
    reward: RewardOption = None,
    prompts: PromptsOption = None,
    reference: ReferenceOption = None,
    out: OutOption = None,
    resume: ResumeOption = "auto",
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Improve a policy by comparing completions of one prompt with each other.

    [bold]Examples[/bold]

      llmrl grpo --policy runs/sft --reward literal

      llmrl grpo configs/rl/grpo-tiny.toml --policy runs/sft --reward numeric --prompts gsm8k.jsonl grpo.beta=0
    """
    from llmrl.config import GRPOConfig
    from llmrl.run import grpo as run_stage

    options = given(inputs__policy=policy, inputs__reward=reward, inputs__prompts=prompts, inputs__reference=reference)
    config = load_config(GRPOConfig, settings or [], options)
    run_stage(config, out or default_out("grpo", settings or []), resume=resume, json=json, quiet=quiet)


@app.command()
def ppo(
    settings: Settings = None,
    policy: PolicyOption = None,
    reward: RewardOption = None,
    prompts: PromptsOption = None,
    reference: ReferenceOption = None,
    critic: Annotated[
        str | None, typer.Option("--critic", metavar="DIR", help="What a separate critic begins as; else the policy.")
    ] = None,
    out: OutOption = None,
    resume: ResumeOption = "auto",
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Improve a policy with a learned value function as the baseline.

    [bold]Examples[/bold]

      llmrl ppo --policy runs/sft --reward "runs/reward + 0.5*literal"

      llmrl ppo configs/rl/ppo-tiny.toml --policy runs/sft --reward runs/reward ppo.kl_target=6

      llmrl ppo --policy runs/sft --reward runs/reward --critic runs/reward ppo.critic.kind=separate
    """
    from llmrl.config import PPOConfig
    from llmrl.run import ppo as run_stage

    options = given(
        inputs__policy=policy,
        inputs__reward=reward,
        inputs__prompts=prompts,
        inputs__reference=reference,
        inputs__critic=critic,
    )
    config = load_config(PPOConfig, settings or [], options)
    run_stage(config, out or default_out("ppo", settings or []), resume=resume, json=json, quiet=quiet)


@app.command(name="eval")
def evaluate(
    checkpoints: Annotated[
        list[str],
        typer.Argument(
            metavar="POLICY... KEY=VALUE",
            help="Policies, compared on the same prompts with the first; rewards.NAME.key=value says what a name in "
            "--reward means, where it is not as in their training.",
        ),
    ],
    reward: RewardOption = None,
    prompts: PromptsOption = None,
    reference: Annotated[
        Path | None, typer.Option("--reference", metavar="DIR", help="Where the KL is taken to; the first, if absent.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Held-out prompts to answer.")] = 500,
    samples: Annotated[int, typer.Option(min=1, help="Sampled completions of each; several: pass@k, best-of-n.")] = 1,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest completion, in tokens.")] = 32,
    seed: Annotated[int, typer.Option(min=0, help="Of the sampling.")] = 0,
    answers: Annotated[
        Path | None, typer.Option("--answers", metavar="FILE", help="Write every completion here, as JSONL.")
    ] = None,
    device: DeviceOption = "auto",
    json: ResultJsonOption = False,
) -> None:
    """Reward, KL and length on held-out prompts, with 95 % intervals, and how much the first is surpassed.

    [bold]Examples[/bold]

      llmrl eval runs/sft runs/ppo runs/grpo --reward literal --samples 8

      llmrl eval runs/sft runs/grpo --reward "literal + 0.1*short" rewards.short.kind=length rewards.short.target=8

    Of a reward that says right or wrong, pass@k is given too. What training has to beat is the best of n completions
    of the first policy, by the reward: `gain_over_best_of_8`.
    """
    from llmcore.errors import ConfigError
    from llmrl.config import RewardSettings
    from llmrl.evaluate import evaluate_checkpoints, report_lines

    folders = [word for word in checkpoints if "=" not in word or Path(word).is_dir()]
    settings = [word for word in checkpoints if word not in folders]
    if not folders:
        raise ConfigError("no policy is given, only settings", hint="give the folders of policies first")
    report = evaluate_checkpoints(
        [Path(folder) for folder in folders],
        reward=reward,
        named=load_config(RewardSettings, settings).rewards,
        prompts=Path(prompts) if prompts else builtin_data("prompts"),
        reference=reference,
        count=count,
        samples=samples,
        max_new_tokens=max_new_tokens,
        seed=seed,
        answers=answers,
        device=device,
    )
    print(json_library.dumps(report) if json else "\n".join(report_lines(report)))


@app.command()
def rollout(
    policy: Annotated[Path, typer.Argument(help="The policy that answers.")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="SETTINGS", help="rewards.NAME.key=value: what a name in --reward means."),
    ] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", help="A question; else a held-out prompt.")] = None,
    answer: Annotated[str | None, typer.Option("--answer", help="Its right answer, for rules that need one.")] = None,
    reward: RewardOption = None,
    prompts: PromptsOption = None,
    samples: Annotated[int, typer.Option(min=2, help="Completions.")] = 8,
    temperature: Annotated[float, typer.Option(min=0.001, help="Of the sampling.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest completion, in tokens.")] = 32,
    seed: Annotated[int, typer.Option(min=0, help="Of the sampling, and of which prompt is taken.")] = 0,
    device: DeviceOption = "auto",
    json: ResultJsonOption = False,
) -> None:
    """One prompt, some completions, each term of the reward, and the advantage GRPO would give them.

    [bold]Examples[/bold]

      llmrl rollout runs/grpo --reward literal

      llmrl rollout runs/grpo --prompt "sorted([3, 1, 2])" --answer "[1, 2, 3]" --reward literal
    """
    from llmcore.errors import ConfigError
    from llmcore.records import Message, Prompt
    from llmrl.config import RewardSettings
    from llmrl.prompts import held_out_prompts
    from llmrl.show import rollout_lines, show_rollout

    if prompt is None and answer is not None:
        raise ConfigError(f"--answer {answer!r} does nothing without --prompt", hint="give its question: --prompt TEXT")
    if prompt is not None and prompts is not None:
        raise ConfigError(f"--prompts {prompts!r} does nothing beside --prompt", hint="give one of the two")
    if prompt is not None:
        record = Prompt(prompt=(Message(role="user", content=prompt),), answer=answer or "")
    else:
        records = held_out_prompts(Path(prompts) if prompts else builtin_data("prompts"))
        record = records[seed % len(records)]
    rows = show_rollout(
        policy,
        record,
        reward=reward,
        named=load_config(RewardSettings, settings or []).rewards,
        samples=samples,
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        seed=seed,
        device=device,
    )
    if json:
        print(json_library.dumps(rows))
        return
    print("\n".join([record.prompt[-1].content, *rollout_lines(rows)]))


def grpo_settings() -> type[Config]:
    """The settings of GRPO, imported late because they import torch."""
    from llmrl.config import GRPOConfig

    return GRPOConfig


def ppo_settings() -> type[Config]:
    """The settings of PPO, imported late because they import torch."""
    from llmrl.config import PPOConfig

    return PPOConfig


add_config_commands(app, {"grpo": grpo_settings, "ppo": ppo_settings})
add_plan_command(app, grpo, ppo)


def main() -> None:
    """The `llmrl` command."""
    command.main(app)
