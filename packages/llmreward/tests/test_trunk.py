import json
from pathlib import Path

import pytest
import torch

from llmcore.checkpoint import save_model
from llmcore.errors import ConfigError
from llmcore.huggingface.writing import export_hf
from llmcore.manifest import verify_artifact, write_manifest
from llmcore.model.attention import Attention, GroupedQuery
from llmcore.model.config import ModelConfig
from llmcore.model.latent import MultiHeadLatent
from llmcore.records import Message
from llmcore.scoring import Scorer, load_scorer, score_rows, scored_row
from llmcore.tokenizer import Tokenizer
from llmcore.train.config import TrainConfig
from llmreward.config import Normalization, RewardConfig, RewardInputs
from llmreward.evaluate import evaluate_file
from llmreward.invariance import INVARIANT
from llmreward.run import run
from llmreward.trunk import AnyTrunk, BaseTrunk, EncoderTrunk, FreshTrunk

TINY = ModelConfig(vocab_size=260, width=32, depth=1, context=64, attention=GroupedQuery(heads=2))


def policy(folder: Path, config: ModelConfig = TINY) -> Path:
    folder.mkdir()
    files = save_model(folder, config.build(seed=0), Tokenizer.byte_level())
    write_manifest(folder, kind="policy", made_by="test", config={}, files=files)
    return folder


def pairs(path: Path) -> Path:
    rows = [{"prompt": f"{n}", "chosen": "y" * (1 + n % 2), "rejected": "n" * (1 + n % 3)} for n in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def trained(tmp_path: Path, trunk: AnyTrunk, *, base: ModelConfig = TINY, prompts: int = 8) -> Scorer:
    config = RewardConfig(
        inputs=RewardInputs(base=str(policy(tmp_path / "policy", base)), data=str(pairs(tmp_path / "pairs.jsonl"))),
        trunk=trunk,
        normalize=Normalization(prompts=prompts, samples=2, max_new_tokens=8),
        train=TrainConfig(steps=30, batch=8, lr=5e-3, device="cpu", dtype="fp32", eval_every=30),
    )
    run(config, tmp_path / "reward", quiet=True)
    verify_artifact(tmp_path / "reward", expect="reward")
    return load_scorer(tmp_path / "reward")


@pytest.mark.parametrize(
    "trunk",
    [
        EncoderTrunk(),
        FreshTrunk(model=ModelConfig(width=48, depth=1, attention=GroupedQuery(heads=2, causal=False))),
        FreshTrunk(model=ModelConfig(width=48, depth=1, attention=GroupedQuery(heads=2))),
    ],
    ids=["encoder", "fresh-encoder", "fresh-causal"],
)
def test_every_trunk_learns_is_normalized_and_scores_alike_everywhere(tmp_path: Path, trunk: AnyTrunk) -> None:
    scorer = trained(tmp_path, trunk)
    found = evaluate_file(scorer, tmp_path / "pairs.jsonl")
    assert found.report.accuracy.value == 1.0
    assert max(found.invariance[name] for name in INVARIANT) < 1e-4
    assert scorer.scale.samples == 16 and scorer.scale.gain != 1.0
    good, bad = (scored_row([Message(role="user", content="7")], answer, scorer.tokenizer) for answer in ("y", "n"))
    assert float(scorer.score([good])) > float(scorer.score([bad]))


def test_an_encoder_reward_is_the_head_of_the_mean_over_all_tokens(tmp_path: Path) -> None:
    scorer = trained(tmp_path, EncoderTrunk())
    model = scorer.model
    assert not model.config.attention.sight().causal
    row = [256, 5, 9, 33, 7]
    mean = model.hidden(torch.tensor([row])).mean(1)
    expected = float((mean @ model.head_weight()[0]).detach())
    assert float(score_rows(model, [row, row * 3], pad_id=259)[0]) == pytest.approx(expected, abs=1e-5)
    early = score_rows(model, [row, [256, 5, 9, 34, 7]], pad_id=259)
    assert early[0] != early[1]


def test_an_encoder_has_the_weights_of_its_base() -> None:
    base = TINY.model_copy(update={"head": "scalar"}).build(seed=0)
    encoder = EncoderTrunk().build(base, seed=1)
    for left, right in zip(base.parameters(), encoder.parameters(), strict=True):
        assert torch.equal(left, right)
    ids = torch.tensor([[256, 1, 2, 3]])
    assert torch.equal(base.hidden(ids[:, :1]), encoder.hidden(ids[:, :1]))
    assert not torch.allclose(base.hidden(ids)[:, 0], encoder.hidden(ids)[:, 0])


def test_an_encoder_cannot_be_exported_as_a_causal_family(tmp_path: Path) -> None:
    trained(tmp_path, EncoderTrunk(), prompts=0)
    with pytest.raises(ConfigError, match=r"attention\.causal=False"):
        export_hf(tmp_path / "reward", tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


def test_an_encoder_base_answers_no_prompts(tmp_path: Path) -> None:
    encoder = TINY.model_copy(update={"attention": GroupedQuery(heads=2, causal=False)})
    with pytest.raises(ConfigError, match=r"is an encoder, which answers no prompts.*\n?.*normalize.prompts=0"):
        trained(tmp_path, EncoderTrunk(), base=encoder)


def test_token_share_is_for_models_that_look_back(tmp_path: Path) -> None:
    config = RewardConfig(
        inputs=RewardInputs(base=str(policy(tmp_path / "policy")), data=str(pairs(tmp_path / "pairs.jsonl"))),
        trunk=EncoderTrunk(),
        token_share=0.5,
    )
    with pytest.raises(ConfigError, match="not an encoder"):
        run(config, tmp_path / "reward", quiet=True)


def test_a_fresh_trunk_has_the_bases_vocabulary_and_at_least_its_context() -> None:
    base = TINY.model_copy(update={"head": "scalar"}).build(seed=0)
    model = FreshTrunk(model=ModelConfig(width=48, depth=1, context=16)).build(base, seed=3)
    assert (model.config.vocab_size, model.config.context, model.config.head) == (260, 64, "scalar")
    again, other = (FreshTrunk(model=ModelConfig(width=48, depth=1)).build(base, seed=seed) for seed in (3, 4))
    assert torch.equal(model.embedding.weight, again.embedding.weight)
    assert not torch.equal(model.embedding.weight, other.embedding.weight)


@pytest.mark.parametrize("attention", [GroupedQuery(heads=2), MultiHeadLatent(heads=2)], ids=["gqa", "mla"])
def test_dropout_of_the_base_is_off(tmp_path: Path, attention: Attention) -> None:
    """Of embeddings and of attention: the reward that is trained is that of a base which never had any."""
    noisy = attention.model_copy(update={"dropout": 0.5})
    models = []
    for name, config in (
        ("calm", TINY.model_copy(update={"attention": attention})),
        ("noisy", TINY.model_copy(update={"attention": noisy, "dropout": 0.5})),
    ):
        (tmp_path / name).mkdir()
        models.append(trained(tmp_path / name, BaseTrunk(), base=config, prompts=0).model)
    calm, noisy_model = models
    assert calm.config == noisy_model.config
    for ours, theirs in zip(noisy_model.parameters(), calm.parameters(), strict=True):
        assert torch.equal(ours, theirs)
