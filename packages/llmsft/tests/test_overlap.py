"""BLEU and ROUGE against the libraries' own figures of a corpus, and by hand."""

import numpy as np
import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from llmcore.intervals import mean
from llmsft.overlap import bleu, overlap, overlap_figures, overlap_gains

WANTED = ["the cat sat on the mat .", "it's 3.5 metres, they said", "a b c d e f", "alone", "the quick brown fox jumps"]
GIVEN = ["the cat is on the mat .", "it's 3.5 metres they say", "a b c d e f g", "", "the quick brown dog jumps"]


def test_bleu_of_the_pooled_counts_is_sacrebleus_figure_of_the_corpus() -> None:
    found = overlap(WANTED, GIVEN)
    wanted = sacrebleu.corpus_bleu(GIVEN, [WANTED]).score
    assert bleu(found.bleu.sum(0)) == pytest.approx(wanted, abs=1e-12) and 20 < wanted < 90
    assert found.signatures["bleu"].startswith("BLEU|0-100|nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert found.signatures["rouge"].startswith("ROUGE|0-1|F1|stemmer:no|rouge-score:")


def test_rouge_is_rouge_scores_with_the_target_first() -> None:
    found = overlap(["a b c d"], ["a b"])
    assert found.rouge["rouge1"] == pytest.approx([2 * 1.0 * 0.5 / 1.5])  # precision 1, recall 1/2
    theirs = [RougeScorer(["rougeL"]).score(w, g)["rougeL"].fmeasure for w, g in zip(WANTED, GIVEN, strict=True)]
    assert overlap_figures(overlap(WANTED, GIVEN))["rougeL"] == mean(theirs)


def test_the_same_answers_gain_nothing_and_better_ones_do() -> None:
    worse, better = overlap(WANTED, GIVEN), overlap(WANTED, WANTED)
    assert all(gain == (0.0, 0.0, 0.0) for gain in overlap_gains(worse, worse).values())
    gain = overlap_gains(worse, better)
    assert gain["bleu"].value == pytest.approx(100 - bleu(worse.bleu.sum(0))) and gain["bleu"].low > 0
    assert gain["rouge2"].value == pytest.approx(
        float(np.mean(better.rouge["rouge2"]) - np.mean(worse.rouge["rouge2"]))
    )
