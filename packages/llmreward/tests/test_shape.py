import json
from pathlib import Path

import numpy as np
import pytest

from llmcore.config import load_config
from llmcore.manifest import Manifest
from llmcore.model.attention import GroupedQuery
from llmcore.model.config import ModelConfig
from llmcore.scoring import RewardScale, Scorer
from llmcore.tokenizer import Tokenizer
from llmreward.shape import ALL, Answers, Said, ShapeConfig, as_json, effects_on, held_out_answers, lines
from llmreward.shaping import LengthPenalty, MissingEnd, Repetition

TOKENIZER = Tokenizer.byte_level()


def answers() -> Answers:
    """Two prompts with three answers each: the longest is the best of the first, the worst of the second."""
    ids = [(1, 9), (1, 2, 9), (1, 2, 3, 4, 9), (1, 2, 3, 4, 5, 6), (1, 2, 9), (1, 9)]
    said = [Said("", one, stopped=one[-1] == 9) for one in ids]
    rewards = np.array([0.0, 1.0, 2.0, 0.0, 1.0, 2.0])
    return Answers(said, rewards, np.array([0, 0, 0, 1, 1, 1]), better=np.array([2, 4]), worse=np.array([0, 3]))


def test_a_term_that_gives_all_answers_the_same_changes_no_ranking() -> None:
    found = effects_on(answers(), {"none": LengthPenalty(free=99)}).effects["none"]
    assert (found.tau, found.tau_within, found.mean, found.touched.value) == (1.0, 1.0, 0.0, 0.0)
    assert found.accuracy is not None and found.turned is not None
    assert (found.accuracy.value, found.turned.value) == (1.0, 0.0)
    assert found.length_before == found.length_after


def test_a_strong_penalty_on_length_ranks_by_length() -> None:
    shaped = effects_on(answers(), {"short": LengthPenalty(free=0, per_token=10)})
    found = shaped.effects["short"]
    assert shaped.accuracy is not None and shaped.accuracy.value == 1.0
    assert found.accuracy is not None and found.turned is not None
    assert (found.accuracy.value, found.turned.value) == (0.5, 0.5)  # the pair (2, 0) turns, (4, 3) does not
    assert found.tau_within == pytest.approx((-1 + 1) / 2)
    assert found.length_after < found.length_before - 0.5
    assert found.touched.value == 1.0


def test_terms_are_tried_alone_and_together() -> None:
    terms = {"end": MissingEnd(amount=3), "short": LengthPenalty(free=0, per_token=0.5)}
    effects = effects_on(answers(), terms).effects
    assert list(effects) == ["end", "short", ALL]
    assert effects[ALL].mean == pytest.approx(effects["end"].mean + effects["short"].mean)
    assert effects["end"].mean == pytest.approx(-3 / 6)


def test_the_answers_of_held_out_pairs_are_seen_with_their_rewards(tmp_path: Path) -> None:
    rows = [{"prompt": f"{n}", "ranked": ["a" * 12, "b", "cd"]} for n in range(40)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = ModelConfig(vocab_size=260, width=32, depth=1, head="scalar", attention=GroupedQuery(heads=2))
    scorer = Scorer(config.build(seed=1), TOKENIZER, Manifest(kind="reward", made_by="test"), RewardScale(gain=3.0))
    found = held_out_answers(scorer, path)
    assert len(found.said) == len(found.rewards) == len(found.prompts) == 3 * len(set(found.prompts.tolist()))
    assert len(found.better) == len(found.said)
    assert {one.text[0] for one in found.said} == {"a", "b", "c"}
    assert {found.said[n].text for n in found.better} >= {"a" * 12}
    shaped = {"held-out pairs": effects_on(found, {"repetition": Repetition(size=2, amount=50)})}
    after = shaped["held-out pairs"].effects["repetition"].accuracy
    assert after is not None and after.value < 0.5  # the best answer repeats itself
    assert json.loads(json.dumps(as_json(shaped)))["held-out pairs"]["effects"]["repetition"]["touched"]["cases"] > 0
    assert any("tau" in line for line in lines(shaped))


def test_a_term_needs_no_kind_where_its_name_is_one() -> None:
    config = load_config(ShapeConfig, ["terms.repetition.amount=0.5", 'terms.brief={kind="length_penalty", free=3}'])
    assert config.terms == {"repetition": Repetition(amount=0.5), "brief": LengthPenalty(free=3)}
    assert set(ShapeConfig().terms) == {"length_bonus", "length_penalty", "missing_end", "repetition"}
