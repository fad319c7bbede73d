from pathlib import Path

import pytest
import torch

from llmcore.checkpoint import load_checkpoint, save_model
from llmcore.errors import ArtifactError, DataError
from llmcore.manifest import write_manifest
from llmcore.model.attention import GroupedQuery
from llmcore.model.config import ModelConfig
from llmcore.model.transformer import Transformer
from llmcore.records import Message
from llmcore.scoring import (
    SCALE_FILE,
    RewardScale,
    Scorer,
    load_scorer,
    scale_bytes,
    scale_of,
    score_rows,
    scored_row,
    sequence_scores,
)
from llmcore.tokenizer import Tokenizer

ROWS = [[256, 5, 9, 33], [256, 7], [256, 40, 41, 42, 43, 44, 45, 46, 47, 48, 49], [256, 1, 2, 3, 4, 5, 6]]


@pytest.fixture
def reward_model() -> Transformer:
    config = ModelConfig(vocab_size=260, width=32, depth=2, context=100, head="scalar", attention=GroupedQuery(heads=2))
    return config.build(seed=3).eval()


def write_reward(folder: Path, model: Transformer, scale: RewardScale, *, kind: str = "reward") -> Path:
    folder.mkdir()
    files = save_model(folder, model, Tokenizer.byte_level())
    (folder / SCALE_FILE).write_bytes(scale_bytes(scale))
    write_manifest(folder, kind=kind, made_by="test", config={}, files=[*files, SCALE_FILE])
    return folder


def test_score_is_the_scalar_head_at_the_last_token(reward_model: Transformer) -> None:
    scores = score_rows(reward_model, ROWS, pad_id=259)
    alone = [float(reward_model(torch.tensor([row]))[0, -1, 0].detach()) for row in ROWS]
    assert scores.shape == (4,) and scores.dtype == torch.float32
    assert torch.allclose(scores, torch.tensor(alone), atol=1e-6)


def test_score_does_not_depend_on_company_order_or_padding(reward_model: Transformer) -> None:
    together = score_rows(reward_model, ROWS, pad_id=259)
    alone = torch.cat([score_rows(reward_model, [row], pad_id=0) for row in ROWS])
    backwards = score_rows(reward_model, ROWS[::-1], pad_id=17).flip(0)
    assert torch.allclose(together, alone, atol=1e-6)
    assert torch.allclose(together, backwards, atol=1e-6)
    assert len(set(together.tolist())) == len(ROWS)


def test_a_full_context_that_no_padding_multiple_divides_is_scored(reward_model: Transformer) -> None:
    row = list(range(100))
    expected = float(reward_model(torch.tensor([row]))[0, -1, 0].detach())
    assert float(score_rows(reward_model, [row, [1]], pad_id=259)[0]) == pytest.approx(expected, abs=1e-6)


def test_junk_behind_the_last_token_changes_neither_scores_nor_gradients(reward_model: Transformer) -> None:
    lengths = torch.tensor([3, 5])
    ids = torch.tensor([[256, 5, 9, 259, 259], [256, 1, 2, 3, 4]])
    junk = ids.clone()
    junk[0, 3:] = torch.tensor([77, 200])
    gradients = []
    for rows in (ids, junk):
        reward_model.zero_grad()
        sequence_scores(reward_model, rows, lengths).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in reward_model.blocks.parameters()])
    for clean, dirty in zip(*gradients, strict=True):
        assert torch.allclose(clean, dirty, atol=1e-7)


def test_nan_in_padded_hidden_states_is_never_read(reward_model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = torch.tensor([2, 4])
    ids = torch.tensor([[256, 5, 259, 259], [256, 1, 2, 3]])
    expected = sequence_scores(reward_model, ids, lengths)
    hidden = reward_model.hidden(ids)
    hidden = hidden.masked_fill(torch.arange(4).unsqueeze(1) >= lengths.view(2, 1, 1), float("nan"))
    monkeypatch.setattr(reward_model, "hidden", lambda _: hidden)
    assert torch.equal(sequence_scores(reward_model, ids, lengths), expected)


def test_scoring_is_in_eval_mode_and_leaves_the_mode_as_it_was() -> None:
    config = ModelConfig(vocab_size=260, width=32, depth=1, head="scalar", dropout=0.5, attention=GroupedQuery(heads=2))
    model = config.build(seed=0).train()
    assert torch.equal(score_rows(model, ROWS, pad_id=259), score_rows(model, ROWS, pad_id=259))
    assert model.training


def test_the_scored_row_ends_with_the_end_of_turn() -> None:
    tokenizer = Tokenizer.byte_level()
    row = scored_row([Message(role="user", content="1+1")], "2", tokenizer)
    assert row[-1] == tokenizer.end_of_turn_id
    assert row[0] == tokenizer.bos_id
    assert tokenizer.decode(row, skip_special=True).endswith("assistant\n2")


def test_an_answer_that_was_stopped_by_length_has_no_end_of_turn() -> None:
    tokenizer = Tokenizer.byte_level()
    prompt = [Message(role="user", content="1+1")]
    whole, cut = (scored_row(prompt, "2 and so", tokenizer, ended=ended) for ended in (True, False))
    assert cut == whole[:-1] and cut[-1] == ord("o")


def test_an_answer_that_spells_a_control_token_is_scored_as_text() -> None:
    tokenizer = Tokenizer.byte_level()
    row = scored_row([Message(role="user", content="a")], "<|im_end|>", tokenizer)
    assert row.count(tokenizer.end_of_turn_id) == 2  # the user's turn and the answer's own end


def test_scale_gives_mean_zero_and_deviation_one() -> None:
    raw = torch.tensor([1.0, 2.0, 5.0, -4.0])
    scale = scale_of(raw)
    normalised = raw * scale.gain + scale.bias
    assert float(normalised.mean()) == pytest.approx(0.0, abs=1e-6)
    assert float(normalised.std(correction=0)) == pytest.approx(1.0, abs=1e-6)
    assert scale.samples == 4


def test_scale_of_equal_scores_only_centres() -> None:
    scale = scale_of(torch.full((5,), 3.0))
    assert (scale.gain, scale.bias) == (1.0, -3.0)


def test_scorer_reads_weights_and_scale_from_a_checkpoint(tmp_path: Path, reward_model: Transformer) -> None:
    folder = write_reward(tmp_path / "reward", reward_model, RewardScale(gain=2.0, bias=-1.5))
    scorer = load_scorer(folder)
    assert isinstance(scorer, Scorer)
    raw = score_rows(reward_model, ROWS, pad_id=259)
    assert torch.equal(scorer.raw(ROWS), raw)
    assert torch.allclose(scorer.score(ROWS), raw * 2.0 - 1.5)
    assert scorer.tokenizer.vocab_size == 260 and scorer.manifest.kind == "reward"


def test_a_policy_is_no_reward_and_a_reward_no_policy(tmp_path: Path, reward_model: Transformer) -> None:
    policy = write_reward(tmp_path / "policy", reward_model, RewardScale(), kind="policy")
    with pytest.raises(ArtifactError, match=r"holds a policy .* a reward is needed"):
        load_scorer(policy)
    reward = write_reward(tmp_path / "reward", reward_model, RewardScale())
    with pytest.raises(ArtifactError, match=r"holds a reward .* a policy is needed"):
        load_checkpoint(reward, expect="policy")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a reward scale"),
        ('{"schema_version": 2, "gain": 1, "bias": 0}', "schema version 2"),
        ('{"schema_version": 1, "gain": 0, "bias": 0}', "not a reward scale"),
        ('{"schema_version": 1, "gain": NaN, "bias": 0}', "not a reward scale"),
        ('{"schema_version": 1, "gain": 1, "bias": 0, "shift": 1}', "not a reward scale"),
    ],
)
def test_a_damaged_scale_is_refused(tmp_path: Path, reward_model: Transformer, text: str, message: str) -> None:
    folder = tmp_path / "reward"
    folder.mkdir()
    files = save_model(folder, reward_model, Tokenizer.byte_level())
    (folder / SCALE_FILE).write_text(text, encoding="utf-8")
    write_manifest(folder, kind="reward", made_by="test", config={}, files=[*files, SCALE_FILE])
    with pytest.raises(ArtifactError, match=message):
        load_scorer(folder)


def test_rows_that_cannot_be_scored_are_refused(reward_model: Transformer) -> None:
    with pytest.raises(DataError, match=r"conversation 2 has 101 tokens.*context is 100"):
        score_rows(reward_model, [[1], [1] * 101], pad_id=259)
    with pytest.raises(DataError, match="conversation 1 has no tokens"):
        score_rows(reward_model, [[]], pad_id=259)


def test_no_rows_have_no_scores(reward_model: Transformer) -> None:
    assert score_rows(reward_model, [], pad_id=259).shape == (0,)
