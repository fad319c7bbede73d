"""Multi-head latent attention against the paper's formulas, and what it saves."""

import math

import pytest
import torch
from torch import Tensor

from llmcore.model.attention import Around
from llmcore.model.cache import Cache
from llmcore.model.config import ModelConfig
from llmcore.model.latent import LatentLayer, MultiHeadLatent
from llmcore.model.masks import Sight, build_mask
from llmcore.model.positions import PositionLayer, RoPE
from llmcore.model.size import cache_bytes_per_token, count_parameters, flops_per_token, skeleton

WIDTH = 12
SHAPE: dict[str, object] = {"heads": 3, "latent_width": 5, "content_width": 4, "rotary_width": 2, "value_width": 6}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def naive(layer: LatentLayer, x: Tensor) -> Tensor:
    """One token and head at a time, equations (9) to (19) and (37) to (47) of the paper; (T, D) -> (T, D)."""
    config, found = layer.config, []
    angle = 10_000.0**0  # the frequency of the only pair

    def turn(pair: Tensor, position: int) -> Tensor:
        cosine, sine = math.cos(position * angle), math.sin(position * angle)
        return torch.stack([pair[0] * cosine - pair[1] * sine, pair[1] * cosine + pair[0] * sine])

    def normed(vector: Tensor) -> Tensor:
        return vector / (vector.square().mean() + config.norm_eps).sqrt()

    down = [layer.down.weight @ token for token in x]
    latent = [normed(both[: config.latent_width]) for both in down]
    rotary_keys = [turn(both[config.latent_width :], t) for t, both in enumerate(down)]
    for t, token in enumerate(x):
        source = token if config.query_latent_width is None else normed(layer.query_down.weight @ token)
        heads = []
        for query, make in zip(
            (layer.query_up.weight @ source).chunk(config.heads), layer.up.weight.chunk(config.heads), strict=True
        ):
            content, rotary = query[: config.content_width], turn(query[config.content_width :], t)
            scores = torch.stack(
                [content @ (make[: config.content_width] @ latent[s]) + rotary @ rotary_keys[s] for s in range(t + 1)]
            )
            weights = (scores / math.sqrt(config.content_width + config.rotary_width)).softmax(0)
            heads.append(sum(weights[s] * (make[config.content_width :] @ latent[s]) for s in range(t + 1)))
        found.append(layer.out.weight @ torch.cat(heads))  # type: ignore[arg-type]
    return torch.stack(found)


@pytest.mark.parametrize("query_latent_width", [None, 7])
def test_it_equals_the_formulas(query_latent_width: int | None) -> None:
    layer, rotate = layer_with(query_latent_width=query_latent_width)
    x = torch.randn(1, 6, WIDTH, dtype=torch.float64)
    mask = build_mask(Sight(), queries=6, keys=6, device=x.device)
    found = layer(x, Around(mask=mask, rotation=rotate.rotation(x, 0, None)))
    torch.testing.assert_close(found[0], naive(layer, x[0]), atol=1e-10, rtol=1e-10)


def test_queries_brought_to_the_latent_vectors_equal_keys_made_from_them() -> None:
    layer, rotate = layer_with()
    x = torch.randn(2, 6, WIDTH, dtype=torch.float64)
    around = Around(mask=build_mask(Sight(), queries=6, keys=6, device=x.device), rotation=rotate.rotation(x, 0, None))
    parts = layer.project(x, around)
    torch.testing.assert_close(layer.attend_latent(*parts, around), layer.attend_heads(*parts, around))


def test_the_cache_keeps_the_latent_vector_and_one_rotary_key() -> None:
    config = ModelConfig.model_validate({"vocab_size": 20, "attention": {"kind": "mla"}})
    memory = Cache.allocate(config, 2, 8)
    assert memory.keys.shape == (4, 2, 1, 8, 64 + 16) and memory.values.numel() == 0
    assert cache_bytes_per_token(config) == 4 * (64 + 16) * 4
    assert cache_bytes_per_token(config) < cache_bytes_per_token(ModelConfig(vocab_size=20)) / 3


def test_weights_and_operations_by_hand() -> None:
    config = ModelConfig.model_validate({"vocab_size": 20, "depth": 1, "attention": {"kind": "mla"}})
    model = skeleton(config)
    attention = 256 * 4 * 48 + 256 * 80 + 64 + 64 * 4 * 64 + 4 * 32 * 256
    assert sum(p.numel() for n, p in model.named_parameters() if ".attention." in n) == attention
    matrices = count_parameters(model) - 64 - 3 * 256
    assert flops_per_token(model) == 6 * (matrices + 4 * (48 + 32) * 128)


def test_a_saved_config_comes_back() -> None:
    config = ModelConfig.model_validate({"attention": {"kind": "mla", **SHAPE}, "width": WIDTH})
    assert ModelConfig.model_validate_json(config.model_dump_json()) == config
    assert isinstance(config.attention, MultiHeadLatent)


def test_manual_weights_are_the_same_whichever_way() -> None:
    attention = {"kind": "mla", **SHAPE, "backend": "manual"}
    config = {"vocab_size": 20, "width": WIDTH, "depth": 1, "attention": attention, "initial_std": 0.3}
    model = ModelConfig.model_validate(config).build(seed=0)
    ids = torch.randint(0, 20, (1, 5))
    (whole,) = model.attention_weights(ids)
    assert whole.shape == (1, 3, 5, 5)
    memory = Cache.allocate(model.config, 1, 5)
    model(ids[:, :4], cache=memory)
    weights: list[Tensor] = []
    model.hidden(ids[:, 4:], cache=memory, weights=weights)
    torch.testing.assert_close(weights[0], whole[:, :, 4:], atol=1e-5, rtol=1e-5)


def layer_with(**settings: object) -> tuple[LatentLayer, PositionLayer]:
    """A layer with large random weights in float64, and what turns its keys."""
    config = MultiHeadLatent.model_validate({**SHAPE, **settings})
    layer = config.build(WIDTH, 0).double()
    assert isinstance(layer, LatentLayer)
    for parameter in layer.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.5)
    return layer.requires_grad_(False), RoPE().build(width=WIDTH, head_width=config.head_size(WIDTH), context=16)
