"""How good a reward model is on held-out pairs, beside the ruler that the longer answer wins."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from llmcore import intervals
from llmcore.errors import DataError
from llmcore.intervals import Interval
from llmcore.model.transformer import Transformer
from llmcore.scoring import Scorer, score_rows
from llmreward.batches import Group, tokenize_groups
from llmreward.config import RewardData
from llmreward.invariance import INVARIANT, TELLING, probe
from llmreward.preferences import load_held_out

BINS = 10
PROBES = 32
"""Prompts whose answers are scored alone, in company, in another order and with other padding."""
EDGES = (0, 8, 32, 128)
"""Differences of length, in tokens, after which another bucket begins."""


class Proportion(NamedTuple):
    """A share of some cases with its 95 % Wilson interval."""

    value: float
    low: float
    high: float
    cases: int


class Bin(NamedTuple):
    """One bar of a reliability curve: how sure the model was, and how often right, with its interval."""

    confidence: float
    accuracy: float
    pairs: int
    low: float
    high: float


class PairScores(NamedTuple):
    """Raw scores and lengths in tokens of both sides of N pairs, (N,) each."""

    chosen: np.ndarray
    rejected: np.ndarray
    chosen_length: np.ndarray
    rejected_length: np.ndarray


class Report(NamedTuple):
    """What held-out pairs say about a reward model; intervals are of 95 % and take pairs for independent."""

    accuracy: Proportion
    """Pairs whose chosen answer scores strictly higher: a tie is wrong."""
    ruler: Proportion
    """The same if the longer answer won; two of equal length count one half."""
    loss: Interval
    """Mean -log σ(r_chosen - r_rejected), the negative log-likelihood (NLL); ln 2 is a coin."""
    margin: Interval
    """Mean r_chosen - r_rejected, in the logits that training fits."""
    calibration_error: float
    """Expected calibration error (ECE) of σ(|margin|) over ten bins."""
    reliability: tuple[Bin, ...]
    """The bins that hold any pair."""
    by_length: dict[str, Proportion]
    """Accuracy where the chosen answer is shorter, as long, and longer."""
    by_difference: dict[str, Proportion]
    """Accuracy by how many tokens longer (+) or shorter (-) the chosen answer is."""
    length_correlation: Interval
    """Pearson's r of score and length over all answers."""
    margin_length_correlation: Interval
    """Pearson's r of the differences of score and of length: what length explains within a prompt."""


class Evaluation(NamedTuple):
    """A report, how much the rewards vary by what must not change them, and what became of the rows."""

    report: Report
    invariance: dict[str, float]
    counts: Mapping[str, int]


def evaluate_file(scorer: Scorer, path: Path, *, limit: int | None = None) -> Evaluation:
    """Score the held-out split of some preferences, cut to length as in training."""
    groups, counts = held_out_groups(scorer, path, limit=limit)
    return Evaluation(
        report=evaluate_groups(scorer.model, groups, pad_id=scorer.tokenizer.pad_id),
        invariance=probe(scorer, groups[:PROBES]),
        counts=counts,
    )


def held_out_groups(scorer: Scorer, path: Path, *, limit: int | None = None) -> tuple[list[Group], dict[str, int]]:
    """The held-out split as the reward model was trained to read it, and what became of its rows."""
    data = RewardData.model_validate(scorer.manifest.config.get("data", {}))
    preferences = load_held_out(path)
    context = scorer.model.config.context
    groups = tokenize_groups(preferences.records[:limit], scorer.tokenizer, data=data, context=context)
    if not groups.kept:
        raise DataError(f"{path} has no held-out pair to score", hint="give preferences of two prompts or more")
    return groups.kept, {**groups.counts, **preferences.unusable}


def evaluate_groups(model: Transformer, groups: Sequence[Group], *, pad_id: int) -> Report:
    """Score every answer once and report on all comparisons."""
    return report(score_groups(model, groups, pad_id=pad_id))


def score_groups(model: Transformer, groups: Sequence[Group], *, pad_id: int) -> PairScores:
    """Raw scores of both sides of each comparison, by the path that reinforcement learning uses."""
    rows = [row for group in groups for row in group.rows]
    scores = score_rows(model, rows, pad_id=pad_id).double().numpy()
    better, worse = comparisons_of(groups)
    lengths = np.array([len(row) for row in rows])
    return PairScores(scores[better], scores[worse], lengths[better], lengths[worse])


def comparisons_of(groups: Sequence[Group]) -> tuple[np.ndarray, np.ndarray]:
    """(better, worse) of all comparisons, each the number of an answer among those of all groups."""
    starts = np.cumsum([0, *(len(group.rows) for group in groups)]).tolist()
    pairs = [
        (start + one.better, start + one.worse)
        for start, group in zip(starts, groups, strict=False)
        for one in group.comparisons
    ]
    better, worse = np.array(pairs).T
    return better, worse


def report(scores: PairScores) -> Report:
    """All figures of scored pairs."""
    margins = scores.chosen - scores.rejected
    longer = scores.chosen_length - scores.rejected_length
    calibration_error, reliability = calibration(margins)
    groups = {"shorter": longer < 0, "as_long": longer == 0, "longer": longer > 0}
    return Report(
        accuracy=share(margins > 0),
        ruler=proportion(float((longer > 0).sum() + (longer == 0).sum() / 2), len(longer)),
        loss=intervals.mean(np.logaddexp(0, -margins)),
        margin=intervals.mean(margins),
        calibration_error=calibration_error,
        reliability=reliability,
        by_length={name: share(margins[group] > 0) for name, group in groups.items() if group.any()},
        by_difference={name: share(margins[group] > 0) for name, group in buckets(longer)},
        length_correlation=correlation(
            np.concatenate([scores.chosen, scores.rejected]),
            np.concatenate([scores.chosen_length, scores.rejected_length]),
        ),
        margin_length_correlation=correlation(margins, longer),
    )


def buckets(longer: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """The pairs of each difference of length, from much shorter to much longer; empty buckets are left out."""
    bounds = [(low + 1, high) for low, high in zip(EDGES, (*EDGES[1:], None), strict=True)]
    names = [f"{low}…{high}" if high else f"{low}…" for low, high in bounds]
    sizes = [(abs(longer) >= low) & (abs(longer) <= (high or np.inf)) for low, high in bounds]
    shorter = [(f"-{name}", size & (longer < 0)) for name, size in zip(names, sizes, strict=True)]
    above = [(f"+{name}", size & (longer > 0)) for name, size in zip(names, sizes, strict=True)]
    yield from ((name, here) for name, here in [*shorter[::-1], ("0", longer == 0), *above] if here.any())


def proportion(right: float, count: int) -> Proportion:
    """A share and its interval; of nothing, anything is possible."""
    return Proportion(*intervals.share(right, count), count) if count else Proportion(0.0, 0.0, 1.0, 0)


def share(right: np.ndarray) -> Proportion:
    return proportion(float(right.sum()), len(right))


def calibration(margins: np.ndarray) -> tuple[float, tuple[Bin, ...]]:
    """(ECE, reliability curve) of the probability that the higher score is right, in ten bins from 1/2 to 1."""
    confidence = 1 / (1 + np.exp(-np.abs(margins)))
    right = margins > 0
    places = np.minimum(((confidence - 0.5) * 2 * BINS).astype(int), BINS - 1)
    inside = [places == place for place in range(BINS)]
    bins = tuple(reliability_bin(confidence[here], right[here]) for here in inside if here.any())
    error = sum(bar.pairs * abs(bar.accuracy - bar.confidence) for bar in bins) / max(len(margins), 1)
    return error, bins


def reliability_bin(confidence: np.ndarray, right: np.ndarray) -> Bin:
    accuracy, low, high, pairs = share(right)
    return Bin(float(confidence.mean()), accuracy, pairs, low, high)


def correlation(left: np.ndarray, right: np.ndarray) -> Interval:
    """Pearson's r with the interval of Fisher's z (1921); 0 where one of the two does not vary."""
    if len(left) < 2 or left.std() == 0 or right.std() == 0:
        return Interval(0.0, -1.0, 1.0)
    r = float(np.clip(np.corrcoef(left, right)[0, 1], -1, 1))
    if len(left) < 4 or abs(r) > 1 - 1e-12:
        return Interval(r, -1.0, 1.0) if len(left) < 4 else Interval(r, r, r)
    half = intervals.Z_95 / math.sqrt(len(left) - 3)
    return Interval(r, math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half))


def as_json(evaluation: Evaluation) -> dict[str, object]:
    """Every figure, for machines."""
    found = evaluation.report
    return {
        "accuracy": found.accuracy._asdict(),
        "ruler": found.ruler._asdict(),
        "loss": found.loss._asdict(),
        "margin": found.margin._asdict(),
        "calibration_error": found.calibration_error,
        "reliability": [bar._asdict() for bar in found.reliability],
        "by_length": {name: accuracy._asdict() for name, accuracy in found.by_length.items()},
        "by_difference": {name: accuracy._asdict() for name, accuracy in found.by_difference.items()},
        "length_correlation": found.length_correlation._asdict(),
        "margin_length_correlation": found.margin_length_correlation._asdict(),
        "invariance": evaluation.invariance,
        "counts": dict(evaluation.counts),
    }


def lines(evaluation: Evaluation) -> Iterator[str]:
    """The evaluation in words."""
    found = evaluation.report
    yield f"accuracy               {in_words(found.accuracy)}   (ties are wrong)"
    yield f"'longer answer wins'   {in_words(found.ruler)}"
    if found.accuracy.low <= max(found.ruler.value, 1 - found.ruler.value):
        yield "  the model is not surely better than this ruler, or its reverse"
    yield "accuracy by how many tokens longer (+) or shorter (-) the chosen answer is"
    for name, accuracy in found.by_difference.items():
        yield f"  {name:<20} {in_words(accuracy)}"
    yield f"NLL {found.loss} (a coin: 0.6931) · margin {found.margin} · ECE {found.calibration_error:.3f}"
    of_answers, of_pairs = found.length_correlation, found.margin_length_correlation
    yield f"correlation of reward and length {of_answers}, of their differences in a pair {of_pairs}"
    for bar in found.reliability:
        yield f"  sure {bar.confidence:.2f} · right {bar.accuracy:.2f} {'█' * round(20 * bar.accuracy)} ({bar.pairs:,})"
    yield f"what must not change a reward changes it by: {in_figures(evaluation.invariance, INVARIANT)}"
    yield f"what may: {in_figures(evaluation.invariance, TELLING)}"
    yield ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in evaluation.counts.items())


def in_figures(values: Mapping[str, float], names: Sequence[str]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {values[name]:.2g}" for name in names)


def in_words(share: Proportion) -> str:
    return f"{share.value:6.1%} [{share.low:.1%}, {share.high:.1%}] of {share.cases:,}"
