"""Gumbel noise that is a function of (sequence seed, position): whatever batch a sequence is in, it is the same.

A counter-based generator in a dozen integer operations: no state to carry, no loop over rows, and the same bits on
every device. The key of a row and position comes from SplitMix64 (Steele et al. 2014); each token's number is then
mixed with it by a 32-bit finaliser (the constants are "lowbias32", Wellons 2018).
"""

from collections.abc import Iterable

import torch
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15
MIX_1, MIX_2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
BLOCK_ELEMENTS = 1 << 19
"""Noise drawn at once, as numbers: two MiB stay in a CPU's cache."""
BLOCK_POSITIONS = 64


def sequence_seeds(seed: int, indices: Iterable[int]) -> list[int]:
    """A seed for each sequence that one seed begins; those of neighbouring seeds have nothing in common."""
    return [mix_number(mix_number(seed) + index * GOLDEN) >> 1 for index in indices]


def gumbel_noise(seeds: Tensor, positions: Tensor, *, vocab_size: int) -> Tensor:
    """(…,) int64 seeds and positions -> (…, V) float32 standard Gumbel noise."""
    key = mix(mix(seeds) + positions * signed(GOLDEN)).unsqueeze(-1)
    first, second = (key & 0x7FFFFFFF).int(), ((key >> 31) & 0x7FFFFFFF).int()
    bits = torch.arange(vocab_size, dtype=torch.int32, device=seeds.device) * (signed(GOLDEN) >> 32) + first
    bits ^= (bits >> 16) & 0xFFFF
    bits *= 0x7FEB352D
    bits ^= second
    bits ^= (bits >> 15) & 0x1FFFF
    bits *= 0x846CA68B - 2**32
    bits ^= (bits >> 16) & 0xFFFF
    # 23 bits and a half: neither 0 nor 1, so that both logarithms are finite; the largest noise is 16.6.
    uniform = ((bits >> 9) & 0x7FFFFF).float().add_(0.5).mul_(2.0**-23)
    return uniform.neg_().log1p_().neg_().log_().neg_()


class NoiseBlocks:
    """The noise of a batch, position after position, drawn a block of positions at a time."""

    def __init__(self, seeds: Tensor, positions: Tensor, *, vocab_size: int, steps: int) -> None:
        """`seeds` and `positions` (B,): the next position of each row; `steps`: how many will be asked for."""
        self.seeds = seeds
        self.positions = positions
        self.vocab_size = vocab_size
        self.steps = steps
        self.block: Tensor | None = None
        self.used = 0

    def next(self) -> Tensor:
        """(B, V) for the next position of each row."""
        if self.block is None or self.used == len(self.block):
            self.draw()
        assert self.block is not None
        self.used += 1
        return self.block[self.used - 1]

    def draw(self) -> None:
        """The (positions, B, V) of the next block."""
        count = BLOCK_ELEMENTS // (len(self.seeds) * self.vocab_size)
        count = max(1, min(count, BLOCK_POSITIONS, self.steps))
        ahead = torch.arange(count, device=self.seeds.device).unsqueeze(1)
        self.block = gumbel_noise(self.seeds, self.positions + ahead, vocab_size=self.vocab_size)
        self.positions = self.positions + count
        self.steps -= count
        self.used = 0

    def keep(self, rows: Tensor) -> None:
        """Keep these rows, in this order."""
        self.seeds, self.positions = self.seeds[rows], self.positions[rows]
        if self.block is not None:
            self.block, self.used = self.block[self.used :, rows], 0


def mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser; int64 wraps around, and shifts are made logical by a mask."""
    x = (x ^ ((x >> 30) & (2**34 - 1))) * signed(MIX_1)
    x = (x ^ ((x >> 27) & (2**37 - 1))) * signed(MIX_2)
    return x ^ ((x >> 31) & (2**33 - 1))


def mix_number(x: int) -> int:
    """The same of a Python number: 64 bits, unsigned."""
    x &= 2**64 - 1
    x = ((x ^ (x >> 30)) * MIX_1) & (2**64 - 1)
    x = ((x ^ (x >> 27)) * MIX_2) & (2**64 - 1)
    return x ^ (x >> 31)


def signed(x: int) -> int:
    """The 64-bit number with the same bits in two's complement."""
    return x - 2**64 if x >= 2**63 else x
