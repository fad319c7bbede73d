"""What bonus and penalty terms do to the ranking of answers: of held-out pairs, and of samples of a policy."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydantic import model_validator

from llmcore.checkpoint import load_checkpoint
from llmcore.config import Config
from llmcore.generate.engine import generate
from llmcore.generate.sampling import Sampling
from llmcore.records import Preference
from llmcore.scoring import Scorer
from llmcore.tokenizer import Tokenizer, require_same_tokenizer
from llmreward.batches import Group
from llmreward.config import Normalization
from llmreward.evaluate import Proportion, comparisons_of, held_out_groups, in_words, share
from llmreward.preferences import load_held_out
from llmreward.prompts import longest_answer, prompts_to_answer
from llmreward.ranking import kendall_tau
from llmreward.shaping import AnyShaping, LengthBonus, LengthPenalty, MissingEnd, Repetition, Shaping

ALL = "all together"
MOST = 2000
"""Answers over which one tau is taken: its cost grows with the square."""


class ShapeConfig(Config):
    """Terms to try, and the samples of a policy to try them on."""

    terms: dict[str, AnyShaping] = {
        "length_bonus": LengthBonus(),
        "length_penalty": LengthPenalty(),
        "missing_end": MissingEnd(),
        "repetition": Repetition(),
    }
    """By name; without a `kind`, the name is the kind. Those given replace all of these."""
    samples: Normalization = Normalization()
    """Which prompts a policy answers, and how."""

    @model_validator(mode="before")
    @classmethod
    def name_the_kinds(cls, tree: object) -> object:
        """`terms.repetition.amount=0.5` needs no kind."""
        if not isinstance(tree, dict) or not isinstance(tree.get("terms"), dict):
            return tree
        terms = tree["terms"].items()
        return {**tree, "terms": {name: {"kind": name, **t} if isinstance(t, dict) else t for name, t in terms}}


class Said(NamedTuple):
    """An answer as terms see it."""

    text: str
    ids: Sequence[int]
    stopped: bool


class Answers(NamedTuple):
    """N answers with their rewards, and the B comparisons and the prompts among which rank matters."""

    said: list[Said]
    rewards: np.ndarray
    """(N,) normalised."""
    prompts: np.ndarray
    """(N,) the number of each answer's prompt."""
    better: np.ndarray
    """(B,) the number of each comparison's better answer; empty where nobody compared."""
    worse: np.ndarray
    """(B,)"""


class Effect(NamedTuple):
    """What adding one term does."""

    mean: float
    """Its mean over the answers."""
    touched: Proportion
    """Answers that it gives or takes anything."""
    tau: float
    """Kendall's tau-b of the rewards before and after, over all answers (the first 2,000)."""
    tau_within: float
    """The same within each prompt, the mean over prompts whose rewards differ."""
    length_before: float
    """Kendall's tau-b of reward and length before."""
    length_after: float
    """And after."""
    accuracy: Proportion | None
    """Comparisons that are right after; none where nobody compared."""
    turned: Proportion | None
    """Comparisons whose order is another one."""


class Shaped(NamedTuple):
    """The effects on some answers, by term, and the accuracy before."""

    answers: int
    accuracy: Proportion | None
    effects: dict[str, Effect]


def effects_on(answers: Answers, terms: Mapping[str, Shaping]) -> Shaped:
    """The effect of each term alone, and of all of them together."""
    values = {name: np.array(term.build()(answers.said)) for name, term in terms.items()}
    if len(values) > 1:
        values[ALL] = np.sum(list(values.values()), axis=0)
    return Shaped(
        answers=len(answers.said),
        accuracy=accuracy(answers, answers.rewards),
        effects={name: effect(answers, value) for name, value in values.items()},
    )


def effect(answers: Answers, term: np.ndarray) -> Effect:
    before, after = answers.rewards, answers.rewards + term
    lengths = np.array([len(one.ids) for one in answers.said])
    first = slice(None, MOST)
    turned = None
    if len(answers.better):
        order = [np.sign(rewards[answers.better] - rewards[answers.worse]) for rewards in (before, after)]
        turned = share(order[0] != order[1])
    return Effect(
        mean=float(term.mean()),
        touched=share(term != 0),
        tau=kendall_tau(before[first], after[first]),
        tau_within=within_prompts(answers.prompts, before, after),
        length_before=kendall_tau(before[first], lengths[first]),
        length_after=kendall_tau(after[first], lengths[first]),
        accuracy=accuracy(answers, after),
        turned=turned,
    )


def accuracy(answers: Answers, rewards: np.ndarray) -> Proportion | None:
    """Comparisons that these rewards get right; a tie is wrong."""
    return share(rewards[answers.better] > rewards[answers.worse]) if len(answers.better) else None


def within_prompts(prompts: np.ndarray, before: np.ndarray, after: np.ndarray) -> float:
    """Kendall's tau-b among the answers of a prompt, the mean over prompts whose rewards differ before."""
    groups = np.split(np.argsort(prompts, kind="stable"), np.cumsum(np.bincount(prompts))[:-1])
    taus = [kendall_tau(before[group], after[group]) for group in groups if len(np.unique(before[group])) > 1]
    return float(np.mean(taus)) if taus else 1.0


def held_out_answers(scorer: Scorer, path: Path, *, limit: int | None = None) -> Answers:
    """The answers of held-out comparisons, with their rewards."""
    groups, _ = held_out_groups(scorer, path, limit=limit)
    rows = [row for group in groups for row in group.rows]
    better, worse = comparisons_of(groups)
    said = [written(answer, scorer.tokenizer) for group in groups for answer in group.answers]
    return Answers(said, scorer.score(rows).double().numpy(), numbers_of(groups), better, worse)


def numbers_of(groups: Sequence[Group]) -> np.ndarray:
    """The number of its group for each answer."""
    return np.repeat(np.arange(len(groups)), [len(group.rows) for group in groups])


def written(answer: str, tokenizer: Tokenizer) -> Said:
    """An answer that somebody wrote, which ends."""
    return Said(answer, [*tokenizer.encode(answer), tokenizer.end_of_turn_id], stopped=True)


def sampled_answers(scorer: Scorer, policy: Path, path: Path, samples: Normalization, *, seed: int = 0) -> Answers:
    """A policy's answers to held-out prompts, with their rewards."""
    device = next(scorer.model.parameters()).device
    model, tokenizer, _ = load_checkpoint(policy, expect="policy", device=device)
    require_same_tokenizer(policy, tokenizer, scorer.tokenizer, of="the reward model")
    records: list[Preference] = load_held_out(path).records
    context = min(scorer.model.config.context, model.config.context)
    prompts = prompts_to_answer(records, tokenizer, settings=samples, context=context)
    sampling = Sampling(max_new_tokens=longest_answer(samples, context), temperature=samples.temperature, seed=seed)
    found = generate(model, prompts, sampling, stop_ids=tokenizer.stop_ids, num_samples=samples.samples)
    rows = [[*prompt, *one.ids] for prompt, answers in zip(prompts, found, strict=True) for one in answers]
    said = [Said(tokenizer.decode(one.ids), one.ids, one.stopped) for answers in found for one in answers]
    none = np.array([], dtype=np.int64)
    numbers = np.repeat(np.arange(len(prompts)), samples.samples)
    return Answers(said, scorer.score(rows).double().numpy(), numbers, none, none)


def as_json(shaped: Mapping[str, Shaped]) -> dict[str, object]:
    """Every figure, for machines: by kind of answers, then by term."""
    return {name: plain(found) for name, found in shaped.items()}


def plain(value: object) -> object:
    """Named tuples as tables."""
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: plain(inner) for name, inner in value._asdict().items()}
    if isinstance(value, Mapping):
        return {name: plain(inner) for name, inner in value.items()}
    return value


def lines(shaped: Mapping[str, Shaped]) -> Iterator[str]:
    """The effects in words."""
    for name, found in shaped.items():
        yield f"{name}: {found.answers:,} answers" + (f", right {in_words(found.accuracy)}" if found.accuracy else "")
        for term, one in found.effects.items():
            yield f"  {term:<16} mean {one.mean:+.3f}, touches {one.touched.value:.1%}"
            if one.accuracy and one.turned:
                yield f"    right after   {in_words(one.accuracy)}, other order in {one.turned.value:.1%}"
            yield f"    tau with the ranking before {one.tau:+.3f}, within a prompt {one.tau_within:+.3f}"
            yield f"    tau of reward and length {one.length_before:+.3f} before, {one.length_after:+.3f} after"
