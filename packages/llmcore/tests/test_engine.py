"""The engine against naive generation, against itself in other batches, and against scoring."""

import gc
import weakref
from collections.abc import Iterator, Sequence
from itertools import chain

import pytest
import torch
from torch import Tensor

from llmcore.errors import ConfigError, DataError
from llmcore.generate.decoding import Decoding
from llmcore.generate.engine import Completion, generate, stream
from llmcore.generate.noise import gumbel_noise, sequence_seeds
from llmcore.generate.sampling import Sampling
from llmcore.losses import Batch, next_token_loss, token_logprobs
from llmcore.model.cache import Cache
from llmcore.model.config import ModelConfig
from llmcore.model.transformer import Transformer
from llmcore.tokenizer import Tokenizer

TEXT = b"the cat sat on the mat; the dog sat on the log. 1 + 2 = 3, 2 + 2 = 4! " * 20
STOP = ord(";")
CONTEXT = 64
NEAR_TIE = 1e-4


@pytest.fixture(scope="module")
def model() -> Transformer:
    """A tiny model that has learned a little, so that its distributions are sharp and have tails."""
    model = tiny(vocab_size=260, width=32, depth=2, context=CONTEXT)
    data = torch.tensor(list(TEXT))
    starts = torch.Generator().manual_seed(0)
    for step in range(100):
        rows = torch.randint(0, len(data) - 48, (16, 1), generator=starts) + torch.arange(48)
        loss = next_token_loss(model, Batch(data[rows], torch.ones_like(rows, dtype=torch.bool)))
        torch.autograd.backward(loss.total)
        with torch.no_grad():
            for parameter in model.parameters():
                assert parameter.grad is not None
                parameter.sub_(0.005 * (1 - step / 100) * parameter.grad.sign())  # Adam without its memory
        model.zero_grad()
    assert loss.total / loss.count < 2.0, "the fixture has not learned"
    return model.eval()


def tiny(**settings: object) -> Transformer:
    """Fresh weights."""
    heads = {"heads": 4, "kv_heads": 2}
    return ModelConfig.model_validate({"width": 16, "depth": 1, "attention": heads, **settings}).build(seed=1)


PROMPTS = [list(TEXT[start : start + length]) for start, length in [(0, 7), (5, 20), (11, 1), (3, 33), (40, 12)]]


def naive_scores(model: Transformer, ids: Sequence[int]) -> Tensor:
    """(V,) after all of ids, without a cache."""
    with torch.no_grad():
        scores: Tensor = model(torch.tensor([ids]))
        return scores[0, -1]


def assert_same_up_to_near_tie(
    model: Transformer, prompt: list[int], one: Completion, other: Completion, *, seed: int, temperature: float
) -> None:
    """Equal, or different from a token on where the best two differ by less than 1e-4."""
    pairs = list(zip(one.ids, other.ids, strict=False))
    place = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
    if place is None:
        assert (len(one.ids), one.stopped) == (len(other.ids), other.stopped)
        torch.testing.assert_close(torch.tensor(one.logprobs), torch.tensor(other.logprobs), rtol=0, atol=1e-4)
        return
    so_far = prompt + one.ids[:place]
    scores = naive_scores(model, so_far) / (temperature or 1.0)
    if temperature:
        scores = scores + gumbel_noise(torch.tensor([seed]), torch.tensor([len(so_far)]), vocab_size=len(scores))[0]
    best, second = scores.topk(2).values
    assert best - second < NEAR_TIE, f"token {place} differs, but the best two are {best - second:.2e} apart"


def test_greedy_generation_equals_the_uncached_loop(model: Transformer) -> None:
    found = generate(model, PROMPTS, Sampling(max_new_tokens=20, temperature=0), stop_ids=[STOP])
    for prompt, (completion,) in zip(PROMPTS, found, strict=True):
        ids = list(prompt)
        while len(ids) < len(prompt) + 20 and (len(ids) == len(prompt) or ids[-1] != STOP):
            ids.append(int(naive_scores(model, ids).argmax()))
        naive = Completion(ids[len(prompt) :], completion.logprobs, ids[-1] == STOP)
        assert_same_up_to_near_tie(model, prompt, naive, completion, seed=0, temperature=0)


def test_sampling_equals_the_uncached_loop_with_the_same_noise(model: Transformer) -> None:
    seed = 77
    ids = list(PROMPTS[1])
    for _ in range(15):
        noise = gumbel_noise(torch.tensor([seed]), torch.tensor([len(ids)]), vocab_size=260)[0]
        ids.append(int((naive_scores(model, ids) / 0.8 + noise).argmax()))
    sampling = Sampling(max_new_tokens=15, temperature=0.8)
    ((found,),) = generate(model, PROMPTS[1:2], sampling, stop_ids=[], seeds=[seed])
    naive = Completion(ids[len(PROMPTS[1]) :], found.logprobs, False)
    assert_same_up_to_near_tie(model, PROMPTS[1], naive, found, seed=seed, temperature=0.8)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.7},
        {"temperature": 0.0},
        {"top_k": 5},
        {"top_p": 0.9},
        {"min_p": 0.05},
        {"temperature": 1.3, "top_k": 40, "top_p": 0.95, "min_p": 0.01},
    ],
    ids=str,
)
def test_sampled_and_scored_logprobs_agree(model: Transformer, settings: dict[str, float]) -> None:
    """The distribution that is scored is the one that was sampled from, whatever cuts it."""
    sampling = Sampling.model_validate({"max_new_tokens": 24, **settings})
    found = generate(model, PROMPTS, sampling, stop_ids=[STOP], num_samples=6)
    gaps = []
    for prompt, samples in zip(PROMPTS, found, strict=True):
        for sample in samples:
            with torch.no_grad():
                scored = token_logprobs(model, torch.tensor([prompt + sample.ids]), sampling=sampling)[0]
            gaps.append(scored[len(prompt) - 1 :] - torch.tensor(sample.logprobs))
    ratios = (torch.cat(gaps).exp() - 1).abs()
    assert len(ratios) > 200
    assert ratios.max() < 1e-4
    assert ratios.mean() < 1e-5


@pytest.mark.parametrize("truncation", [{}, {"top_k": 5, "top_p": 0.95, "min_p": 0.01}, {"repetition_penalty": 1.3}])
def test_a_sequence_is_the_same_alone_and_in_a_batch(model: Transformer, truncation: dict[str, float]) -> None:
    sampling = Sampling.model_validate({"max_new_tokens": 24, **truncation})
    seeds = sequence_seeds(5, range(len(PROMPTS) * 4))
    found = generate(model, PROMPTS, sampling, stop_ids=list(b";,."), num_samples=4, seeds=seeds)
    lengths = set()
    for place, seed in enumerate(seeds):
        prompt, together = PROMPTS[place // 4], found[place // 4][place % 4]
        ((alone,),) = generate(model, [prompt], sampling, stop_ids=list(b";,."), seeds=[seed])
        if not truncation:
            assert_same_up_to_near_tie(model, prompt, alone, together, seed=seed, temperature=1.0)
        else:
            assert alone.ids == together.ids
        lengths.add(len(together.ids))
    assert len(lengths) > 3, "rows ended together: nothing left the batch early"


def test_more_prompts_than_rows_come_back_in_order(model: Transformer) -> None:
    sampling = Sampling(max_new_tokens=10)
    whole = generate(model, PROMPTS, sampling, stop_ids=[STOP], num_samples=2)
    parts = generate(model, PROMPTS, sampling, stop_ids=[STOP], num_samples=2, max_rows=4)
    assert [[s.ids for s in samples] for samples in whole] == [[s.ids for s in samples] for samples in parts]


def test_samples_of_a_prompt_differ_and_are_repeatable(model: Transformer) -> None:
    sampling = Sampling(max_new_tokens=20, seed=3)
    first = generate(model, PROMPTS[:1], sampling, stop_ids=[], num_samples=8)
    assert len({tuple(sample.ids) for sample in first[0]}) > 4
    assert generate(model, PROMPTS[:1], sampling, stop_ids=[], num_samples=8) == first
    other = generate(model, PROMPTS[:1], sampling.model_copy(update={"seed": 4}), stop_ids=[], num_samples=8)
    assert other != first


def read_shapes(model: Transformer, shapes: list[tuple[int, ...]]) -> torch.utils.hooks.RemovableHandle:
    """Note the shape of all ids that the model reads."""
    return model.embedding.register_forward_pre_hook(lambda _, arguments: shapes.append(tuple(arguments[0].shape)))


def test_a_prompt_is_read_once_for_all_its_samples_and_finished_rows_leave(model: Transformer) -> None:
    shapes: list[tuple[int, ...]] = []
    handle = read_shapes(model, shapes)
    found = generate(model, PROMPTS[:2], Sampling(max_new_tokens=40), stop_ids=list(b";,.3"), num_samples=16)
    handle.remove()
    assert shapes[0] == (2, 20)
    rows = [shape[0] for shape in shapes[1:]]
    assert rows[0] == 32 and rows == sorted(rows, reverse=True) and rows[-1] < 24
    lengths = [len(sample.ids) for samples in found for sample in samples]
    for step, held in enumerate(rows, 1):
        going_on = sum(length > step for length in lengths)
        assert going_on <= held <= max(going_on / 0.75, going_on + 1), f"{held} rows for {going_on} at step {step}"


def test_a_sequence_ends_with_its_stop_token(model: Transformer) -> None:
    found = generate(model, PROMPTS, Sampling(max_new_tokens=30), stop_ids={STOP, ord("!")}, num_samples=4)
    samples = [sample for group in found for sample in group]
    assert {sample.stopped for sample in samples} == {True, False}
    for sample in samples:
        assert len(sample.ids) == len(sample.logprobs) <= 30
        ends = [token in (STOP, ord("!")) for token in sample.ids]
        assert sum(ends[:-1]) == 0 and ends[-1] == sample.stopped
        assert sample.stopped or len(sample.ids) == 30


def test_token_zero_may_stop_a_sequence(model: Transformer) -> None:
    greedy = Sampling(max_new_tokens=60, temperature=0)
    found = generate(model, PROMPTS[3:] + PROMPTS[:1], greedy, stop_ids=[0], num_samples=2)
    assert [len(samples[0].ids) for samples in found] == [31, 52, 57]
    assert not any(sample.stopped for samples in found for sample in samples)


def test_sequences_stop_at_the_contexts_end(model: Transformer) -> None:
    prompts = [list(TEXT[:length]) for length in (CONTEXT, CONTEXT - 1, CONTEXT - 10, 5)]
    found = generate(model, prompts, Sampling(max_new_tokens=30), stop_ids=[])
    assert [len(samples[0].ids) for samples in found] == [0, 1, 10, 30]
    assert not any(samples[0].stopped for samples in found)


@pytest.mark.parametrize("kind", ["learned", "sinusoidal", "none"])
def test_other_positions_reach_the_contexts_end_too(kind: str) -> None:
    model = tiny(vocab_size=30, context=12, positions={"kind": kind})
    prompts = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11]]
    found = generate(model, prompts, Sampling(temperature=0), stop_ids=[])
    for prompt, (completion,) in zip(prompts, found, strict=True):
        assert len(prompt) + len(completion.ids) == 12
        ((alone,),) = generate(model, [prompt], Sampling(temperature=0), stop_ids=[])
        assert_same_up_to_near_tie(model, prompt, alone, completion, seed=0, temperature=0)


def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers(model: Transformer) -> None:
    with pytest.raises(DataError, match=r"65 tokens.*64"):
        generate(model, [[1], [1] * 65], Sampling(), stop_ids=[])
    with pytest.raises(DataError, match=r"65 tokens.*64"):
        stream(model, [1] * 65, Sampling(), stop_ids=[])


def test_prompts_that_are_none_are_refused(model: Transformer) -> None:
    with pytest.raises(DataError, match="empty"):
        generate(model, [[]], Sampling(), stop_ids=[])
    with pytest.raises(DataError, match=r"260.*260"):
        generate(model, [[1, 260]], Sampling(), stop_ids=[])
    with pytest.raises(ConfigError, match="scalar"):
        generate(tiny(vocab_size=9, head="scalar"), [[1]], Sampling(), stop_ids=[])
    assert generate(model, [], Sampling(), stop_ids=[]) == []


def test_stop_strings_end_sequences_anywhere_inside_tokens(model: Transformer) -> None:
    tokenizer = Tokenizer.byte_level()
    sampling = Sampling(max_new_tokens=40, stop=("at o", "e "))
    found = generate(model, PROMPTS, sampling, stop_ids=[STOP], num_samples=4, tokenizer=tokenizer)
    free = generate(model, PROMPTS, sampling.model_copy(update={"stop": ()}), stop_ids=[STOP], num_samples=4)
    cut = 0
    for sample, unstopped in zip(chain(*found), chain(*free), strict=True):
        text = tokenizer.decode(unstopped.ids)
        ends = [text.index(stop) + len(stop) for stop in sampling.stop if stop in text]
        wanted = text[: min(ends, default=len(text))]
        assert tokenizer.decode(sample.ids) == wanted
        assert sample.stopped == (bool(ends) or unstopped.stopped)
        cut += bool(ends)
    assert cut > 3
    with pytest.raises(ConfigError, match="tokenizer"):
        generate(model, PROMPTS, sampling, stop_ids=[])


def test_penalties_change_what_is_chosen(model: Transformer) -> None:
    plain = generate(model, PROMPTS[:1], Sampling(max_new_tokens=30, temperature=0), stop_ids=[])
    free = Sampling(max_new_tokens=30, temperature=0, frequency_penalty=100.0)
    varied = generate(model, PROMPTS[:1], free, stop_ids=[])
    assert len(set(varied[0][0].ids)) == 30 > len(set(plain[0][0].ids))


def test_a_stream_gives_the_tokens_of_generate(model: Transformer) -> None:
    for prompt in PROMPTS:
        sampling = Sampling(max_new_tokens=30, seed=9)
        ((whole,),) = generate(model, [prompt], sampling, stop_ids=[STOP])
        assert list(stream(model, prompt, sampling, stop_ids=[STOP])) == whole.ids
    assert list(stream(model, [1] * CONTEXT, Sampling(), stop_ids=[])) == []


def test_closing_a_stream_frees_its_cache_and_leaves_the_model_alone(
    model: Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    caches: list[weakref.ref[Cache]] = []
    read = Decoding.read_prompts

    def noting(self: Decoding, prompts: Sequence[Sequence[int]], samples: int) -> tuple[Cache, Tensor]:
        cache, scores = read(self, prompts, samples)
        caches.append(weakref.ref(cache))
        return cache, scores

    monkeypatch.setattr(Decoding, "read_prompts", noting)
    tokens = stream(model, PROMPTS[0], Sampling(), stop_ids=[])
    next(tokens)
    next(tokens)
    assert caches[0]() is not None
    tokens.close()
    gc.collect()
    assert caches[0]() is None


def test_a_waiting_stream_leaves_grad_and_mode_as_they_are(model: Transformer) -> None:
    model.train()
    tokens = stream(model, PROMPTS[0], Sampling(), stop_ids=[])
    next(tokens)
    next(tokens)
    assert model.training and all(module.training for module in model.modules())
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    torch.autograd.backward(token_logprobs(model, torch.tensor([PROMPTS[1]])).sum())
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.zero_grad()
    tokens.close()
    model.eval()


@pytest.fixture
def fresh() -> Iterator[Transformer]:
    """A model that has never been used, with dropout."""
    yield tiny(vocab_size=30, context=32, dropout=0.5)


def test_a_model_can_be_trained_after_it_generated(fresh: Transformer) -> None:
    generate(fresh, [[1, 2], [3]], Sampling(max_new_tokens=4), stop_ids=[])
    rows = torch.tensor([[1, 2, 3, 4]])
    torch.autograd.backward(next_token_loss(fresh, Batch(rows, torch.ones_like(rows, dtype=torch.bool))).total)
    assert all(parameter.grad is not None for parameter in fresh.parameters())


def test_dropout_is_off_while_generating_and_modes_come_back(fresh: Transformer) -> None:
    fresh.train()
    fresh.blocks[0].eval()
    modes = [module.training for module in fresh.modules()]
    training = generate(fresh, [[1, 2]], Sampling(max_new_tokens=20, temperature=0), stop_ids=[])
    assert [module.training for module in fresh.modules()] == modes
    assert generate(fresh.eval(), [[1, 2]], Sampling(max_new_tokens=20, temperature=0), stop_ids=[]) == training


def test_an_update_of_the_weights_is_seen_by_the_next_call(fresh: Transformer) -> None:
    before = generate(fresh, [[1, 2]], Sampling(max_new_tokens=20, temperature=0), stop_ids=[])
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)) * 0.1)
    assert generate(fresh, [[1, 2]], Sampling(max_new_tokens=20, temperature=0), stop_ids=[]) != before


def test_bfloat16_activations_generate_what_they_score(model: Transformer) -> None:
    model.activation_dtype = torch.bfloat16
    try:
        ((found,),) = generate(model, PROMPTS[:1], Sampling(max_new_tokens=20), stop_ids=[])
        with torch.no_grad():
            scored = token_logprobs(model, torch.tensor([PROMPTS[0] + found.ids]))[0, len(PROMPTS[0]) - 1 :]
    finally:
        model.activation_dtype = torch.float32
    assert (scored - torch.tensor(found.logprobs)).abs().max() < 0.2
