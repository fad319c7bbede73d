"""Where a token stands: learned or sinusoidal vectors added to the embeddings, rotary angles, or nothing."""
# ruff: noqa: ARG002 - each kind uses what it needs of the contract's arguments

import math
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from llmcore.extensions import Part, part
from llmcore.model.linear import Spread


class Rotation(NamedTuple):
    """Cosines and signed sines of each position, (T, 1, C) or (B, T, 1, C)."""

    cosine: Tensor
    sine: Tensor

    def apply(self, x: Tensor) -> Tensor:
        """Turn each pair (c, c + C/2) of (B, T, H, C) by its angle; halves, not neighbours, pair up as in Llama."""
        return torch.addcmul(x * self.cosine, x.roll(x.shape[-1] // 2, -1), self.sine)


class PositionLayer(nn.Module):
    """What a kind of position does; the base does nothing at all."""

    def embed(self, x: Tensor, start: int, positions: Tensor | None) -> Tensor:
        """Add to the embeddings (B, T, D) of tokens at `positions` (B, T), or at start, start + 1, …."""
        return x

    def rotation(self, x: Tensor, start: int, positions: Tensor | None) -> Rotation | None:
        """How queries and keys turn, in the dtype of x (B, T, D)."""
        return None


class Positions(Part):
    """The contract: `build` gives a `PositionLayer` for a model of this width, head width and context."""

    def build(self, *, width: int, head_width: int, context: int) -> PositionLayer:
        raise NotImplementedError(f"{type(self).__name__} must define build")

    def check(self, head_width: int) -> None:
        """Raise a ValueError where the head width does not suit."""

    def endless(self) -> bool:
        """Whether positions beyond the context are defined."""
        return False


class NoPositions(Positions):
    """Nothing: a causal model can tell positions apart by how much it sees (Haviv et al. 2022)."""

    kind: Literal["none"] = "none"

    def endless(self) -> bool:
        return True

    def build(self, *, width: int, head_width: int, context: int) -> PositionLayer:
        return PositionLayer()


class Learned(Positions):
    """A learned vector for each position (GPT-2)."""

    kind: Literal["learned"] = "learned"

    def build(self, *, width: int, head_width: int, context: int) -> PositionLayer:
        return LearnedLayer(width, context)


class Sinusoidal(Positions):
    """Fixed sines and cosines of each position (Vaswani et al. 2017), scaled as the embeddings start."""

    kind: Literal["sinusoidal"] = "sinusoidal"
    base: PositiveFloat = 10_000.0
    """Wavelengths go from 2π to 2π·base."""
    scale: PositiveFloat = 0.02
    """What the waves are multiplied with: the embeddings' initial standard deviation, not to drown them."""

    def build(self, *, width: int, head_width: int, context: int) -> PositionLayer:
        return SinusoidalLayer(width, context, base=self.base, scale=self.scale)


class Scaling(Part):
    """How rotary frequencies change so that a model reaches further than it was trained."""

    def frequencies(self, base: float, head_width: int) -> Tensor:
        """(C/2,) float64 radians per position."""
        raise NotImplementedError(f"{type(self).__name__} must define frequencies")

    def magnitude(self) -> float:
        """What the turned queries and keys are multiplied with."""
        return 1.0


class Unscaled(Scaling):
    """Frequencies as they are."""

    kind: Literal["none"] = "none"

    def frequencies(self, base: float, head_width: int) -> Tensor:
        return rotary_frequencies(base, head_width)


class LinearScaling(Scaling):
    """Positions divided by the factor (Chen et al. 2023)."""

    kind: Literal["linear"] = "linear"
    factor: PositiveFloat = 2.0
    """How many times longer the context becomes."""

    def frequencies(self, base: float, head_width: int) -> Tensor:
        return rotary_frequencies(base, head_width) / self.factor


class NTK(Scaling):
    """A larger base, so that the slowest wave alone is stretched by the whole factor ("NTK-aware", bloc97 2023)."""

    kind: Literal["ntk"] = "ntk"
    factor: PositiveFloat = 2.0
    """How many times longer the context becomes."""

    def frequencies(self, base: float, head_width: int) -> Tensor:
        return rotary_frequencies(base * self.stretch(head_width), head_width)

    def stretch(self, head_width: int) -> float:
        """What the base is multiplied with."""
        return float(self.factor ** (head_width / max(head_width - 2, 1)))


class YaRN(Scaling):
    """Slow waves stretched, fast ones kept, a ramp between (Peng et al. 2023)."""

    kind: Literal["yarn"] = "yarn"
    factor: PositiveFloat = 2.0
    """How many times longer the context becomes."""
    original_context: PositiveInt = 256
    """The context the model was trained with."""
    fast: PositiveFloat = 32.0
    """Waves with more turns than this in the original context are kept."""
    slow: PositiveFloat = 1.0
    """Waves with fewer turns than this are stretched by the whole factor."""
    attention_factor: PositiveFloat | None = None
    """What queries and keys are multiplied with; none: 0.1·ln(factor) + 1."""

    def frequencies(self, base: float, head_width: int) -> Tensor:
        plain = rotary_frequencies(base, head_width)
        low = max(math.floor(self.pair_with_turns(self.fast, base, head_width)), 0)
        high = min(math.ceil(self.pair_with_turns(self.slow, base, head_width)), head_width - 1)
        pair = torch.arange(head_width // 2, dtype=torch.float64)
        stretched = ((pair - low) / max(high - low, 0.001)).clamp(0, 1)
        return plain / self.factor * stretched + plain * (1 - stretched)

    def pair_with_turns(self, turns: float, base: float, head_width: int) -> float:
        """The (fractional) pair whose wave turns this many times in the original context."""
        return head_width * math.log(self.original_context / (turns * 2 * math.pi)) / (2 * math.log(base))

    def magnitude(self) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        return 0.1 * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0


class Llama3(Scaling):
    """Long waves divided by the factor, short ones kept, blended between (Llama 3.1)."""

    kind: Literal["llama3"] = "llama3"
    factor: PositiveFloat = 8.0
    """What the frequencies of long waves are divided by."""
    original_context: PositiveInt = 8192
    """The context the model was trained with."""
    low: PositiveFloat = 1.0
    """Waves longer than original_context / low are divided by the whole factor."""
    high: PositiveFloat = 4.0
    """Waves shorter than original_context / high are kept."""

    def frequencies(self, base: float, head_width: int) -> Tensor:
        plain = rotary_frequencies(base, head_width)
        turns = self.original_context * plain / (2 * math.pi)
        kept = ((turns - self.low) / (self.high - self.low)).clamp(0, 1)
        return plain / self.factor * (1 - kept) + plain * kept


AnyScaling = Annotated[
    Scaling,
    part("llmcore.rope_scaling", none=Unscaled, linear=LinearScaling, ntk=NTK, yarn=YaRN, llama3=Llama3),
]


class RoPE(Positions):
    """Queries and keys turned by an angle that grows with the position (Su et al. 2021)."""

    kind: Literal["rope"] = "rope"
    base: PositiveFloat = 10_000.0
    """Wavelengths go from 2π to 2π·base."""
    scaling: AnyScaling = Unscaled()
    """How the waves are stretched for a longer context."""

    def build(self, *, width: int, head_width: int, context: int) -> PositionLayer:
        return RoPELayer(self, head_width, context)

    def check(self, head_width: int) -> None:
        if head_width % 2:
            raise ValueError(f"rotary positions need an even head width, not {head_width}")

    def endless(self) -> bool:
        return True


AnyPositions = Annotated[
    Positions, part("llmcore.positions", rope=RoPE, learned=Learned, sinusoidal=Sinusoidal, none=NoPositions)
]


class LearnedLayer(PositionLayer):
    """A table of `context` vectors, added to the embeddings."""

    def __init__(self, width: int, context: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(context, width))

    def initialise(self, spread: Spread) -> None:
        nn.init.normal_(self.weight, std=spread.std)

    def embed(self, x: Tensor, start: int, positions: Tensor | None) -> Tensor:
        rows = self.weight[start : start + x.shape[1]] if positions is None else self.weight[positions]
        return x + rows.to(x.dtype)


class SinusoidalLayer(PositionLayer):
    """Interleaved sines and cosines, added to the embeddings."""

    def __init__(self, width: int, context: int, *, base: float, scale: float) -> None:
        super().__init__()
        self.width, self.context, self.base, self.scale = width, context, base, scale
        self.table: Tensor | None = None

    def embed(self, x: Tensor, start: int, positions: Tensor | None) -> Tensor:
        if self.table is None or self.table.device != x.device:
            with torch.inference_mode(False):
                angles = outer_angles(self.context, rotary_frequencies(self.base, self.width + self.width % 2))
                waves = torch.stack([angles.sin(), angles.cos()], -1).flatten(-2)[:, : self.width]
                self.table = (waves * self.scale).float().to(x.device)
        rows = self.table[start : start + x.shape[1]] if positions is None else self.table[positions]
        return x + rows.to(x.dtype)


class RoPELayer(PositionLayer):
    """Tables of all positions below `context`, made at the first use: they are no state of the model.

    Beyond the context angles go on as they began, position times frequency, computed where they are needed: a
    sequence without end needs no table without end.
    """

    def __init__(self, config: RoPE, head_width: int, context: int) -> None:
        super().__init__()
        self.config, self.head_width, self.context = config, head_width, context
        self.tables: Rotation | None = None

    def rotation(self, x: Tensor, start: int, positions: Tensor | None) -> Rotation:
        stop = start + x.shape[1]
        if stop > self.context:
            columns = torch.arange(start, stop) if positions is None else positions
            return self.turns(columns, x.device, x.dtype)
        cosine, sine = self.tables_like(x)
        if positions is None:
            return Rotation(cosine[start:stop], sine[start:stop])  # (T, 1, C)
        return Rotation(cosine[positions], sine[positions])  # (B, T, 1, C)

    def tables_like(self, x: Tensor) -> Rotation:
        """(context, 1, C) on the device and in the dtype of x."""
        tables = self.tables
        if tables is None or tables.cosine.dtype != x.dtype or tables.cosine.device != x.device:
            with torch.inference_mode(False):  # else a model that generated first could not be trained with them
                tables = self.tables = self.turns(torch.arange(self.context), x.device, x.dtype)
        return tables

    def turns(self, positions: Tensor, device: torch.device, dtype: torch.dtype) -> Rotation:
        """(…) positions -> (…, 1, C); angles in float64 on the CPU, so that none is off, however far."""
        frequencies = self.config.scaling.frequencies(self.config.base, self.head_width)
        angles = positions.cpu().double().unsqueeze(-1) * frequencies
        magnitude = self.config.scaling.magnitude()
        cosine = (torch.cat([angles.cos(), angles.cos()], -1) * magnitude).unsqueeze(-2)
        sine = (torch.cat([-angles.sin(), angles.sin()], -1) * magnitude).unsqueeze(-2)
        return Rotation(cosine.to(device, dtype), sine.to(device, dtype))


def rotary_frequencies(base: float, head_width: int) -> Tensor:
    """(C/2,) float64: base^(-2c/C) radians per position."""
    return base ** -(torch.arange(0, head_width, 2, dtype=torch.float64) / head_width)


def outer_angles(context: int, frequencies: Tensor) -> Tensor:
    """(context, C/2) float64."""
    return torch.outer(torch.arange(context, dtype=torch.float64), frequencies)
