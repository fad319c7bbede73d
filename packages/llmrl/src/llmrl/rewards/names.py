"""Rewards by name: every rule there is, and the expressions that name and weigh them.

    build_rewards("0.7*runs/reward + 0.3*literal", tokenizer=tokenizer)

A name is one of the settings' `[rewards.NAME]`, a kind of rule, a format, the folder of a reward checkpoint, or a
function in a file, `file.py:function`.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, cast

import torch

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
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Rewards:
    """The rewards that an expression names: `literal`, `runs/reward`, `0.7*runs/reward + 0.3*literal`."""
    if not expression:
        raise ConfigError(
            "--reward is missing: it says what is rewarded",
            hint="give --reward literal, a reward checkpoint, or a sum as '0.7*runs/reward + 0.3*literal'",
        )
    terms: list[Term] = []
    parents: dict[str, Manifest] = {}
    for weight, name in parse_expression(expression):
        reward = find_reward(name, named or {})
        label = unused(short_name(name), [term.name for term in terms])
        if isinstance(reward, CheckpointReward):
            function, manifest = checkpoint_function(Path(reward.path), tokenizer, device=device, dtype=dtype)
            parents["reward" if "reward" not in parents else label] = manifest
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
    """The name, numbered if it is taken."""
    count = sum(other == name or other.startswith(f"{name}-") for other in taken)
    return f"{name}-{count + 1}" if count else name
