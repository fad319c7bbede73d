"""Schedules are closed forms of the step."""

import math
from collections.abc import Callable

import pytest

from llmcore.errors import ConfigError
from llmcore.train.config import TrainConfig
from llmcore.train.schedule import Constant, Cosine, InverseSquareRoot, Linear, Schedule, WarmupStableDecay

ALL = [Constant, Linear, Cosine, WarmupStableDecay, InverseSquareRoot]


@pytest.mark.parametrize("kind", ALL)
def test_warmup_rises_in_equal_steps_to_the_peak(kind: Callable[..., Schedule]) -> None:
    factor = kind(warmup=4).build(100)
    assert [factor(step) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


@pytest.mark.parametrize("kind", ALL)
def test_a_warmup_below_one_is_a_share_of_the_steps(kind: Callable[..., Schedule]) -> None:
    shared, counted = kind(warmup=0.1).build(200), kind(warmup=20).build(200)
    assert [shared(step) for step in range(200)] == [counted(step) for step in range(200)]


@pytest.mark.parametrize("kind", ALL)
def test_without_warmup_the_first_step_has_the_peak(kind: Callable[..., Schedule]) -> None:
    assert kind(warmup=0).build(10)(0) == 1.0


def test_constant_stays() -> None:
    factor = Constant(warmup=0).build(50)
    assert {factor(step) for step in range(50)} == {1.0}


def test_linear_is_a_line_to_the_floor() -> None:
    factor = Linear(warmup=10, floor=0.2).build(110)
    for step in range(10, 110):
        assert factor(step) == pytest.approx(1 - 0.8 * (step - 10) / 100)
    assert factor(110) == pytest.approx(0.2)


def test_cosine_is_half_a_cosine_to_the_floor() -> None:
    factor = Cosine(warmup=10, floor=0.1).build(110)
    for step in range(10, 110):
        assert factor(step) == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi * (step - 10) / 100)))
    assert factor(60) == pytest.approx(0.55)
    assert factor(110) == pytest.approx(0.1)


def test_warmup_stable_decay_holds_then_falls() -> None:
    factor = WarmupStableDecay(warmup=0, decay=0.2, floor=0.0).build(100)
    assert [factor(step) for step in (0, 40, 80)] == pytest.approx([1.0, 1.0, 1.0])
    assert [factor(step) for step in (85, 90, 95)] == pytest.approx([0.75, 0.5, 0.25])


def test_inverse_square_root_falls_with_the_steps_alone_so_that_a_run_may_be_prolonged() -> None:
    short, long = (InverseSquareRoot(warmup=16).build(steps) for steps in (100, 10_000))
    assert [short(step) for step in range(100)] == [long(step) for step in range(100)]
    for step in range(16, 100):  # with the warm-up as its scale: peak · √(warmup / step)
        assert short(step) == pytest.approx(math.sqrt(16 / step))
    assert InverseSquareRoot(warmup=4, timescale=30).build(100)(4 + 90) == pytest.approx(0.5)
    assert InverseSquareRoot(warmup=0).build(100)(30_000) == pytest.approx(0.5)


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("warmup", [0, 0.3, 7, 50])
def test_every_factor_of_a_short_run_is_a_rate(kind: Callable[..., Schedule], warmup: float) -> None:
    factor = kind(warmup=warmup).build(7)
    assert all(0 < factor(step) <= 1 for step in range(7))


def test_settings_choose_a_schedule_by_its_kind() -> None:
    config = TrainConfig.model_validate({"schedule": {"kind": "wsd", "decay": 0.5}})
    assert config.schedule == WarmupStableDecay(decay=0.5)
    assert TrainConfig.model_validate(config.model_dump(mode="json")) == config


def test_an_unknown_schedule_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'cosin' — did you mean 'cosine'"):
        TrainConfig.model_validate({"schedule": {"kind": "cosin"}})
