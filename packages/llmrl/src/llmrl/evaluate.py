"""What a policy earns on held-out prompts, how far it went for that, and whether two policies really differ.

Every mean comes with its 95 % interval over prompts. Two policies answer the same prompts, so their difference is taken
prompt by prompt: its interval is much narrower than the two apart.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import JsonValue
from torch import Tensor

from llmcore.checkpoint import load_checkpoint
from llmcore.generate.sampling import Sampling
from llmcore.intervals import Interval, mean
from llmcore.model.transformer import Transformer
from llmcore.records import Prompt, load_records
from llmcore.storage import write_durably
from llmcore.tokenizer import Tokenizer, require_same_tokenizer
from llmcore.train.device import resolve_device
from llmrl.advantages import group_advantages
from llmrl.best_of import best_of, best_of_divergence, pass_rates
from llmrl.rewards.names import build_rewards
from llmrl.rewards.sums import Rewards
from llmrl.rollout import Prompts, Rollout, complete, number_or_none, reference_logprobs, score_rows


class Answers(NamedTuple):
    """One policy's completions of some prompts, `samples` of each, and what they earned."""

    rewards: Tensor
    """(P·S,) NaN where unscorable."""
    terms: dict[str, Tensor]
    """(P·S,) each."""
    lengths: Tensor
    """(P·S,) tokens."""
    truncated: Tensor
    """(P·S,) bool."""
    divergence: Tensor | None
    """(P·S,) log policy/reference summed over the tokens; its mean estimates the KL. None without a reference."""
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
    policy = score_rows(model, rollout, temperature=temperature)
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
    """(P·S,) -> (P,) means of what is not NaN; samples of one prompt are not independent, prompts are."""
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
    reference: Path | None = None,
    count: int = 500,
    samples: int = 1,
    max_new_tokens: int = 32,
    seed: int = 0,
    answers: Path | None = None,
    device: str = "auto",
) -> dict[str, dict[str, dict[str, float]]]:
    """By checkpoint, then `sampled`, `greedy` and the gains over the first checkpoint: figures with intervals.

    `answers` names a file that takes every completion, one JSON object a line.
    """
    where = resolve_device(device)
    first = load_checkpoint(folders[0], expect="policy", device=where)
    anchor_folder = reference or folders[0]
    anchor = load_checkpoint(anchor_folder, expect="policy", device=where)
    require_same_tokenizer(anchor_folder, anchor.tokenizer, first.tokenizer, of="the policy")
    rewards = build_rewards(reward, tokenizer=first.tokenizer, device=where)
    records, _ = load_records(prompts, Prompt, "valid")
    held_out = Prompts(
        records[:count], first.tokenizer, longest=first.model.config.context - max_new_tokens, max_dropped=1.0
    )
    chosen = range(len(held_out.records))
    report: dict[str, dict[str, dict[str, float]]] = {}
    base: dict[str, Answers] = {}
    given: list[dict[str, JsonValue]] = []
    for folder in folders:
        model = load_checkpoint(folder, expect="policy", device=where)
        require_same_tokenizer(folder, model.tokenizer, first.tokenizer, of="the policy")
        entry: dict[str, dict[str, float]] = {}
        for way, temperature, times in (("sampled", 1.0, samples), ("greedy", 0.0, 1)):
            found = answer(
                model.model,
                held_out,
                chosen,
                first.tokenizer,
                rewards=rewards,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                samples=times,
                seed=seed,
                reference=anchor.model if temperature else None,
            )
            figures = summarize(found) | {name: interval(values) for name, values in several(found).items()}
            if times > 1:
                figures[f"best_of_{times}/kl_at_most"] = Interval(*[best_of_divergence(times)] * 3)
            if way in base:
                figures |= gains(base[way], found)
            base.setdefault(way, found)
            entry |= {f"{way}/{name}": figure._asdict() for name, figure in figures.items()}
            given += answer_lines(folder, way, held_out, found)
        report[str(folder)] = entry
    if answers is not None:
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in given)
        write_durably(answers, text.encode("utf-8", "surrogatepass"))
    return report


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


def held_out_prompt(path: Path, number: int) -> Prompt:
    """A held-out prompt by number."""
    records, _ = load_records(path, Prompt, "valid")
    return records[number % len(records)]


def show_rollout(
    folder: Path,
    record: Prompt,
    *,
    reward: str | None,
    samples: int,
    temperature: float,
    max_new_tokens: int,
    seed: int,
    device: str = "auto",
) -> list[dict[str, JsonValue]]:
    """Completions of one prompt with each reward and the advantage within the group."""
    policy = load_checkpoint(folder, expect="policy", device=resolve_device(device))
    rewards = build_rewards(reward, tokenizer=policy.tokenizer, device=resolve_device(device))
    prompts = Prompts([record], policy.tokenizer, longest=policy.model.config.context - max_new_tokens)
    found = answer(
        policy.model,
        prompts,
        [0],
        policy.tokenizer,
        rewards=rewards,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        samples=samples,
        seed=seed,
    )
    advantages = group_advantages(found.rewards, samples=samples).advantages
    return [
        {
            "completion": text,
            "reward": number_or_none(found.rewards[i]),
            "rewards": {name: number_or_none(values[i]) for name, values in found.terms.items()},
            "advantage": float(advantages[i]),
            "tokens": int(found.lengths[i]),
            "stopped": not bool(found.truncated[i]),
        }
        for i, text in enumerate(found.texts)
    ]


def rollout_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The same for a terminal: reward, advantage, every term if there are several, tokens, and the text."""
    lines = []
    for row in rows:
        terms = "".join(f"  {name} {value}" for name, value in row["rewards"].items() if len(row["rewards"]) > 1)
        tokens = f"{row['tokens']:>4}{' ' if row['stopped'] else '…'}"
        lines.append(f"  {row['reward']!s:>9}  A {row['advantage']:+.2f}{terms}  {tokens} {row['completion']!r}")
    return lines
