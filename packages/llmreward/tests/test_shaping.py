from typing import NamedTuple

import pytest

from llmcore.config import Config
from llmcore.errors import ConfigError
from llmreward.shaping import AnyShaping, LengthBonus, LengthPenalty, MissingEnd, Repetition, repeated


class Said(NamedTuple):
    text: str
    ids: tuple[int, ...]
    stopped: bool = True


def said(*ids: int, stopped: bool = True) -> Said:
    return Said("", ids, stopped)


def test_length_counts_tokens_without_the_stop_token() -> None:
    answers = [said(1, 2, 3, 9), said(1, 2, 3, stopped=False), said(9), said(*range(60))]
    assert LengthBonus(per_token=0.5, up_to=10).build()(answers) == [1.5, 1.5, 0.0, 5.0]
    assert LengthPenalty(per_token=0.5, free=2).build()(answers) == [-0.5, -0.5, 0.0, -28.5]


def test_a_missing_end_costs_its_amount() -> None:
    assert MissingEnd(amount=2).build()([said(1, 9), said(1, stopped=False)]) == [0.0, -2.0]


def test_repetition_is_the_share_of_runs_that_stand_earlier() -> None:
    assert repeated((1, 2, 3, 4), 2) == 0.0
    assert repeated((1, 2, 1, 2, 1), 2) == 0.5  # 12 21 12 21: two of four are new
    assert repeated((7,) * 11, 2) == 0.9
    assert repeated((1, 2), 3) == 0.0
    assert Repetition(amount=3, size=2).build()([said(1, 2, 1, 2, 1), said()]) == [-1.5, 0.0]


def test_more_repetition_never_costs_less() -> None:
    costs = Repetition(size=3).build()([said(*range(20), *([5, 6, 7] * n)) for n in range(9)])
    assert costs == sorted(costs, reverse=True) and costs[0] == 0.0 and costs[-1] < -0.4


def test_settings_choose_a_term_and_refuse_what_makes_no_sense() -> None:
    class Holder(Config):
        term: AnyShaping = MissingEnd()

    assert Holder.model_validate({"term": {"kind": "repetition", "size": 2}}).term == Repetition(size=2)
    with pytest.raises(ValueError):
        Holder.model_validate({"term": {"kind": "missing_end", "amount": -1}})
    with pytest.raises(ConfigError, match="did you mean 'repetition'"):
        Holder.model_validate({"term": {"kind": "repetiton"}})
