"""Curricula: what is open when, that nothing is lost afterwards, and that all of it is a function of (seed, step)."""

import math

import numpy as np
import pytest

from llmcore.batching import LengthBuckets
from llmcore.chat import Rendered
from llmcore.errors import DataError
from llmcore.model.config import ModelConfig
from llmcore.records import Chat, Message
from llmsft.curriculum import (
    ByKey,
    ByLength,
    ByLoss,
    Curriculum,
    Examples,
    LinearPacing,
    Pacing,
    Ramp,
    RootPacing,
    StepPacing,
)
from llmsft.reference import row_losses, stored_losses

ROWS = 40


def ramp(*, seed: int = 0, **settings: object) -> Ramp:
    curriculum = Curriculum.model_validate({"ramp": 20, "start": 0.25, **settings})
    scores = np.arange(ROWS, dtype=np.float64)[::-1].copy()
    after = LengthBuckets([0] * ROWS, batch=4, seed=seed)
    return Ramp(scores, curriculum, batch=4, steps=100, seed=seed, after=after.rows_of)


def test_only_the_open_share_is_seen_and_it_grows_to_all() -> None:
    made = ramp(pacing="linear")
    competence = [made.competence(step) for step in range(25)]
    assert competence[0] == 0.25 and competence[10] == pytest.approx(0.625) and competence[20:] == [1.0] * 5
    assert competence == sorted(competence)
    for step in range(20):
        hardest = ROWS - math.ceil(competence[step] * ROWS)  # rows are hardest first
        assert made.rows_of(step).min() >= hardest
        assert len(set(made.rows_of(step).tolist())) == 4
    assert min(row for step in range(20) for row in made.rows_of(step)) < ROWS // 2


def test_after_the_ramp_every_example_comes_once_an_epoch() -> None:
    made = ramp()
    for epoch in range(2):
        seen = np.concatenate([made.rows_of(20 + 10 * epoch + step) for step in range(10)])
        assert sorted(seen.tolist()) == list(range(ROWS))


def test_rows_are_a_function_of_seed_and_step() -> None:
    one, other = ramp(), ramp()
    other.rows_of(30)
    assert all((one.rows_of(step) == other.rows_of(step)).all() for step in (19, 3, 25, 3))
    assert any((one.rows_of(step) != ramp(seed=1).rows_of(step)).any() for step in range(3))


def test_batches_inside_the_open_share_are_mixed() -> None:
    made = ramp(start=1.0, ramp=50)
    means = [made.rows_of(step).mean() for step in range(50)]
    assert np.corrcoef(means, range(50))[0, 1] == pytest.approx(0, abs=0.3)


@pytest.mark.parametrize(
    ("pacing", "middle"),
    [(LinearPacing(), 0.55), (RootPacing(), math.sqrt(0.01 + 0.99 / 2)), (StepPacing(stages=2), 0.55)],
)
def test_pacings_go_from_start_to_all(pacing: Pacing, middle: float) -> None:
    assert pacing.shape(0.0, 0.1) == pytest.approx(0.1) and pacing.shape(1.0, 0.1) == pytest.approx(1.0)
    assert pacing.shape(0.5, 0.1) == pytest.approx(middle)


def test_steps_stand_still_between_stages() -> None:
    pacing = StepPacing(stages=4)
    assert len({pacing.shape(progress / 100, 0.2) for progress in range(100)}) == 4


def examples(chats: list[Chat] | None = None) -> Examples:
    rows = [Rendered([1] * length, [True] * length) for length in (5, 2, 9)]
    chats = chats or []
    return Examples(
        rows,
        chats,
        [3 * place for place in range(len(chats))],
        lambda rows: np.array([float(-len(row.ids)) for row in rows]),
    )


def keyed(*values: object) -> list[Chat]:
    message = (Message(role="user", content="q"), Message(role="assistant", content="a"))
    return [Chat.model_validate({"messages": message, "extra": {"difficulty": value}}) for value in values]


def test_difficulties_are_length_loss_and_keys() -> None:
    assert ByLength().scores(examples()).tolist() == [5, 2, 9]
    assert ByLoss().scores(examples()).tolist() == [-5, -2, -9]
    assert ByKey().scores(examples(keyed(3, 1.5, 2))).tolist() == [3, 1.5, 2]
    words = ByKey(order=("easy", "hard"))
    assert words.scores(examples(keyed("hard", "easy", "easy"))).tolist() == [1, 0, 0]
    with pytest.raises(DataError, match="conversation 4: difficulty is 'hm', a curriculum needs a number"):
        ByKey().scores(examples(keyed(1, "hm")))


def test_losses_of_a_reference_are_made_once_and_kept_with_what_they_are_of(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model = ModelConfig(vocab_size=60, width=16, depth=1, context=32).build(seed=0)
    rows = [Rendered(list(range(n)), [False] * (n // 2) + [True] * (n - n // 2)) for n in (4, 9, 20)]
    alone = [row_losses(model, [row], pad_id=0)[0] for row in rows]
    found = stored_losses(tmp_path, model, rows, pad_id=0, reference="a")
    assert found == pytest.approx(alone, rel=1e-5)
    model.embedding.weight.data.zero_()
    assert (stored_losses(tmp_path, model, rows, pad_id=0, reference="a") == found).all()
    other = stored_losses(tmp_path, model, rows, pad_id=0, reference="b")
    assert other == pytest.approx([math.log(60)] * 3, rel=1e-5)
