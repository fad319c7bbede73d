"""What a completion is worth: rules by name, reward checkpoints, and weighted sums of them.

    build_rewards("0.7*runs/reward + 0.3*literal", tokenizer=tokenizer)

A rule is a Part in the entry-point group `llmrl.reward`, so that another package can offer its own:

    class Polite(Reward):
        kind: Literal["polite"] = "polite"

        def build(self) -> RewardFunction:
            return lambda samples: [float("please" in sample.text) for sample in samples]

One number for each completion. None, NaN, infinity, an exception or a timeout make it unscorable: it leaves its group's
baseline, its advantage is 0, and it is counted. It is never taken for a reward of 0.
"""

import ast
import contextlib
import math
import re
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from llmcore.errors import ArtifactError, ConfigError, ExtensionError, TrainingError
from llmcore.extensions import Part, find_part, part
from llmcore.literals import same_literal
from llmcore.manifest import Manifest
from llmcore.records import Prompt
from llmcore.scoring import load_scorer, scored_row
from llmcore.tokenizer import Tokenizer

GROUP = "llmrl.reward"
TIMEOUT = 60.0  # seconds that one call of a reward function may take


class Sample(NamedTuple):
    """A completion as a reward sees it."""

    prompt: Prompt
    """The prompt's record: messages, answer, and the row's other keys as `extra`."""
    text: str
    """The completion without its stop token; a control token inside it is spelled out."""
    ids: tuple[int, ...] = ()
    """The completion's tokens, the stop token included."""
    stopped: bool = True
    """Whether it ended by itself; False if it was cut at the longest length."""


RewardFunction = Callable[[Sequence[Sample]], Sequence[float | None]]


class Reward(Part):
    """A rule that gives each completion one number."""

    def build(self) -> RewardFunction:
        """The function from completions to rewards, in their order."""
        raise NotImplementedError(f"{type(self).__name__} must define build()")


class LiteralReward(Reward):
    """1 if the completion is the Python literal that the answer is, however it is written."""

    kind: Literal["literal"] = "literal"

    def build(self) -> RewardFunction:
        return lambda samples: [float(same_literal(s.text, s.prompt.answer)) for s in samples]


class ExactReward(Reward):
    """1 if the completion is the answer, spaces around both aside."""

    kind: Literal["exact"] = "exact"

    def build(self) -> RewardFunction:
        return lambda samples: [float(s.text.strip() == s.prompt.answer.strip()) for s in samples]


class NumericReward(Reward):
    """1 if the number after the last `####`, or else the last number, is the answer's (GSM8K)."""

    kind: Literal["numeric"] = "numeric"

    def build(self) -> RewardFunction:
        return lambda samples: [same_number(s.text, s.prompt.answer) for s in samples]


class LengthReward(Reward):
    """1 at `target` tokens, falling in a straight line to 0 at none and at twice as many."""

    kind: Literal["length"] = "length"
    target: int = Field(16, ge=1)
    """The wanted length in tokens, the stop token aside."""

    def build(self) -> RewardFunction:
        return lambda samples: [max(0.0, 1 - abs(spoken(s) - self.target) / self.target) for s in samples]


class OverlongReward(Reward):
    """0 up to `limit - cache` tokens, then a straight line to -1 at `limit` (DAPO, equation 13)."""

    kind: Literal["overlong"] = "overlong"
    limit: int = Field(64, ge=1)
    """Tokens from which the punishment is full."""
    cache: int = Field(16, ge=1)
    """Over how many tokens it grows."""

    def build(self) -> RewardFunction:
        return lambda samples: [-min(1.0, max(0.0, (len(s.ids) - self.limit) / self.cache + 1)) for s in samples]


class ParsesReward(Reward):
    """1 if the completion is Python that parses, and is not empty."""

    kind: Literal["parses"] = "parses"

    def build(self) -> RewardFunction:
        return lambda samples: [float(parses(s.text)) for s in samples]


class CheckpointReward(Reward):
    """The score of a reward model."""

    kind: Literal["checkpoint"] = "checkpoint"
    path: str
    """The folder that `llmreward run` wrote."""


RULES: dict[str, type[Part]] = {
    "literal": LiteralReward,
    "exact": ExactReward,
    "numeric": NumericReward,
    "length": LengthReward,
    "overlong": OverlongReward,
    "parses": ParsesReward,
    "checkpoint": CheckpointReward,
}
AnyReward = Annotated[Reward, part(GROUP, **RULES)]


class Term(NamedTuple):
    """One part of a weighted sum."""

    name: str
    weight: float
    function: RewardFunction


class Scores(NamedTuple):
    """The rewards of some completions; NaN where one is unscorable."""

    total: Tensor  # (N,)
    terms: dict[str, Tensor]  # each (N,), unweighted
    failures: dict[str, str]  # the first reason of each term that could not score something

    def take(self, rows: Tensor) -> "Scores":
        """Some completions."""
        return Scores(self.total[rows], {name: values[rows] for name, values in self.terms.items()}, self.failures)

    def join(self, other: "Scores") -> "Scores":
        """These completions, then those."""
        terms = {name: torch.cat([values, other.terms[name]]) for name, values in self.terms.items()}
        return Scores(torch.cat([self.total, other.total]), terms, self.failures | other.failures)

    def metrics(self) -> dict[str, tuple[float, int]]:
        """The mean reward, each term's mean and deviation, and the share that could not be scored."""
        figures = {
            "reward": sum_and_count(self.total),
            "unscorable": (float(self.total.isnan().sum()), len(self.total)),
        }
        for name, values in self.terms.items():
            known = values[~values.isnan()]
            figures[f"rewards/{name}/mean"] = sum_and_count(values)
            figures[f"rewards/{name}/std"] = (float(known.std()) if len(known) > 1 else 0.0, 1)
        return figures


class Rewards:
    """A weighted sum of rewards, which also knows what it was made from."""

    def __init__(self, terms: Sequence[Term], parents: Mapping[str, Manifest] | None = None) -> None:
        self.terms = list(terms)
        self.parents = dict(parents or {})

    def score(self, samples: Sequence[Sample]) -> Scores:
        """Each completion's weighted sum, and each term apart.

        A term of weight 0 is watched only: it moves nothing, and where it fails the sum still counts.
        """
        total = torch.zeros(len(samples), dtype=torch.float64)
        terms: dict[str, Tensor] = {}
        failures: dict[str, str] = {}
        for term in self.terms:
            values, reason = call(term.function, samples)
            terms[term.name] = torch.tensor(values, dtype=torch.float64)
            if reason:
                failures[term.name] = reason
            if term.weight:
                total += term.weight * terms[term.name]
        return Scores(total.float(), {name: values.float() for name, values in terms.items()}, failures)


def build_rewards(
    expression: str | None,
    *,
    tokenizer: Tokenizer,
    named: Mapping[str, Reward] | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Rewards:
    """The rewards that an expression names: `literal`, `runs/reward`, `0.7*runs/reward + 0.3*literal`.

    A name is one of `named` (the settings' `[rewards.NAME]`), a kind of rule, or the folder of a reward checkpoint.
    """
    if not expression:
        raise ConfigError(
            "--reward is missing: it says what is rewarded",
            hint="give --reward literal, a reward checkpoint, or a sum as '0.7*runs/reward + 0.3*literal'",
        )
    terms: list[Term] = []
    parents: dict[str, Manifest] = {}
    for weight, name in parse_expression(expression):
        reward = find_reward(name, named or {})
        label = unused(Path(name).name, [term.name for term in terms])
        if isinstance(reward, CheckpointReward):
            function, manifest = checkpoint_function(Path(reward.path), tokenizer, device=device, dtype=dtype)
            parents["reward" if "reward" not in parents else label] = manifest
        else:
            function = reward.build()
        terms.append(Term(label, weight, function))
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
        raise ConfigError(f"reward {expression!r}: every weight is 0, so there is nothing to learn")
    return terms


def find_reward(name: str, named: Mapping[str, Reward]) -> Reward:
    """The rule or checkpoint of a name in an expression."""
    if name in named:
        return named[name]
    if Path(name).is_dir():
        return CheckpointReward(path=name)
    try:
        kind = find_part(GROUP, name, RULES)
    except (ConfigError, ExtensionError):
        known = ", ".join(sorted({*named, *RULES} - {"checkpoint"}))
        raise ConfigError(
            f"reward {name!r} is neither a rule nor a folder",
            hint=f"give the folder of a reward checkpoint, or one of: {known}",
        ) from None
    if kind is CheckpointReward:
        raise ConfigError("a reward checkpoint is named by its folder", hint="give --reward runs/reward")
    reward = kind.model_validate({})
    assert isinstance(reward, Reward), f"{kind} is offered as a reward, but is none"
    return reward


def checkpoint_function(
    folder: Path, tokenizer: Tokenizer, *, device: torch.device | str, dtype: torch.dtype
) -> tuple[RewardFunction, Manifest]:
    """Scores by a reward model, which must read text by the policy's own tokenizer."""
    scorer = load_scorer(folder, device=device, dtype=dtype)
    if scorer.tokenizer.sha256 != tokenizer.sha256:
        raise ArtifactError(
            f"{folder} has another tokenizer than the policy: "
            f"{scorer.tokenizer.sha256[:16]!r} and {tokenizer.sha256[:16]!r}",
            hint="train the reward model from this policy, or one with the same tokenizer",
        )

    def function(samples: Sequence[Sample]) -> list[float | None]:
        rows = [scored_row(s.prompt.prompt, s.text, scorer.tokenizer) for s in samples]
        return list(scorer.score(rows).tolist())

    return function, scorer.manifest


def call(function: RewardFunction, samples: Sequence[Sample]) -> tuple[list[float], str]:
    """A number or NaN for each sample, and the first reason for a NaN.

    A call that fails for all is repeated for each alone, so that one bad completion costs no more than itself.
    """
    values, reason = attempt(function, samples)
    if values is None and len(samples) > 1 and reason != "timeout":
        pairs = [attempt(function, [sample]) for sample in samples]
        return [v[0] if v else math.nan for v, _ in pairs], next((r for _, r in pairs if r), "")
    return (values or [math.nan] * len(samples)), reason


def attempt(function: RewardFunction, samples: Sequence[Sample]) -> tuple[list[float] | None, str]:
    """One call of somebody's function: its numbers (NaN for what is none), or None and why it failed."""
    try:
        with time_limit(TIMEOUT), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what parsing a model's text warns of is no news
            found = list(function(samples))
    except (KeyboardInterrupt, MemoryError):
        raise
    except TimeoutError:
        return None, "timeout"
    except Exception as error:  # a user's reward function may raise anything
        return None, f"{type(error).__name__}: {error}"
    if len(found) != len(samples):
        return None, f"{len(found)} rewards for {len(samples)} completions"
    values = [as_number(value) for value in found]
    return values, "no finite number" if any(math.isnan(value) for value in values) else ""


def as_number(value: object) -> float:
    """A finite float, or NaN for anything else."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return math.nan
    return number if math.isfinite(number) else math.nan


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError when the block takes longer; only the main thread can be interrupted so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_number: int, _frame: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def check_scorable(scores: Scores, limit: float) -> None:
    """Stop when more than this share of a rollout is unscorable: the reward is broken, not the completions."""
    share = float(scores.total.isnan().float().mean())
    if share > limit:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in scores.failures.items())
        raise TrainingError(
            f"{share:.0%} of the completions could not be scored ({reasons})",
            hint=f"mend the reward, or allow it with rollout.max_unscorable={share:.2f}",
        )


NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?")


def sum_and_count(values: Tensor) -> tuple[float, int]:
    """Of what is not NaN."""
    known = values[~values.isnan()]
    return float(known.sum()), len(known)


def same_number(text: str, answer: str) -> float | None:
    """Whether two texts end in the same number; None if the answer has none."""
    wanted = final_number(answer)
    if wanted is None:
        return None
    return float(final_number(text) == wanted)


def final_number(text: str) -> Decimal | None:
    """The first number after the last `####`, or else the last number of a text."""
    _, marked, tail = text.rpartition("####")
    found = NUMBER.findall(tail if marked else text[-1000:])
    if not found:
        return None
    try:
        return Decimal((found[0] if marked else found[-1]).replace(",", "").replace("$", ""))
    except InvalidOperation:
        return None


def spoken(sample: Sample) -> int:
    """Tokens without the stop token."""
    return len(sample.ids) - int(sample.stopped)


def parses(text: str) -> bool:
    """Whether a text is a piece of Python."""
    try:
        return bool(ast.parse(text[:10_000]).body)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False


def unused(name: str, taken: Sequence[str]) -> str:
    """The name, numbered if it is taken."""
    count = sum(other == name or other.startswith(f"{name}-") for other in taken)
    return f"{name}-{count + 1}" if count else name
