"""Positions: rotary angles by hand, the published scalings, and what is relative."""

import math

import pytest
import torch

from llmcore.model.config import ModelConfig
from llmcore.model.positions import (
    NTK,
    LinearScaling,
    Llama3,
    RoPE,
    RoPELayer,
    Rotation,
    Sinusoidal,
    Unscaled,
    YaRN,
    rotary_frequencies,
)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def rotation_of(config: RoPE, *, head_width: int = 8, context: int = 64) -> Rotation:
    layer = config.build(width=32, head_width=head_width, context=context)
    rotation = layer.rotation(torch.zeros(1, context, 32), 0, None)
    assert rotation is not None
    return rotation


def test_rotation_turns_each_pair_by_its_angle() -> None:
    x = torch.randn(2, 5, 3, 8)
    rotation = rotation_of(RoPE(base=100.0), context=5)
    turned = rotation.apply(x)
    for position in range(5):
        for pair in range(4):
            angle = position * 100.0 ** (-2 * pair / 8)
            a, b = x[:, position, :, pair], x[:, position, :, pair + 4]
            expected = a * math.cos(angle) - b * math.sin(angle)
            torch.testing.assert_close(turned[:, position, :, pair], expected)
            expected = b * math.cos(angle) + a * math.sin(angle)
            torch.testing.assert_close(turned[:, position, :, pair + 4], expected)


def test_rotated_products_depend_on_the_distance_alone() -> None:
    query, key = torch.randn(8), torch.randn(8)
    rotation = rotation_of(RoPE())
    queries = rotation.apply(query.expand(1, 64, 1, 8))[0, :, 0]
    keys = rotation.apply(key.expand(1, 64, 1, 8))[0, :, 0]
    products = queries @ keys.T
    for distance in (0, 1, 7):
        along = products.diagonal(-distance)
        torch.testing.assert_close(along, along[:1].expand_as(along), atol=1e-5, rtol=1e-4)
    assert (products[10, 10] - products[10, 3]).abs() > 1e-3


def test_given_positions_equal_counted_ones() -> None:
    layer = RoPE().build(width=32, head_width=8, context=64)
    x = torch.zeros(2, 6, 32)
    counted, given = layer.rotation(x, 3, None), layer.rotation(x, 0, torch.arange(3, 9).expand(2, 6))
    assert counted is not None and given is not None
    torch.testing.assert_close(given.cosine, counted.cosine.expand(2, 6, 1, 8))
    torch.testing.assert_close(given.sine, counted.sine.expand(2, 6, 1, 8))


def test_tables_follow_the_dtype() -> None:
    layer = RoPE().build(width=32, head_width=8, context=16)
    assert isinstance(layer, RoPELayer)
    assert layer.tables_like(torch.zeros(1)).cosine.dtype == torch.float32
    assert layer.tables_like(torch.zeros(1, dtype=torch.bfloat16)).cosine.dtype == torch.bfloat16
    assert not list(layer.parameters()) and not list(layer.buffers())


def test_a_factor_of_one_changes_nothing() -> None:
    plain = Unscaled().frequencies(10_000.0, 64)
    for scaling in (LinearScaling(factor=1), NTK(factor=1), YaRN(factor=1), Llama3(factor=1)):
        torch.testing.assert_close(scaling.frequencies(10_000.0, 64), plain)
        assert scaling.magnitude() == 1.0


def test_linear_scaling_divides_positions() -> None:
    plain, scaled = rotation_of(RoPE()), rotation_of(RoPE(scaling=LinearScaling(factor=4)))
    torch.testing.assert_close(scaled.cosine[::4], plain.cosine[:16])


def test_ntk_keeps_the_fastest_wave_and_stretches_the_slowest_by_the_factor() -> None:
    plain, scaled = rotary_frequencies(10_000.0, 64), NTK(factor=4).frequencies(10_000.0, 64)
    assert scaled[0] == plain[0]
    torch.testing.assert_close(scaled[-1] * 4, plain[-1])


def test_yarn_keeps_fast_waves_stretches_slow_ones_and_scales() -> None:
    scaling = YaRN(factor=4, original_context=2048)
    plain, scaled = rotary_frequencies(10_000.0, 128), scaling.frequencies(10_000.0, 128)
    turns = 2048 * plain / (2 * math.pi)
    torch.testing.assert_close(scaled[turns > 40], plain[turns > 40])
    torch.testing.assert_close(scaled[turns < 0.9], plain[turns < 0.9] / 4)
    between = (turns < 20) & (turns > 2)
    assert ((scaled < plain) & (scaled > plain / 4))[between].all()
    assert rotation_of(RoPE(scaling=scaling)).cosine[0, 0, 0].item() == pytest.approx(1 + 0.1 * math.log(4))


def test_llama3_scaling_by_its_formula() -> None:
    scaling = Llama3(factor=8, original_context=8192, low=1, high=4)
    for plain, scaled in zip(
        rotary_frequencies(500_000.0, 128).tolist(), scaling.frequencies(500_000.0, 128).tolist(), strict=True
    ):
        wavelength = 2 * math.pi / plain
        if wavelength < 8192 / 4:
            expected = plain
        elif wavelength > 8192:
            expected = plain / 8
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            expected = (1 - smooth) * plain / 8 + smooth * plain
        assert scaled == pytest.approx(expected)


def test_sinusoidal_positions_by_hand() -> None:
    layer = Sinusoidal(base=100.0, scale=0.5).build(width=6, head_width=3, context=9)
    x = torch.zeros(1, 4, 6)
    added = layer.embed(x, 2, None)[0]
    for row, position in enumerate(range(2, 6)):
        for pair in range(3):
            angle = position / 100.0 ** (2 * pair / 6)
            assert added[row, 2 * pair].item() == pytest.approx(0.5 * math.sin(angle), abs=1e-6)
            assert added[row, 2 * pair + 1].item() == pytest.approx(0.5 * math.cos(angle), abs=1e-6)
    torch.testing.assert_close(layer.embed(x, 0, torch.arange(2, 6)[None]), layer.embed(x, 2, None))


def test_an_odd_head_width_is_refused_for_rotation() -> None:
    with pytest.raises(ValueError, match="even head width, not 3"):
        ModelConfig.model_validate({"vocab_size": 8, "width": 12})
    config = ModelConfig.model_validate({"vocab_size": 8, "width": 12, "positions": {"kind": "none"}})
    assert config.build(seed=0)(torch.zeros(1, 3, dtype=torch.long)).shape == (1, 3, 8)
