"""One prompt, some completions, each term of the reward, and the advantage GRPO would give them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from llmcore.checkpoint import load_checkpoint
from llmcore.records import Prompt
from llmcore.train.device import resolve_device
from llmrl.advantages import group_advantages
from llmrl.evaluate import FITTING, answer
from llmrl.prompts import Prompts
from llmrl.rewards.names import build_rewards
from llmrl.rewards.reward import Reward
from llmrl.samples import number_or_none


def show_rollout(
    folder: Path,
    record: Prompt,
    *,
    reward: str | None,
    samples: int,
    temperature: float,
    max_new_tokens: int,
    seed: int,
    named: Mapping[str, Reward] | None = None,
    device: str = "auto",
) -> list[dict[str, JsonValue]]:
    """Completions of one prompt with each reward and the advantage within the group."""
    policy = load_checkpoint(folder, expect="policy", device=resolve_device(device))
    rewards = build_rewards(
        reward, tokenizer=policy.tokenizer, named=named, policies=[policy.manifest], device=resolve_device(device)
    )
    prompts = Prompts([record], policy.tokenizer, longest=policy.model.config.context - max_new_tokens, hint=FITTING)
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
