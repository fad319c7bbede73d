"""Noise is a function of (seed, position), and it is Gumbel noise."""

import math

import pytest
import torch

from llmcore.generate.noise import NoiseBlocks, gumbel_noise, mix, mix_number, sequence_seeds

VOCAB = 50


def of(seeds: list[int], positions: list[int], vocab_size: int = VOCAB) -> torch.Tensor:
    return gumbel_noise(torch.tensor(seeds), torch.tensor(positions), vocab_size=vocab_size)


def reference(seed: int, position: int, token: int) -> float:
    """The same number from Python's own integers."""
    key = mix_number(mix_number(seed) + position * 0x9E3779B97F4A7C15)
    x = (token * 0x9E3779B9 + (key & 0x7FFFFFFF)) % 2**32
    x = (x ^ (x >> 16)) * 0x7FEB352D % 2**32
    x ^= (key >> 31) & 0x7FFFFFFF
    x = (x ^ (x >> 15)) * 0x846CA68B % 2**32
    x ^= x >> 16
    return -math.log(-math.log1p(-((x >> 9) + 0.5) / 2**23))


def test_the_numbers_are_those_of_plain_integer_arithmetic() -> None:
    seeds, positions = [0, 1, 2**62 + 12345, 2**63 - 1], [0, 7, 100_000, 3]
    noise = of(seeds, positions)
    for row, (seed, position) in enumerate(zip(seeds, positions, strict=True)):
        wanted = torch.tensor([reference(seed, position, token) for token in range(VOCAB)])
        torch.testing.assert_close(noise[row], wanted, rtol=1e-4, atol=1e-6)


def test_mixing_tensors_equals_mixing_numbers() -> None:
    numbers = [0, 1, 2**40 + 17, 2**63 - 1]
    mixed = mix(torch.tensor(numbers))
    assert [value % 2**64 for value in mixed.tolist()] == [mix_number(number) for number in numbers]


def test_a_row_has_the_same_noise_in_any_batch() -> None:
    together = of([5, 6, 7, 8], [10, 20, 30, 40])
    assert torch.equal(together[2], of([7], [30])[0])
    assert torch.equal(together[[3, 1]], of([8, 6], [40, 20]))


def test_another_seed_or_position_gives_other_noise() -> None:
    base = of([5], [10])
    assert not torch.isclose(base, of([6], [10])).any()
    assert not torch.isclose(base, of([5], [11])).any()


def test_blocks_give_the_noise_of_each_position_and_follow_rows_that_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmcore.generate.noise.BLOCK_ELEMENTS", 4 * VOCAB * 3)
    seeds, positions = torch.tensor([1, 2, 3, 4]), torch.tensor([9, 0, 4, 4])
    blocks = NoiseBlocks(seeds, positions, vocab_size=VOCAB, steps=8)
    for step in range(4):
        assert torch.equal(blocks.next(), gumbel_noise(seeds, positions + step, vocab_size=VOCAB))
    rows = torch.tensor([3, 0])
    blocks.keep(rows)
    for step in range(4, 8):
        assert torch.equal(blocks.next(), gumbel_noise(seeds[rows], positions[rows] + step, vocab_size=VOCAB))


def test_the_distribution_is_gumbel() -> None:
    noise = of(list(range(400)), [3] * 400, vocab_size=500).flatten().double().sort().values
    wanted = torch.exp(-torch.exp(-noise))  # the distribution function at the sorted values is nearly their rank
    rank = (torch.arange(len(noise), dtype=torch.double) + 0.5) / len(noise)
    assert (wanted - rank).abs().max() < 1.95 / math.sqrt(len(noise))  # Kolmogorov-Smirnov, p = 0.001
    assert noise.isfinite().all()


@pytest.mark.parametrize("neighbour", ["token", "position", "seed"])
def test_neighbours_are_independent(neighbour: str) -> None:
    count = 200_000
    if neighbour == "token":
        row = torch.exp(-torch.exp(-of([1], [1], vocab_size=count + 1)[0]))
        first, second = row[:-1], row[1:]
    else:
        places = list(range(2001))
        noise = of([1] * 2001, places, 100) if neighbour == "position" else of(places, [1] * 2001, 100)
        uniform = torch.exp(-torch.exp(-noise))
        first, second = uniform[:-1].flatten(), uniform[1:].flatten()
    cells = (first * 10).long().clamp(max=9) * 10 + (second * 10).long().clamp(max=9)
    counts = torch.bincount(cells, minlength=100).double()
    expected = len(cells) / 100
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 148.2  # 99 degrees of freedom, p = 0.001


@pytest.mark.parametrize("along", ["positions", "seeds"])
def test_the_best_of_scores_and_noise_is_a_sample_of_the_softmax(along: str) -> None:
    shares = torch.tensor([0.5, 0.3, 0.15, 0.04, 0.01])
    count = 100_000
    walk, fixed = torch.arange(count), torch.full((count,), 17)
    noise = gumbel_noise(fixed, walk, vocab_size=5) if along == "positions" else gumbel_noise(walk, fixed, vocab_size=5)
    chosen = torch.bincount((shares.log() + noise).argmax(-1), minlength=5).double()
    chi_square = ((chosen - count * shares) ** 2 / (count * shares)).sum()
    assert chi_square < 18.5  # 4 degrees of freedom, p = 0.001


def test_sequence_seeds_of_neighbouring_seeds_share_nothing() -> None:
    seeds = [seed for start in range(50) for seed in sequence_seeds(start, range(50))]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert sequence_seeds(3, [7]) == sequence_seeds(3, range(8))[7:]
