import pytest

from llmcore.manifest import Manifest
from llmcore.model.attention import GroupedQuery
from llmcore.model.config import ModelConfig
from llmcore.model.positions import Learned
from llmcore.scoring import RewardScale, Scorer
from llmcore.tokenizer import Tokenizer
from llmreward.batches import Comparison, Group
from llmreward.invariance import INVARIANT, TELLING, probe

TOKENIZER = Tokenizer.byte_level()
GROUPS = [
    Group(
        [[256, *range(20), *range(90, 90 + n), TOKENIZER.end_of_turn_id] for n in (k, 2 * k)],
        [Comparison(0, 1)],
    )
    for k in range(1, 9)
]


@pytest.mark.parametrize("causal", [True, False])
def test_rewards_vary_with_nothing_that_must_not_change_them(causal: bool) -> None:
    attention = GroupedQuery(heads=2, causal=causal)
    config = ModelConfig(
        vocab_size=260, width=32, depth=2, head="scalar", attention=attention, positions=Learned(), initial_std=0.2
    )
    scorer = Scorer(config.build(seed=1), TOKENIZER, Manifest(kind="reward", made_by="test"), RewardScale(gain=5.0))
    found = probe(scorer, GROUPS)
    assert set(found) == {*INVARIANT, *TELLING}
    assert max(found[name] for name in INVARIANT) < 1e-4
    assert abs(found["end_of_turn"]) > 1e-3 and found["spread"] > 1e-2
