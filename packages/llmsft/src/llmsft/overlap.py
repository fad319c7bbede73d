"""How much of the wanted answers the given ones repeat: BLEU and ROUGE, by sacrebleu and rouge-score.

BLEU is a figure of the whole corpus from 0 to 100: clipped n-gram counts are pooled. ROUGE is a mean over answers of F1
from 0 to 1. Which variants they are, the signatures say. Both packages come with `llmsft[text]`.
"""

from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmcore.intervals import Interval, Sums, bootstrap, mean

Array = NDArray[np.float64]
ORDER = 4
"""The longest n-grams of BLEU."""
ROUGE = ("rouge1", "rouge2", "rougeL")


class Overlap(NamedTuple):
    """What answers share with the wanted ones, answer by answer."""

    bleu: Array
    """(N, 2 + 2·4): words given, words wanted, n-grams of 1 to 4 words that match, and all n-grams given."""
    rouge: dict[str, Array]
    """(N,) F1 by name."""
    signatures: dict[str, str]


def installed() -> bool:
    """Whether sacrebleu and rouge-score are there."""
    return find_spec("sacrebleu") is not None and find_spec("rouge_score") is not None


def overlap(wanted: Sequence[str], answers: Sequence[str]) -> Overlap:
    """Targets and predictions, in this order."""
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics.bleu import BLEU

    corpus, sentence = BLEU(force=True), BLEU(effective_order=True)  # the order changes no count, only its warning
    corpus.corpus_score(list(answers), [list(wanted)])  # the signature says what was scored last
    scorer = RougeScorer(list(ROUGE), use_stemmer=False)
    found = [sentence.sentence_score(given, [target]) for target, given in zip(wanted, answers, strict=True)]
    counts = [[one.sys_len, one.ref_len, *one.counts, *one.totals] for one in found]
    rouge = [scorer.score(target, given) for target, given in zip(wanted, answers, strict=True)]
    return Overlap(
        np.array(counts, dtype=np.float64),
        {name: np.array([one[name].fmeasure for one in rouge]) for name in ROUGE},
        {
            "bleu": f"BLEU|0-100|{corpus.get_signature()}",
            "rouge": f"ROUGE|0-1|F1|stemmer:no|rouge-score:{version('rouge-score')}",
        },
    )


def bleu(sums: Sums) -> float:
    """(2 + 2·4,) sums over a corpus -> its BLEU, 0 to 100, smoothed as sacrebleu does it by default."""
    from sacrebleu.metrics.bleu import BLEU

    given, wanted, *counts = (round(value) for value in sums)
    score = BLEU.compute_bleu(counts[:ORDER], counts[ORDER:], given, wanted, smooth_method="exp")
    return float(score.score)


def overlap_figures(found: Overlap) -> dict[str, Interval]:
    """BLEU and ROUGE with their intervals over answers."""
    return {"bleu": bootstrap(found.bleu, bleu)} | {name: mean(values) for name, values in found.rouge.items()}


def overlap_gains(first: Overlap, second: Overlap) -> dict[str, Interval]:
    """How much more the second repeats of the same answers: BLEU by the paired bootstrap, ROUGE by differences."""
    width = first.bleu.shape[1]
    both = np.concatenate([first.bleu, second.bleu], axis=1)
    gain = bootstrap(both, lambda sums: bleu(sums[width:]) - bleu(sums[:width]))
    return {"bleu": gain} | {name: mean(second.rouge[name] - first.rouge[name]) for name in ROUGE}
