"""Reinforcement learning, from settings to a better policy: `grpo` and `ppo`."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import nn

from llmcore.builtin import builtin_data
from llmcore.checkpoint import Checkpoint, load_checkpoint
from llmcore.errors import ConfigError
from llmcore.manifest import Manifest, read_manifest
from llmcore.model.adapters import add_adapters
from llmcore.model.dropout import switch_dropout_off
from llmcore.model.transformer import Transformer
from llmcore.options import required
from llmcore.records import Prompt, load_splits
from llmcore.scoring import Scorer, load_scorer
from llmcore.tokenizer import require_same_tokenizer
from llmcore.train.device import resolve
from llmcore.train.loop import fit
from llmcore.train.memory import memory_advice
from llmcore.train.rehearsal import Rehearsal
from llmcore.train.run import Run
from llmrl.config import GRPOConfig, PPOConfig, RLConfig
from llmrl.critic import SharedTrunk
from llmrl.evaluate import answer, flat_figures, summarize
from llmrl.experience import Experiences
from llmrl.grpo import GRPO
from llmrl.ppo import PPO, ActorCritic
from llmrl.prompts import Prompts
from llmrl.rewards.names import build_rewards
from llmrl.rewards.reward import Reward
from llmrl.rewards.sums import Rewards
from llmrl.samples import SampleLog

ANSWERS_NEED = "rollout.max_completion_length or rollout.eval_prompts, or take a smaller policy"


class Start(NamedTuple):
    """What both algorithms begin with."""

    folder: Path
    """Of the policy."""
    policy: Checkpoint
    reference: Transformer | None
    """None where nothing is compared with it; the policy itself where that is to be taken without its adapters."""
    prompts: Prompts
    held_out: Prompts | None
    rewards: Rewards
    parents: dict[str, Manifest]
    critic: Scorer | Transformer | None = None


def grpo(
    config: GRPOConfig, out: Path, *, resume: str | Rehearsal = "auto", json: bool = False, quiet: bool = False
) -> Manifest:
    """Improve the policy in `inputs.policy` by GRPO and write it to `out`."""
    make = isinstance(resume, str)
    start = prepare(config, config.train.device, config.train.dtype, reference=config.grpo.beta > 0, make=make)
    job = open_run(config, out, "llmrl grpo", start, resume=resume, json=json, quiet=quiet)
    log = sample_log(job, config, every=config.train.log_every, updates=config.grpo.num_iterations)
    adapt(start.policy.model, config)
    algorithm = GRPO(
        start.policy.model,
        prompts=start.prompts,
        rewards=start.rewards,
        tokenizer=start.policy.tokenizer,
        config=config,
        reference=start.reference,
        log=log,
        engine=job.engine,
    )
    source = Experiences(
        algorithm,
        seed=config.train.seed,
        epochs=config.grpo.num_iterations,
        micro_batch=config.train.rows,
        on_start=log.start,
    )
    evaluate = evaluation(config, start, lambda model: cast(Transformer, model))
    fit(start.policy.model, source, algorithm.loss, config.train, job, evaluate=evaluate)
    return job.finish(start.policy.model, counts=start.prompts.counts, base=("policy", start.folder))


def ppo(
    config: PPOConfig, out: Path, *, resume: str | Rehearsal = "auto", json: bool = False, quiet: bool = False
) -> Manifest:
    """Improve the policy in `inputs.policy` by PPO and write it to `out`."""
    make = isinstance(resume, str)
    start = prepare(config, config.train.device, config.train.dtype, reference=True, make=make)
    start = with_critic(start, config)
    assert start.reference is not None
    job = open_run(config, out, "llmrl ppo", start, resume=resume, json=json, quiet=quiet)
    critic = config.ppo.critic.build(start.policy.model, start.critic)
    adapt(start.policy.model, config)
    actor = ActorCritic(start.policy.model, critic)
    updates = config.ppo.num_ppo_epochs * config.ppo.num_mini_batches
    log = sample_log(job, config, every=config.train.log_every, updates=updates)
    algorithm = PPO(
        actor,
        reference=start.reference,
        prompts=start.prompts,
        rewards=start.rewards,
        tokenizer=start.policy.tokenizer,
        config=config,
        log=log,
        engine=job.engine,
    )
    source = Experiences(
        algorithm,
        seed=config.train.seed,
        epochs=config.ppo.num_ppo_epochs,
        mini_batches=config.ppo.num_mini_batches,
        micro_batch=config.train.rows,
        on_start=log.start,
    )
    evaluate = evaluation(config, start, lambda model: cast(ActorCritic, model).policy)
    train = config.train.model_copy(update={"optimizer": config.ppo.critic.optimizer(config.train.optimizer)})
    fit(actor, source, algorithm.loss, train, job, evaluate=evaluate)
    return job.finish(actor.policy, counts=start.prompts.counts, base=("policy", start.folder))


def prepare(config: RLConfig, device: str, dtype: str, *, reference: bool, make: bool = True) -> Start:
    """Load policy, reference, prompts (built-in ones may be made if `make`) and rewards, and see that they fit."""
    placement = resolve(device, dtype)
    folder = required(config.inputs.policy, "--policy", "the policy to improve")
    policy = load_checkpoint(folder, expect="policy")
    switch_dropout_off(policy.model)
    longest = policy.model.config.context - config.rollout.max_completion_length
    if longest < 1:
        raise ConfigError(
            f"rollout.max_completion_length is {config.rollout.max_completion_length}, "
            f"the policy's context is {policy.model.config.context}",
            hint="lower rollout.max_completion_length",
        )
    if config.inputs.reference and not reference:
        raise ConfigError(
            "--reference is given, but nothing compares with it: beta is 0",
            hint="set grpo.beta above 0, or leave --reference out",
        )
    parents = {"policy": policy.manifest}
    other: Transformer | None = None
    if reference and config.lora is not None and not config.inputs.reference:
        other = policy.model  # the policy below its adapters
    elif reference:
        other, manifest = load_reference(config, folder, policy, placement.device)
        parents |= {"reference": manifest} if config.inputs.reference else {}
    rewards = build_rewards(
        config.inputs.reward,
        tokenizer=policy.tokenizer,
        named=cast(Mapping[str, Reward], config.rewards),
        device=placement.device,
        dtype=placement.dtype,
    )
    prompts_path = Path(config.inputs.prompts) if config.inputs.prompts else builtin_data("prompts", make=make)
    records, others, prompts_manifest = load_splits(prompts_path, Prompt)
    prompts = Prompts(
        records,
        policy.tokenizer,
        longest=longest,
        max_dropped=config.rollout.max_dropped,
        hint="shorten them, lower rollout.max_completion_length, or allow it with rollout.max_dropped=1",
    )
    held_out = prompts_held_out(others, policy, longest=longest) if config.rollout.eval_prompts else None
    return Start(
        folder, policy, other, prompts, held_out, rewards, {**parents, **rewards.parents, "prompts": prompts_manifest}
    )


def load_reference(
    config: RLConfig, folder: Path, policy: Checkpoint, device: torch.device
) -> tuple[Transformer, Manifest]:
    """The policy to which the KL is taken, frozen: the one that is named, or a second copy of the policy."""
    other = Path(config.inputs.reference) if config.inputs.reference else folder
    loaded = load_checkpoint(other, expect="policy")
    require_same_tokenizer(other, loaded.tokenizer, policy.tokenizer, of="the policy")
    switch_dropout_off(loaded.model)
    return loaded.model.to(device).requires_grad_(False), loaded.manifest


def adapt(policy: Transformer, config: GRPOConfig | PPOConfig) -> None:
    """Give the policy its adapters, if it is to have any; as everywhere here, without dropout."""
    if config.lora is not None:
        add_adapters(policy, config.lora, seed=config.train.seed)
        switch_dropout_off(policy)


def with_critic(start: Start, config: PPOConfig) -> Start:
    """Load what a separate critic begins as, if it is named."""
    if not config.inputs.critic:
        return start
    if isinstance(config.ppo.critic, SharedTrunk):
        raise ConfigError(
            "--critic is given, but the critic is a head on the policy's trunk",
            hint="set ppo.critic.kind=separate, or leave --critic out",
        )
    folder = Path(config.inputs.critic)
    kind = read_manifest(folder).kind
    if kind == "reward":
        critic: Scorer | Checkpoint = load_scorer(folder)
    else:
        critic = load_checkpoint(folder, expect="policy")
    require_same_tokenizer(folder, critic.tokenizer, start.policy.tokenizer, of="the policy")
    wanted = start.policy.model.config.context
    if critic.model.config.context < wanted or not critic.model.config.attention.sight().causal:
        raise ConfigError(
            f"{folder} cannot value the policy's states: its context is {critic.model.config.context} of {wanted} "
            f"tokens, and causal={critic.model.config.attention.sight().causal}",
            hint="give a causal model with the policy's context",
        )
    parents = {**start.parents, "critic": critic.manifest}
    return start._replace(parents=parents, critic=critic if isinstance(critic, Scorer) else critic.model)


def prompts_held_out(records: Sequence[Prompt], policy: Checkpoint, *, longest: int) -> Prompts | None:
    """The held-out prompts, if there are any."""
    return Prompts(records, policy.tokenizer, longest=longest, max_dropped=1.0) if records else None


def open_run(
    config: RLConfig, out: Path, made_by: str, start: Start, *, resume: str | Rehearsal, json: bool, quiet: bool
) -> Run:
    prompts = start.prompts.counts["prompts"]
    return Run(
        out,
        made_by=made_by,
        config=config,
        parents=start.parents,
        tokenizer=start.policy.tokenizer,
        resume=resume,
        json=json,
        quiet=quiet,
        facts={"reward": config.inputs.reward or "", "prompts": f"{prompts:,}"},
        next_commands=[next_command(config, out)],
    )


def next_command(config: RLConfig, out: Path) -> str:
    """How the policy that was made is compared with the one it was made from, on the prompts held out from it."""
    asked = ["--prompts", config.inputs.prompts] if config.inputs.prompts else []
    longest = config.rollout.max_completion_length
    words = ["llmrl", "eval", config.inputs.policy, out, "--reward", config.inputs.reward, *asked]
    return shlex.join(map(str, [*words, "--max-new-tokens", longest]))


def sample_log(job: Run, config: RLConfig, *, every: int, updates: int) -> SampleLog:
    """What rank 0 writes of the rollouts."""
    path = job.folder / "samples.jsonl" if job.engine.ranks.main else None
    return SampleLog(
        path,
        every=every,
        count=config.rollout.log_samples,
        updates=updates,
        shown=config.rollout.show_samples,
        say=job.view.say,
    )


def evaluation(
    config: GRPOConfig | PPOConfig, start: Start, policy_of: Callable[[nn.Module], Transformer]
) -> Callable[[nn.Module], dict[str, float]] | None:
    """The figures of an evaluation during the run: held-out prompts, sampled once and greedily."""
    held_out = start.held_out
    if held_out is None:
        return None
    chosen = list(range(min(config.rollout.eval_prompts, len(held_out.records))))

    def evaluate(model: nn.Module) -> dict[str, float]:
        found: dict[str, float] = {}
        policy = policy_of(model)
        reference = policy if start.reference is start.policy.model else start.reference  # the same, gathered
        for prefix, temperature in (("", config.rollout.temperature), ("greedy_", 0.0)):
            with memory_advice("the answers to held-out prompts", lower=ANSWERS_NEED):
                answers = answer(
                    policy,
                    held_out,
                    chosen,
                    start.policy.tokenizer,
                    rewards=start.rewards,
                    max_new_tokens=config.rollout.max_completion_length,
                    temperature=temperature,
                    reference=None if prefix else reference,
                )
            found |= flat_figures(summarize(answers), prefix)
        return found

    return evaluate
