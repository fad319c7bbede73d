"""The cache: however a sequence is read in, it comes out the same."""

import pytest
import torch
from torch import Tensor

from llmcore.model.cache import Cache
from llmcore.model.config import ModelConfig
from llmcore.model.linear import held_weights
from llmcore.model.transformer import Transformer

KINDS: dict[str, dict[str, object]] = {
    "default": {},
    "window": {"attention": {"window": 3}},
    "window and sinks": {"attention": {"window": 3, "sinks": 2}},
    "learned": {"positions": {"kind": "learned"}},
    "sinusoidal": {"positions": {"kind": "sinusoidal"}},
    "no positions": {"positions": {"kind": "none"}},
    "yarn": {"positions": {"scaling": {"kind": "yarn", "original_context": 8}}},
    "qk-norm": {"attention": {"qk_norm": "head"}},
    "multi-query": {"attention": {"kv_heads": 1, "backend": "sdpa"}},
    "manual": {"attention": {"backend": "manual"}},
}


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize("cuts", [[1] * 14, [5, 9], [14], [3, 1, 6, 4]], ids=str)
def test_reading_in_pieces_equals_reading_at_once(settings: dict[str, object], cuts: list[int]) -> None:
    model = model_with(settings)
    ids = torch.randint(0, 50, (2, 14))
    torch.testing.assert_close(read(model, ids, cuts), model(ids), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS.keys())
def test_left_padded_rows_equal_rows_alone(settings: dict[str, object]) -> None:
    """Ragged prompts, then tokens one by one: each row as if it were alone."""
    model = model_with(settings)
    prompts = [torch.randint(0, 50, (n,)) for n in (2, 7, 5)]
    more = torch.randint(0, 50, (3, 6))
    ids, attended = left_pad(prompts)
    cache = Cache.allocate(model.config, 3, 16)
    together = [model(ids, attended=attended, cache=cache)[:, -1:]]
    together += [model(more[:, t : t + 1], cache=cache) for t in range(6)]
    assert cache.next_position.tolist() == [8, 13, 11]
    for row, prompt in enumerate(prompts):
        alone = model(torch.cat([prompt, more[row]])[None])[:, len(prompt) - 1 :]
        torch.testing.assert_close(torch.cat(together, 1)[row : row + 1], alone, atol=1e-5, rtol=1e-4)


def test_padding_in_chunks_equals_padding_at_once() -> None:
    model = model_with({"attention": {"window": 4, "sinks": 1}})
    ids, attended = left_pad([torch.randint(0, 50, (n,)) for n in (3, 9)])
    whole = model(ids, attended=attended)
    cache = Cache.allocate(model.config, 2, 9)
    parts = [model(ids[:, a:b], attended=attended[:, a:b], cache=cache) for a, b in ((0, 4), (4, 5), (5, 9))]
    torch.testing.assert_close(torch.cat(parts, 1)[attended], whole[attended], atol=1e-5, rtol=1e-4)


def test_rows_leave_and_are_repeated() -> None:
    model = model_with({})
    ids, attended = left_pad([torch.randint(0, 50, (n,)) for n in (2, 7, 5)])
    cache = Cache.allocate(model.config, 3, 12)
    model(ids, attended=attended, cache=cache)
    cache.keep(torch.tensor([2, 0]))
    cache.repeat(2)
    more = torch.randint(0, 50, (4, 1))
    scores = model(more, cache=cache)
    assert cache.rows == 4 and cache.capacity == 12 and cache.length == 8
    assert cache.next_position.tolist() == [6, 6, 3, 3]
    for row, source in enumerate((2, 2, 0, 0)):
        alone = torch.cat([ids[source][attended[source]], more[row]])[None]
        torch.testing.assert_close(scores[row, -1], model(alone)[0, -1], atol=1e-5, rtol=1e-4)


def test_rows_without_padding_need_no_mask() -> None:
    model = model_with({})
    cache = Cache.allocate(model.config, 2, 12)
    model(torch.randint(0, 50, (2, 5)), cache=cache)
    assert cache.attended is None and cache.next_position.tolist() == [5, 5]
    cache.keep(torch.tensor([1]))
    assert cache.attended is None and cache.next_position.tolist() == [5]


def test_a_full_cache_is_not_written_beyond() -> None:
    model = model_with({})
    cache = Cache.allocate(model.config, 1, 4)
    with pytest.raises(AssertionError, match="5 tokens in a cache of 4"):
        model(torch.zeros(1, 5, dtype=torch.long), cache=cache)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_held_weights_compute_the_same_and_are_let_go(dtype: torch.dtype) -> None:
    for settings in ({}, {"tie_embeddings": False, "attention": {"qkv_bias": True}}):
        model = model_with(settings)
        model.activation_dtype = dtype
        ids = torch.randint(0, 50, (2, 6))
        with torch.no_grad():
            expected = model(ids)
            with held_weights(model, dtype):
                torch.testing.assert_close(model(ids), expected, atol=1e-5, rtol=1e-5)
            for parameter in model.parameters():
                parameter.mul_(0.5)
            assert not torch.allclose(model(ids), expected)


def read(model: Transformer, ids: Tensor, cuts: list[int]) -> Tensor:
    cache = Cache.allocate(model.config, len(ids), ids.shape[1] + 1)
    return torch.cat([model(piece, cache=cache) for piece in ids.split(cuts, dim=1)], 1)


def left_pad(prompts: list[Tensor]) -> tuple[Tensor, Tensor]:
    """(B, T) ids and which of them are no padding."""
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.stack([torch.cat([torch.zeros(longest - len(p), dtype=torch.long), p]) for p in prompts])
    attended = torch.stack([torch.arange(longest) >= longest - len(p) for p in prompts])
    return ids, attended


def model_with(settings: dict[str, object]) -> Transformer:
    shape = {"vocab_size": 50, "width": 32, "depth": 2, "context": 16, "initial_std": 0.2}
    return ModelConfig.model_validate(shape | settings).build(seed=1).eval()
