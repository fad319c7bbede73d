"""What a policy earns on held-out prompts, how far it went for that, and whether two policies really differ.

Every mean comes with its 95 % interval over prompts. Two policies answer the same prompts, so their difference is taken
prompt by prompt: its interval is much narrower than the two apart.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import JsonValue
from torch import Tensor

from llmcore.checkpoint import Checkpoint, load_checkpoint
from llmcore.generate.sampling import Sampling
from llmcore.intervals import Interval, mean
from llmcore.manifest import read_manifest
from llmcore.model.transformer import Transformer
from llmcore.storage import write_durably
from llmcore.tokenizer import Tokenizer, require_same_tokenizer
from llmcore.train.device import resolve_device
from llmrl.best_of import best_of, best_of_divergence, pass_rates
from llmrl.logprobs import reference_logprobs, rollout_logprobs
from llmrl.prompts import Prompts, held_out_prompts
from llmrl.rewards.names import build_rewards
from llmrl.rewards.reward import Reward
from llmrl.rewards.sums import Rewards
from llmrl.rollout import Rollout, complete
from llmrl.samples import number_or_none

FITTING = "shorten them, or lower --max-new-tokens"
"""What to do about prompts that are too long for the context."""


class Answers(NamedTuple):
    """One policy's completions of some prompts, `samples` of each, and what they earned."""

    rewards: Tensor
    """(P·G,) NaN where unscorable."""
    terms: dict[str, Tensor]
    """(P·G,) each."""
    lengths: Tensor
    """(P·G,) tokens."""
    truncated: Tensor
    """(P·G,) bool."""
    divergence: Tensor | None
    """(P·G,) log policy/reference summed over the tokens; its mean estimates the KL. None without a reference."""
    samples: int
    """Completions of each prompt."""
    texts: list[str]
    """The completions."""


def answer(
    model: Transformer,
    prompts: Prompts,
    chosen: Sequence[int],
    tokenizer: Tokenizer,
    *,
    rewards: Rewards,
    max_new_tokens: int,
    temperature: float = 1.0,
    samples: int = 1,
    seed: int = 0,
    reference: Transformer | None = None,
) -> Answers:
    """Let a policy answer prompts, and look at what comes."""
    sampling = Sampling(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
    rollout = complete(model, prompts, chosen, tokenizer, sampling, samples=samples)
    scores = rewards.score(rollout.samples)
    return Answers(
        scores.total,
        scores.terms,
        rollout.lengths.cpu(),
        rollout.truncated.cpu(),
        None if reference is None else divergence(model, reference, rollout, temperature=temperature or 1.0),
        samples,
        [sample.text for sample in rollout.samples],
    )


def divergence(model: Transformer, reference: Transformer, rollout: Rollout, *, temperature: float) -> Tensor:
    """(B,) log policy/reference of each completion: on samples of the policy its mean is KL(policy‖reference)."""
    policy = rollout_logprobs(model, rollout, temperature=temperature)
    other = reference_logprobs(model, reference, rollout, temperature=temperature)
    return torch.where(rollout.mask[:, 1:], policy - other, 0.0).sum(1).cpu()


def summarize(answers: Answers) -> dict[str, Interval]:
    """The figures of one policy: reward, each term, length, the share cut, and the KL where there is a reference."""
    figures = {"reward": interval(per_prompt(answers.rewards, answers.samples))}
    figures |= {
        f"rewards/{name}": interval(per_prompt(values, answers.samples)) for name, values in answers.terms.items()
    }
    figures["length"] = interval(per_prompt(answers.lengths, answers.samples))
    figures["truncated"] = interval(per_prompt(answers.truncated, answers.samples))
    if answers.divergence is not None:
        figures["kl"] = interval(per_prompt(answers.divergence, answers.samples))
    return figures


def several(answers: Answers) -> dict[str, Tensor]:
    """(P,) each: pass@k and best-of-n, where there are several completions of each prompt."""
    if answers.samples == 1:
        return {}
    return pass_rates(answers.terms, answers.samples) | best_of(answers.rewards, answers.terms, answers.samples)


def gains(first: Answers, second: Answers) -> dict[str, Interval]:
    """How much more the second earns than the first, prompt by prompt: in the mean, in pass@k, and over its best-of-n.

    A policy that does not surpass the best of n completions of the one it was trained from is not worth its training.
    """
    earned, before = (per_prompt(answers.rewards, answers.samples) for answers in (second, first))
    figures = {"gain": interval(earned - before)}
    ours, theirs = several(second), several(first)
    for name in ours:
        if name.startswith("pass@"):
            figures[f"gain/{name}"] = interval(ours[name] - theirs[name])
    if theirs:
        name = f"best_of_{first.samples}"
        figures[f"gain_over_{name}"] = interval(earned - theirs[name])
    return figures


def per_prompt(values: Tensor, samples: int) -> Tensor:
    """(P·G,) -> (P,) means of what is not NaN; samples of one prompt are not independent, prompts are."""
    return values.double().view(-1, samples).nanmean(1)


def interval(values: Tensor) -> Interval:
    """The mean of what is not NaN, with its 95 % interval."""
    known = values[~values.isnan()]
    return mean(known.tolist()) if len(known) else Interval(math.nan, math.nan, math.nan)


def flat_figures(figures: Mapping[str, Interval], prefix: str = "") -> dict[str, float]:
    """The means alone, for a line of metrics."""
    return {f"{prefix}{name}": figure.value for name, figure in figures.items() if not math.isnan(figure.value)}


def evaluate_checkpoints(
    folders: Sequence[Path],
    *,
    reward: str | None,
    prompts: Path,
    named: Mapping[str, Reward] | None = None,
    reference: Path | None = None,
    count: int = 500,
    samples: int = 1,
    max_new_tokens: int = 32,
    seed: int = 0,
    answers: Path | None = None,
    device: str = "auto",
) -> dict[str, dict[str, dict[str, float]]]:
    """By checkpoint, then `sampled`, `greedy` and the gains over the first checkpoint: figures with intervals.

    Rewards are those `named` here, then those that the checkpoints were trained with; the KL is taken to `reference`,
    or to the first. `answers` names a file that takes every completion, one JSON object a line.
    """
    where = resolve_device(device)
    first = load_checkpoint(folders[0], expect="policy", device=where)
    anchor = first if reference is None else load_comparable(reference, first.tokenizer, device=where)
    manifests = [read_manifest(folder) for folder in folders]
    rewards = build_rewards(reward, tokenizer=first.tokenizer, named=named, policies=manifests, device=where)
    longest = first.model.config.context - max_new_tokens
    records = held_out_prompts(prompts)[:count]
    held_out = Prompts(records, first.tokenizer, longest=longest, max_dropped=1.0, hint=FITTING)
    report: dict[str, dict[str, dict[str, float]]] = {}
    base: dict[str, Answers] = {}
    given: list[dict[str, JsonValue]] = []
    for folder in folders:
        checkpoint = first if folder == folders[0] else load_comparable(folder, first.tokenizer, device=where)
        found = evaluate_policy(
            checkpoint.model,
            held_out,
            first.tokenizer,
            rewards=rewards,
            reference=anchor.model,
            max_new_tokens=max_new_tokens,
            samples=samples,
            seed=seed,
        )
        report[str(folder)] = {
            f"{way}/{name}": figure._asdict()
            for way, ours in found.items()
            for name, figure in figures_of(ours, base=base.get(way)).items()
        }
        given += [line for way, ours in found.items() for line in answer_lines(folder, way, held_out, ours)]
        base = base or found
    if answers is not None:
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in given)
        write_durably(answers, text.encode("utf-8", "surrogatepass"))
    return report


def load_comparable(folder: Path, tokenizer: Tokenizer, *, device: torch.device) -> Checkpoint:
    """A policy whose tokens are those of another."""
    checkpoint = load_checkpoint(folder, expect="policy", device=device)
    require_same_tokenizer(folder, checkpoint.tokenizer, tokenizer, of="the policy")
    return checkpoint


def evaluate_policy(
    model: Transformer,
    prompts: Prompts,
    tokenizer: Tokenizer,
    *,
    rewards: Rewards,
    reference: Transformer,
    max_new_tokens: int,
    samples: int = 1,
    seed: int = 0,
) -> dict[str, Answers]:
    """What a policy answers to all prompts: `sampled`, so many completions of each, and `greedy`, one."""
    return {
        way: answer(
            model,
            prompts,
            range(len(prompts.records)),
            tokenizer,
            rewards=rewards,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            samples=times,
            seed=seed,
            reference=reference if temperature else None,
        )
        for way, temperature, times in (("sampled", 1.0, samples), ("greedy", 0.0, 1))
    }


def figures_of(answers: Answers, *, base: Answers | None = None) -> dict[str, Interval]:
    """The figures of one policy's answers, and what it gains over those of a `base`."""
    figures = summarize(answers) | {name: interval(values) for name, values in several(answers).items()}
    if answers.samples > 1:
        divergence_at_most = best_of_divergence(answers.samples)
        figures[f"best_of_{answers.samples}/kl_at_most"] = Interval(*[divergence_at_most] * 3)
    return figures if base is None else figures | gains(base, answers)


def answer_lines(folder: Path, way: str, prompts: Prompts, answers: Answers) -> list[dict[str, JsonValue]]:
    """Every prompt with one policy's completion of it and what each term of the reward gives for that."""
    asked = [record for record in prompts.records for _ in range(answers.samples)]
    return [
        {
            "policy": str(folder),
            "way": way,
            "prompt": record.prompt[-1].content,
            "answer": record.answer,
            "completion": text,
            "rewards": {name: number_or_none(values[i]) for name, values in answers.terms.items()},
        }
        for i, (record, text) in enumerate(zip(asked, answers.texts, strict=True))
    ]


def report_lines(report: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[str]:
    """The report for a terminal."""
    lines = []
    for folder, figures in report.items():
        lines.append(folder)
        for name, figure in figures.items():
            lines.append(f"  {name:<36} {figure['value']:9.4f}  [{figure['low']:.4f}, {figure['high']:.4f}]")
    return lines
