"""Rewards by name: every rule there is, and the expressions that name and weigh them.

    build_rewards("0.7*runs/reward + 0.3*literal", tokenizer=tokenizer)

A name is one of the settings' `[rewards.NAME]`, a kind of rule, a format, the folder of a reward checkpoint, or a
function in a file, `file.py:function`.
"""

import math
import re
from collections.abc import Mapping, Sequence
from itertools import chain, count
from pathlib import Path
from typing import Annotated, cast

import torch
from pydantic import JsonValue, TypeAdapter, ValidationError

from llmcore.config import first_problem
from llmcore.errors import ConfigError, ExtensionError
from llmcore.extensions import Part, find_part, part
from llmcore.manifest import Manifest
from llmcore.tokenizer import Tokenizer
from llmrl.rewards.answers import ExactReward, LiteralReward, NumericReward
from llmrl.rewards.checkpoints import CheckpointReward, checkpoint_function
from llmrl.rewards.formats import FORMATS, FormatReward
from llmrl.rewards.functions import FunctionReward, is_function_path
from llmrl.rewards.lengths import LengthReward, OverlongReward
from llmrl.rewards.programs import ParsesReward, PassesTestsReward
from llmrl.rewards.reward import DEFAULT_TIMEOUT, GROUP, Reward
from llmrl.rewards.sums import Rewards, Term

RULES: dict[str, type[Part]] = {
    "literal": LiteralReward,
    "exact": ExactReward,
    "numeric": NumericReward,
    "format": FormatReward,
    "length": LengthReward,
    "overlong": OverlongReward,
    "parses": ParsesReward,
    "passes_tests": PassesTestsReward,
    "function": FunctionReward,
    "checkpoint": CheckpointReward,
}
WITH_A_PATH = {"function": "FILE.py:FUNCTION", "checkpoint": "the folder of a reward checkpoint"}
AnyReward = Annotated[Reward, part(GROUP, **RULES)]


def build_rewards(
    expression: str | None,
    *,
    tokenizer: Tokenizer,
    named: Mapping[str, Reward] | None = None,
    policies: Sequence[Manifest] = (),
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Rewards:
    """The rewards that an expression names: `literal`, `runs/reward`, `0.7*runs/reward + 0.3*literal`.

    A name that is not in `named` means what it meant when one of the `policies` was trained.
    """
    if not expression:
        raise ConfigError(
            "--reward is missing: it says what is rewarded",
            hint="give --reward literal, a reward checkpoint, or a sum as '0.7*runs/reward + 0.3*literal'",
        )
    terms: list[Term] = []
    parents: dict[str, Manifest] = {}
    parsed = parse_expression(expression)
    known = {**trained_with(policies, [name for _, name in parsed if name not in (named or {})]), **(named or {})}
    for weight, name in parsed:
        reward = find_reward(name, known)
        label = unused(short_name(name), [term.name for term in terms])
        if isinstance(reward, CheckpointReward):
            function, manifest = checkpoint_function(Path(reward.path), tokenizer, device=device, dtype=dtype)
            parents[unused("reward", list(parents))] = manifest
        else:
            function = reward.build()
        terms.append(Term(label, weight, function, getattr(reward, "timeout", DEFAULT_TIMEOUT)))
    return Rewards(terms, parents)


def parse_expression(expression: str) -> list[tuple[float, str]]:
    """`0.7*runs/reward + literal` -> [(0.7, "runs/reward"), (1.0, "literal")]."""
    terms = []
    for piece in re.split(r"\s*\+\s*(?=\S)", expression.strip()):
        weight, times, name = piece.rpartition("*")
        name = name.strip()
        try:
            number = float(weight) if times else 1.0
        except ValueError:
            raise ConfigError(
                f"reward {expression!r}: {weight.strip()!r} is no number", hint="write a term as 0.5*NAME"
            ) from None
        if not name or not math.isfinite(number):
            raise ConfigError(f"reward {expression!r}: {piece!r} is no term", hint="write a term as 0.5*NAME")
        terms.append((number, name))
    if not any(weight for weight, _ in terms):
        raise ConfigError(
            f"reward {expression!r}: every weight is 0, so there is nothing to learn",
            hint="give at least one term another weight: 1.0*NAME",
        )
    return terms


def trained_with(policies: Sequence[Manifest], names: Sequence[str]) -> dict[str, Reward]:
    """Those of the names that stand below `rewards` in the settings of a policy, and what they mean there."""
    found: dict[str, Reward] = {}
    for manifest in policies:
        saved = manifest.config.get("rewards")
        for name in names:
            if not isinstance(saved, dict) or name not in saved:
                continue
            reward = saved_reward(name, saved[name])
            if found.setdefault(name, reward) != reward:
                raise ConfigError(
                    f"{name!r} is one reward for one policy and another for another: {found[name]!r} and {reward!r}",
                    hint=f"say which is meant: rewards.{name}.kind={reward.kind} …",
                )
    return found


def saved_reward(name: str, table: JsonValue) -> Reward:
    """A rule, as the settings of a policy have it."""
    try:
        return TypeAdapter[Reward](AnyReward).validate_python(table)
    except ValidationError as error:
        raise ConfigError(
            f"reward {name!r} cannot be what it was in the policy's training: {first_problem(error)}",
            hint=f"say what it shall be: rewards.{name}.kind=…",
        ) from None


def find_reward(name: str, named: Mapping[str, Reward]) -> Reward:
    """The reward of a name in an expression."""
    if name in named:
        return named[name]
    if is_function_path(name):
        return FunctionReward(path=name)
    if Path(name).is_dir():
        return CheckpointReward(path=name)
    if name in FORMATS:
        return FormatReward.model_validate({"name": name})
    try:
        kind = find_part(GROUP, name, RULES)
    except (ConfigError, ExtensionError):
        known = ", ".join(sorted({*named, *RULES, *FORMATS} - {*WITH_A_PATH, "format"}))
        raise ConfigError(
            f"reward {name!r} is neither a rule nor a folder",
            hint=f"give the folder of a reward checkpoint, FILE.py:FUNCTION, or one of: {known}",
        ) from None
    if name in WITH_A_PATH:
        raise ConfigError(f"reward {name!r} is named by what it is made from", hint=f"give {WITH_A_PATH[name]}")
    reward = kind.model_validate({})
    if not callable(getattr(reward, "build", None)):
        raise ExtensionError(
            f"{kind.__name__} is offered as the reward {name!r}, but has no build()",
            hint="give its class a method build(), as llmrl.rewards.reward.Reward has",
        )
    return cast(Reward, reward)  # another package's rule may come from a Part of its own


def short_name(name: str) -> str:
    """What a term is called in the metrics: a folder's or function's own name."""
    return name.rpartition(":")[2] if is_function_path(name) else Path(name).name


def unused(name: str, taken: Sequence[str]) -> str:
    """The name, or the first of name-2, name-3, … that is free."""
    numbered = (f"{name}-{number}" for number in count(2))
    return next(free for free in chain([name], numbered) if free not in taken)
