"""How good a reward model is on held-out pairs, beside the ruler that the longer answer wins."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from llmcore import intervals
from llmcore.errors import DataError
from llmcore.model.transformer import Transformer
from llmcore.scoring import Scorer, score_rows
from llmreward.batches import Pair, tokenize_pairs
from llmreward.config import RewardData
from llmreward.preferences import load_preferences

BINS = 10
PROBES = 32
"""Conversations whose rewards are compared alone, in company and in another order."""


class Proportion(NamedTuple):
    """A share of some cases with its 95 % Wilson interval."""

    value: float
    low: float
    high: float
    cases: int


class Bin(NamedTuple):
    """One bar of a reliability curve: how sure the model was, and how often right."""

    confidence: float
    accuracy: float
    pairs: int


class PairScores(NamedTuple):
    """Raw scores and lengths in tokens of both sides of N pairs, (N,) each."""

    chosen: np.ndarray
    rejected: np.ndarray
    chosen_length: np.ndarray
    rejected_length: np.ndarray


class Report(NamedTuple):
    """What held-out pairs say about a reward model."""

    accuracy: Proportion
    """Pairs whose chosen answer scores strictly higher: a tie is wrong."""
    ruler: Proportion
    """The same if the longer answer won; two of equal length count one half."""
    loss: float
    """Mean -log σ(r_chosen - r_rejected); ln 2 is a coin."""
    margin: float
    """Mean r_chosen - r_rejected, in the logits that training fits."""
    calibration_error: float
    """Expected calibration error (ECE) of σ(|margin|) over ten bins."""
    reliability: tuple[Bin, ...]
    """The bins that hold any pair."""
    by_length: dict[str, Proportion]
    """Accuracy where the chosen answer is shorter, as long, and longer."""
    length_correlation: float
    """Pearson's r of score and length over all answers."""
    margin_length_correlation: float
    """Pearson's r of the differences of score and of length: what length explains within a prompt."""


class Evaluation(NamedTuple):
    """A report, how much the rewards vary by what must not change them, and what became of the rows."""

    report: Report
    invariance: dict[str, float]
    counts: Mapping[str, int]


def evaluate_file(scorer: Scorer, path: Path, *, limit: int | None = None) -> Evaluation:
    """Score the held-out split of some preferences, cut to length as in training."""
    data = RewardData.model_validate(scorer.manifest.config.get("data", {}))
    preferences = load_preferences(path, "valid")
    context = scorer.model.config.context
    pairs = tokenize_pairs(preferences.records[:limit], scorer.tokenizer, data=data, context=context)
    if not pairs.kept:
        raise DataError(f"{path} has no held-out pair to score", hint="give preferences of two prompts or more")
    return Evaluation(
        report=evaluate_pairs(scorer.model, pairs.kept, pad_id=scorer.tokenizer.pad_id),
        invariance=invariance(scorer, [pair.chosen for pair in pairs.kept[:PROBES]]),
        counts={**pairs.counts, **preferences.unusable},
    )


def evaluate_pairs(model: Transformer, pairs: Sequence[Pair], *, pad_id: int) -> Report:
    """Score both sides of each pair and report."""
    return report(score_pairs(model, pairs, pad_id=pad_id))


def score_pairs(model: Transformer, pairs: Sequence[Pair], *, pad_id: int) -> PairScores:
    """Raw scores of both sides, by the path that reinforcement learning uses."""
    rows = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    scores = score_rows(model, rows, pad_id=pad_id).double().numpy()
    lengths = np.array([len(row) for row in rows])
    return PairScores(*np.split(scores, 2), *np.split(lengths, 2))


def report(scores: PairScores) -> Report:
    """All figures of scored pairs."""
    margins = scores.chosen - scores.rejected
    longer = scores.chosen_length - scores.rejected_length
    calibration_error, reliability = calibration(margins)
    groups = {"shorter": longer < 0, "as_long": longer == 0, "longer": longer > 0}
    return Report(
        accuracy=share(margins > 0),
        ruler=proportion(float((longer > 0).sum() + (longer == 0).sum() / 2), len(longer)),
        loss=float(np.logaddexp(0, -margins).mean()),
        margin=float(margins.mean()),
        calibration_error=calibration_error,
        reliability=reliability,
        by_length={name: share(margins[group] > 0) for name, group in groups.items() if group.any()},
        length_correlation=correlation(
            np.concatenate([scores.chosen, scores.rejected]),
            np.concatenate([scores.chosen_length, scores.rejected_length]),
        ),
        margin_length_correlation=correlation(margins, longer),
    )


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
    bins = tuple(
        Bin(float(confidence[here].mean()), float(right[here].mean()), int(here.sum()))
        for here in (places == place for place in range(BINS))
        if here.any()
    )
    error = sum(bar.pairs * abs(bar.accuracy - bar.confidence) for bar in bins) / max(len(margins), 1)
    return error, bins


def correlation(left: np.ndarray, right: np.ndarray) -> float:
    """Pearson's r; 0 where one of the two does not vary."""
    if len(left) < 2 or left.std() == 0 or right.std() == 0:
        return 0.0
    return float(np.corrcoef(left, right)[0, 1])


def invariance(scorer: Scorer, rows: Sequence[Sequence[int]]) -> dict[str, float]:
    """Largest change of a reward by what must not change it: its company, its order, and the ids in the padding."""
    together = scorer.score(rows)
    alone = torch.cat([scorer.score([row]) for row in rows])
    backwards = scorer.score(list(reversed(rows))).flip(0)
    pads = [score_rows(scorer.model, rows, pad_id=pad_id) for pad_id in (0, scorer.tokenizer.vocab_size - 1)]
    return {
        "padding": float((together - alone).abs().max()),
        "order": float((together - backwards).abs().max()),
        "pad_id": float((pads[0] - pads[1]).abs().max()) * scorer.scale.gain,
    }


def as_json(evaluation: Evaluation) -> dict[str, object]:
    """Every figure, for machines."""
    found = evaluation.report
    return {
        **found._asdict(),
        "accuracy": found.accuracy._asdict(),
        "ruler": found.ruler._asdict(),
        "reliability": [bar._asdict() for bar in found.reliability],
        "by_length": {name: accuracy._asdict() for name, accuracy in found.by_length.items()},
        "invariance": evaluation.invariance,
        "counts": dict(evaluation.counts),
    }


def lines(evaluation: Evaluation) -> Iterator[str]:
    """The evaluation in words."""
    found = evaluation.report
    yield f"accuracy               {in_words(found.accuracy)}   (ties are wrong)"
    yield f"'longer answer wins'   {in_words(found.ruler)}"
    for name, accuracy in found.by_length.items():
        yield f"  chosen is {name.replace('_', ' '):<10} {in_words(accuracy)}"
    yield f"loss {found.loss:.4f} (a coin: 0.6931) · margin {found.margin:+.3f} · ECE {found.calibration_error:.3f}"
    of_answers, of_pairs = found.length_correlation, found.margin_length_correlation
    yield f"correlation of reward and length {of_answers:+.2f}, of their differences in a pair {of_pairs:+.2f}"
    for bar in found.reliability:
        yield f"  sure {bar.confidence:.2f} · right {bar.accuracy:.2f} {'█' * round(20 * bar.accuracy)} ({bar.pairs:,})"
    changes = ", ".join(f"{name} {value:.1e}" for name, value in evaluation.invariance.items())
    yield f"the reward changes by: {changes}"
    yield ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in evaluation.counts.items())


def in_words(share: Proportion) -> str:
    return f"{share.value:6.1%} [{share.low:.1%}, {share.high:.1%}] of {share.cases:,}"
