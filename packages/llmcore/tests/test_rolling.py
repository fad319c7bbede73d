"""The rolling cache: what stands where, and what it costs (that it equals a window mask is in test_combinations)."""

import pytest
import torch

from llmcore.model.cache import Cache
from llmcore.model.config import ModelConfig
from llmcore.model.rolling import RollingCache, allocate_cache
from llmcore.model.transformer import Transformer


def test_each_slot_holds_the_latest_of_its_columns() -> None:
    ring = RollingCache.of_window(config_with(window=4, sinks=2), 1)
    assert ring.keys.shape == (1, 1, 1, 6, 2) and ring.window == 4 and ring.sinks == 2
    assert ring.ring_columns(1).tolist() == [0, 1, -2, -1]
    assert ring.ring_columns(9).tolist() == [8, 9, 6, 7]


def test_keys_are_written_over_and_sinks_stay() -> None:
    config = config_with(window=3, sinks=2)
    ring = RollingCache.of_window(config, 2)
    for column in range(8):
        ring.mask(config.attention.sight(), 1, attended=None, documents=None)
        token = torch.full((2, 1, 1, 2), float(column + 1))
        ring.append(0, token, -token)
        ring.advance(1, None)
    assert ring.keys[0, 0, 0, :, 0].tolist() == [7, 8, 6, 1, 2]
    assert ring.values[0, 1, 0, :, 0].tolist() == [-7, -8, -6, -1, -2]


def test_a_prompt_longer_than_the_ring_leaves_its_end_and_each_rows_own_sinks() -> None:
    config = config_with(window=3, sinks=2)
    ring = RollingCache.of_window(config, 2)
    attended = torch.tensor([[True] * 7, [False] * 3 + [True] * 4])
    ring.mask(config.attention.sight(), 7, attended=attended, documents=None)
    columns = torch.arange(7.0).view(1, 1, 7, 1).expand(2, 1, 7, 2)
    keys, _ = ring.append(0, columns, columns)
    ring.advance(7, attended)
    assert keys.shape[2] == 7, "the prompt itself sees all of it"
    assert ring.keys[0, :, 0, :, 0].tolist() == [[6, 4, 5, 0, 1], [6, 4, 5, 3, 4]]
    assert ring.next_position.tolist() == [7, 4]
    ring.keep(torch.tensor([1]))
    assert ring.sink_columns.tolist() == [[3, 4]] and ring.rows == 1


def test_steps_need_no_mask_once_the_ring_is_full_of_tokens() -> None:
    config = config_with(window=3, sinks=1)
    sight, ring = config.attention.sight(), RollingCache.of_window(config, 2)
    masks = []
    for column in range(6):
        attended = torch.tensor([[True], [column > 0]]) if column == 0 else None
        masks.append(ring.mask(sight, 1, attended=attended, documents=None).allowed)
        ring.append(0, torch.zeros(2, 1, 1, 2), torch.zeros(2, 1, 1, 2))
        ring.advance(1, attended)
    assert [mask is None for mask in masks[1:]] == [False, False, False, True, True]


@pytest.mark.parametrize(("window", "sinks"), [(1, 0), (1, 4), (2, 5), (8, 1)])
@pytest.mark.parametrize("cuts", [[1] * 12, [3] * 4, [2, 1, 1, 1, 7]], ids=str)
def test_any_number_of_sinks_for_any_window(window: int, sinks: int, cuts: list[int]) -> None:
    model = model_with(window=window, sinks=sinks)
    ids, attended = torch.randint(0, 9, (3, 12)), torch.arange(12) >= torch.tensor([[0], [1], [4]])
    whole = model(ids, attended=attended)
    ring = RollingCache.of_window(model.config, 3)
    parts = zip(torch.split(ids, cuts, 1), torch.split(attended, cuts, 1), strict=True)
    pieces = torch.cat([model(piece, attended=real, cache=ring) for piece, real in parts], 1)
    torch.testing.assert_close(pieces[attended], whole[attended], atol=1e-6, rtol=1e-5)


def test_a_sequence_rolls_only_where_that_is_smaller() -> None:
    def kind(columns: int, **settings: object) -> type[Cache]:
        memory = allocate_cache(config_with(**settings), 1, columns, dtype=torch.float32, device="cpu")
        return type(memory)

    assert kind(100, window=8, sinks=2) is RollingCache
    assert kind(10, window=8, sinks=2) is Cache
    assert kind(100) is Cache


def test_memory_does_not_grow_with_the_sequence() -> None:
    model = model_with(window=4, sinks=1)
    ring = RollingCache.of_window(model.config, 1)
    size = ring.keys.numel()
    for token in torch.randint(0, 9, (100, 1, 1)):
        model(token, cache=ring)
    assert (ring.keys.numel(), ring.length) == (size, 100)


def test_a_position_far_beyond_the_context_is_exact() -> None:
    """What a query scores with a key depends on their distance alone, a million tokens on too."""
    model = model_with(window=4).double()
    model.activation_dtype = torch.float64
    ids = torch.randint(0, 9, (1, 4))
    here, far = (model(ids, positions=torch.arange(first, first + 4)[None]) for first in (0, 3))
    torch.testing.assert_close(here, far, atol=1e-9, rtol=1e-9)
    x = model.embedding(ids, torch.float64)
    there = model.positions.rotation(x, 10**6, None)
    assert there is not None and there.cosine.shape == (4, 1, 2)
    torch.testing.assert_close(there.cosine[:, 0, 0], torch.arange(10.0**6, 10**6 + 4, dtype=torch.float64).cos())


def test_encoders_have_no_rolling_cache() -> None:
    with pytest.raises(AssertionError, match="no window to roll"):
        RollingCache.of_window(config_with(), 1)


def config_with(**attention: object) -> ModelConfig:
    heads = {"heads": 1, "kv_heads": 1, **attention}
    return ModelConfig.model_validate({"vocab_size": 9, "width": 2, "depth": 1, "context": 8, "attention": heads})


def model_with(**attention: object) -> Transformer:
    return config_with(**attention).build(seed=0).eval()
