"""Our losses, poolings and statistics against independent implementations, in float64 to 1e-8."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmcore import intervals
from llmcore.checkpoint import load_checkpoint, save_model
from llmcore.huggingface.writing import export_hf
from llmcore.manifest import write_manifest
from llmcore.model.config import ModelConfig
from llmcore.model.transformer import Transformer
from llmcore.scoring import SCALE_FILE, RewardScale, scale_bytes, sequence_scores
from llmcore.tokenizer import Tokenizer
from llmreward.batches import Comparison, Group, preference_batch
from llmreward.evaluate import PairScores, calibration, correlation, report
from llmreward.loss import BradleyTerry, reward_loss
from llmreward.ranking import kendall_tau
from peers import ask, needs_peers

TOKENIZER = Tokenizer.byte_level()
END = TOKENIZER.end_of_turn_id
GROUPS = [
    Group([[256, *b"one prompt, good", END], [256, *b"one prompt, a worse answer", END]], [Comparison(0, 1, 0.5)]),
    Group([[256, *b"q", *b"a much longer answer than that", END], [256, *b"q", *b"no", END]], [Comparison(0, 1, 0.0)]),
    Group([[256, *b"abc", END], [256, *b"abd"]], [Comparison(0, 1, 1.25)]),
]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Transformer, Path]:
    """A reward model in float64, and the folder that transformers loads it from; positions without any rounding."""
    root = tmp_path_factory.mktemp("oracle")
    config = ModelConfig.model_validate(
        {
            "vocab_size": 260,
            "width": 32,
            "depth": 2,
            "context": 64,
            "head": "scalar",
            "norm": "layernorm",
            "positions": "learned",
            "feedforward": {"kind": "gelu", "bias": True},
            "attention": {"heads": 2, "kv_heads": 2, "qkv_bias": True, "out_bias": True},
            "initial_std": 0.2,
        }
    )
    folder = root / "ours"
    folder.mkdir()
    files = save_model(folder, config.build(seed=4), TOKENIZER)
    (folder / SCALE_FILE).write_bytes(scale_bytes(RewardScale()))
    write_manifest(folder, kind="reward", made_by="test", config={}, files=[*files, SCALE_FILE])
    export_hf(folder, root / "theirs")
    model = load_checkpoint(folder, expect="reward").model.double()
    model.activation_dtype = torch.float64
    return model, root / "theirs"


def ask_trl(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """TRL's answers."""
    printed = ask(Path(__file__).with_name("trl_reward.py"), said=json.dumps(cases))
    answers: list[dict[str, Any]] = json.loads(printed.splitlines()[-1])
    return answers


@needs_peers
def test_loss_rewards_and_gradients_are_trls(exported: tuple[Transformer, Path]) -> None:
    model, folder = exported
    cases = []
    for centering in (None, 0.01):
        for margins in (True, False):
            pairs = [
                {"chosen_ids": chosen, "rejected_ids": rejected, **({"margin": one.margin} if margins else {})}
                for (chosen, rejected), [one] in ((group.rows, group.comparisons) for group in GROUPS)
            ]
            cases.append({"folder": str(folder), "centering": centering, "pairs": pairs})
    for case, theirs in zip(cases, ask_trl(cases), strict=True):
        given = "margin" in case["pairs"][0]
        groups = GROUPS if given else [Group(group.rows, [Comparison(0, 1)]) for group in GROUPS]
        model.zero_grad()
        batch = preference_batch(groups, pad_id=TOKENIZER.pad_id)
        loss = reward_loss(BradleyTerry(centering=case["centering"] or 0.0).build())(model, batch)
        mean = loss.total / loss.count
        mean.backward()
        assert mean.item() == pytest.approx(theirs["loss"], abs=1e-8)
        assert model.head is not None
        assert torch.allclose(model.head.weight.grad, torch.tensor(theirs["head"], dtype=torch.float64), atol=1e-8)
        embedding = torch.tensor(theirs["embedding"], dtype=torch.float64)
        assert embedding.abs().max() > 1e-3
        assert torch.allclose(model.embedding.weight.grad, embedding, atol=1e-8)
        better = np.array(theirs["rewards"][: len(groups)]) - np.array(theirs["rewards"][len(groups) :])
        assert loss.metrics["margin"][0] == pytest.approx(better.sum(), abs=1e-5)  # metrics are added up in float32


def test_the_last_attended_token_is_the_one_that_transformers_reads(exported: tuple[Transformer, Path]) -> None:
    transformers = pytest.importorskip("transformers")
    model, folder = exported
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float64).eval()
    rows = [row for group in GROUPS for row in group.rows]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [TOKENIZER.pad_id] * (longest - len(row)) for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    with torch.no_grad():
        attended = (torch.arange(longest) < lengths.unsqueeze(1)).long()
        wanted = theirs(input_ids=ids, attention_mask=attended).logits.squeeze(-1)
        found = sequence_scores(model, ids, lengths)
    assert found.dtype == torch.float64 and found.std() > 0.01
    assert torch.allclose(found, wanted, atol=1e-8, rtol=0)


def pairs_of(count: int) -> PairScores:
    random = np.random.default_rng(3)
    margins = random.normal(0.4, 1.5, count)
    lengths = random.integers(1, 90, (2, count))
    return PairScores(margins + 1, np.ones(count), *lengths)


def test_the_loss_is_scikit_learns_log_loss_and_the_bins_are_its_reliability_curve() -> None:
    metrics, curves = pytest.importorskip("sklearn.metrics"), pytest.importorskip("sklearn.calibration")
    scores = pairs_of(500)
    found = report(scores)
    margins = scores.chosen - scores.rejected
    likely = 1 / (1 + np.exp(-margins))
    always = np.ones(len(margins))
    assert found.loss.value == pytest.approx(metrics.log_loss(always, likely, labels=[0, 1]), abs=1e-8)
    right, sure = (margins > 0).astype(int), 1 / (1 + np.exp(-np.abs(margins)))
    accuracy, confidence = curves.calibration_curve(right, 2 * sure - 1, n_bins=10)  # its bins are over [0, 1]
    error, bins = calibration(margins)
    assert [bar.accuracy for bar in bins] == pytest.approx(accuracy.tolist(), abs=1e-8)
    assert [2 * bar.confidence - 1 for bar in bins] == pytest.approx(confidence.tolist(), abs=1e-8)
    shares = np.array([bar.pairs for bar in bins]) / len(margins)
    assert error == pytest.approx(float((shares * np.abs(accuracy - (confidence + 1) / 2)).sum()), abs=1e-8)


def test_correlations_tau_and_intervals_are_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    random = np.random.default_rng(5)
    left = random.integers(0, 30, 200)
    right = left + random.normal(0, 9, 200).round()
    pearson = stats.pearsonr(left, right)
    low, high = pearson.confidence_interval(0.95)
    assert correlation(left, right) == pytest.approx((pearson.statistic, low, high), abs=1e-7)  # its z has more digits
    assert kendall_tau(left, right) == pytest.approx(stats.kendalltau(left, right).statistic, abs=1e-8)
    wilson = stats.binomtest(137, 200).proportion_ci(method="wilson")
    assert intervals.share(137, 200)[1:] == pytest.approx((wilson.low, wilson.high), abs=1e-7)
