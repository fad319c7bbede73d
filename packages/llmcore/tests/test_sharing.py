"""Samples that share their prompt's keys and values against each sample alone."""

import pytest
import torch
from torch import Tensor

from llmcore.generate.decoding import SHARED_TOKENS, Decoding
from llmcore.generate.engine import generate
from llmcore.generate.sampling import Sampling
from llmcore.losses import token_logprobs
from llmcore.model.cache import Cache
from llmcore.model.config import ModelConfig
from llmcore.model.sharing import SharedCache, find_seats
from llmcore.model.step import Step
from llmcore.model.transformer import Transformer

KINDS: dict[str, dict[str, object]] = {
    "default": {},
    "multi-head": {"attention": {"kv_heads": 4, "qkv_bias": True}, "layout": "post"},
    "multi-query with a cap": {"attention": {"kv_heads": 1, "soft_cap": 5.0}, "layout": "reordered"},
    "latent": {"attention": {"kind": "mla", "query_latent_width": 8}},
    "learned": {"positions": {"kind": "learned"}, "attention": {"backend": "matmul"}},
    "a window that hides nothing": {"attention": {"window": 16, "sinks": 1}},
}


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize("lengths", [(5, 5, 5), (5, 2, 3)], ids=str)
def test_rows_that_share_a_prompt_read_what_each_reads_alone(
    settings: dict[str, object], lengths: tuple[int, ...]
) -> None:
    """Also when rows have left: first one of a prompt, then all of another."""
    model = model_with(settings)
    prompts = [torch.randint(0, 50, (length,)) for length in lengths]
    rows = [prompt for prompt in prompts for _ in range(4)]
    step = Step(model)
    with torch.no_grad():
        cache = shared_cache(model, prompts, samples=4, columns=6)
        for kept in (range(12), range(12), [0, 1, 3, 4, 5, 6, 7, 8, 10], range(9), [7, 1, 2, 8], range(4)):
            rows = [rows[row] for row in kept]
            cache.keep(torch.tensor(list(kept)))
            tokens = torch.randint(0, 50, (len(rows),))
            rows = [torch.cat([row, token.view(1)]) for row, token in zip(rows, tokens, strict=True)]
            expected = torch.stack([model(row[None])[0, -1] for row in rows])
            torch.testing.assert_close(step(tokens, cache), expected, atol=1e-5, rtol=1e-5)
            assert cache.next_position.tolist() == [len(row) for row in rows]
    assert cache.rows == 4 and cache.prompt_keys.shape[2] == 2, "a prompt that nobody continues is held"


def test_the_prompts_are_held_once() -> None:
    model = model_with({})
    cache = shared_cache(model, [torch.ones(9, dtype=torch.long)] * 2, samples=8, columns=3)
    assert cache.prompt_keys.shape == (2, 2, 2, 9, 8) and cache.keys.shape == (2, 2, 16, 3, 8)


@pytest.mark.parametrize(
    ("settings", "cache"),
    [
        ({}, SharedCache),
        ({"attention": {"kind": "mla"}}, SharedCache),
        ({"attention": {"window": 12}}, SharedCache),
        ({"attention": {"window": 11}}, Cache),
        ({"attention": {"backend": "sdpa"}}, Cache),
    ],
    ids=str,
)
def test_what_cannot_be_shared_or_is_little_is_repeated(settings: dict[str, object], cache: type) -> None:
    step = Step(model_with(settings))
    few = SHARED_TOKENS // 4
    assert isinstance(cache_of(step, [[1, 2, 3, 4]], samples=few + 1), cache)
    assert isinstance(cache_of(step, [[1, 2, 3, 4]], samples=few), Cache)
    assert isinstance(cache_of(step, [[1, 2, 3, 4]] * 2 * few, samples=1), Cache), "one sample has nothing to share"


@pytest.mark.parametrize("settings", [KINDS["default"], KINDS["latent"]], ids=["default", "latent"])
def test_samples_of_ragged_prompts_are_the_same_alone_and_scored_as_sampled(settings: dict[str, object]) -> None:
    """Stop tokens take rows out of their groups at different times."""
    model, prompts = model_with(settings | {"initial_std": 0.05}), [[1, 2, 3, 4, 5], [6], [7, 8]]
    assert SHARED_TOKENS <= 3 * 9 * 5, "nothing is shared"
    sampling, stop, seeds = Sampling(max_new_tokens=11), range(10), range(30)
    groups = generate(model, prompts, sampling, stop_ids=stop, num_samples=10, seeds=seeds)
    together = [sample for group in groups for sample in group]
    assert {len(sample.ids) for sample in together} > {1, 3, 11}
    for seed, sample in zip(seeds, together, strict=True):
        prompt = prompts[seed // 10]
        ((alone,),) = generate(model, [prompt], sampling, stop_ids=stop, seeds=[seed])
        assert alone.ids == sample.ids
        with torch.no_grad():
            scored = token_logprobs(model, torch.tensor([prompt + sample.ids]), sampling=sampling)[0]
        torch.testing.assert_close(torch.tensor(sample.logprobs), scored[len(prompt) - 1 :], atol=1e-5, rtol=0)


def test_a_bfloat16_model_shares_prompts_in_float32() -> None:
    model = model_with({"initial_std": 0.05})
    model.activation_dtype = torch.bfloat16
    ((*samples,),) = generate(model, [[1, 2, 3]], Sampling(max_new_tokens=9), stop_ids=[], num_samples=64)
    for sample in samples[:4]:
        with torch.no_grad():
            scored = token_logprobs(model, torch.tensor([[1, 2, 3, *sample.ids]]))[0, 2:]
        torch.testing.assert_close(torch.tensor(sample.logprobs), scored, atol=0.03, rtol=0)


def test_seats_are_the_rows_themselves_while_all_prompts_have_as_many() -> None:
    assert find_seats(torch.tensor([0, 0, 1, 1]), 2) == (None, None)
    sitting, seats = find_seats(torch.tensor([1, 0, 1, 1]), 2)
    assert sitting is not None and seats is not None
    assert sitting.tolist() == [1, 0, 0, 0, 2, 3] and seats.tolist() == [3, 0, 4, 5]


def cache_of(step: Step, prompts: list[list[int]], *, samples: int) -> object:
    sampling = Sampling(max_new_tokens=9, temperature=0)
    return Decoding(step, prompts, sampling, seeds=range(len(prompts) * samples), stop_ids=[], tokenizer=None).cache


def shared_cache(model: Transformer, prompts: list[Tensor], *, samples: int, columns: int) -> SharedCache:
    """Prompts read with padding on the left."""
    longest = max(map(len, prompts))
    ids = torch.stack([torch.cat([torch.zeros(longest - len(p), dtype=torch.long), p]) for p in prompts])
    attended = torch.stack([torch.arange(longest) >= longest - len(p) for p in prompts])
    cache = Cache.allocate(model.config, len(prompts), longest)
    model.hidden(ids, attended=None if attended.all() else attended, cache=cache)
    return SharedCache(cache, samples=samples, columns=columns)


def model_with(settings: dict[str, object]) -> Transformer:
    shape = {"vocab_size": 50, "width": 32, "depth": 2, "context": 16, "initial_std": 0.2}
    return ModelConfig.model_validate(shape | settings).build(seed=1).eval()
