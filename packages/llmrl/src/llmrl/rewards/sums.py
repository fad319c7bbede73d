"""Weighted sums of rewards, each term kept apart, and what to do about completions that cannot be scored."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from llmcore.errors import TrainingError
from llmcore.manifest import Manifest
from llmcore.train.distributed import ALONE, Ranks
from llmrl.rewards.calling import call
from llmrl.rewards.reward import DEFAULT_TIMEOUT, RewardFunction, Sample


class Term(NamedTuple):
    """One part of a weighted sum."""

    name: str
    weight: float
    function: RewardFunction
    timeout: float = DEFAULT_TIMEOUT
    """Seconds that one call may take."""


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

    def score(self, samples: Sequence[Sample], ranks: Ranks = ALONE) -> Scores:
        """Each completion's weighted sum, and each term apart.

        A term of weight 0 is watched only: it moves nothing, and where it fails the sum still counts. Each of the
        `ranks` scores its share of the completions; all get all.
        """
        count = len(samples)
        own = self.score_own(samples[ranks.share(count)])
        failures = {name: why for of_rank in ranks.gather(own.failures) for name, why in of_rank.items()}
        terms = {name: ranks.join_rows(values, count) for name, values in own.terms.items()}
        return Scores(ranks.join_rows(own.total, count), terms, failures)

    def score_own(self, samples: Sequence[Sample]) -> Scores:
        """The same of this process alone."""
        total = torch.zeros(len(samples), dtype=torch.float64)
        terms: dict[str, Tensor] = {}
        failures: dict[str, str] = {}
        for term in self.terms:
            values, reason = call(term.function, samples, timeout=term.timeout)
            terms[term.name] = torch.tensor(values, dtype=torch.float64)
            if reason:
                failures[term.name] = reason
            if term.weight:
                total += term.weight * terms[term.name]
        return Scores(total.float(), {name: values.float() for name, values in terms.items()}, failures)


def check_scorable(scores: Scores, limit: float) -> None:
    """Stop when more than this share of a rollout is unscorable: the reward is broken, not the completions."""
    share = float(scores.total.isnan().float().mean())
    if share > limit:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in scores.failures.items())
        raise TrainingError(
            f"{share:.0%} of the completions could not be scored ({reasons})",
            hint=f"mend the reward, or allow it with rollout.max_unscorable={share:.2f}",
        )


def sum_and_count(values: Tensor) -> tuple[float, int]:
    """Of what is not NaN."""
    known = values[~values.isnan()]
    return float(known.sum()), len(known)
