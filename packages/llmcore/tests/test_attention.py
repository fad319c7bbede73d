"""Attention: every backend against a naive loop, and what each query may see."""

import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from llmcore.errors import ConfigError
from llmcore.model.attention import GroupedQuery
from llmcore.model.backends.auto import Auto
from llmcore.model.backends.contract import Backend, Scores
from llmcore.model.backends.manual import Manual
from llmcore.model.backends.matmul import Matmul
from llmcore.model.backends.sdpa import SDPA
from llmcore.model.config import ModelConfig
from llmcore.model.masks import Mask, Sight, build_mask
from llmcore.model.transformer import Transformer

BACKENDS = [Auto(), SDPA(), Matmul(), Manual()]
SIGHTS = [
    Sight(),
    Sight(causal=False),
    Sight(window=3),
    Sight(window=3, sinks=2),
    Sight(causal=False, window=2),
]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def naive(
    queries: Tensor, keys: Tensor, values: Tensor, *, sight: Sight, attended: Tensor, documents: Tensor
) -> Tensor:
    """One query at a time, by the book; (B, H, T, C) and (B, Hkv, S, C) -> (B, T, H·C)."""
    rows, heads, tokens, head_width = queries.shape
    past, group = keys.shape[2] - tokens, heads // keys.shape[1]
    out = torch.zeros(rows, tokens, heads, head_width, dtype=queries.dtype)
    for b in range(rows):
        first = int(attended[b].long().argmax())
        for t in range(past, past + tokens):
            seen = [
                s
                for s in range(keys.shape[2])
                if s == t
                or (
                    attended[b, s]
                    and documents[b, s] == documents[b, t]
                    and (s < t or not sight.causal)
                    and (sight.window is None or abs(t - s) < sight.window or s - first < sight.sinks)
                )
            ]
            for h in range(heads):
                scores = [float(queries[b, h, t - past] @ keys[b, h // group, s]) for s in seen]
                exponents = [math.exp(score / math.sqrt(head_width)) for score in scores]
                for exponent, s in zip(exponents, seen, strict=True):
                    out[b, t - past, h] += exponent / sum(exponents) * values[b, h // group, s]
    return out.flatten(2)


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.kind)
@pytest.mark.parametrize("sight", SIGHTS, ids=str)
@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
def test_backends_equal_a_naive_loop(backend: Backend, sight: Sight, padded: bool) -> None:
    queries, keys, values = random_heads(tokens=6, keys=6)
    attended = torch.ones(2, 6, dtype=torch.bool)
    attended[1, :2] = not padded
    mask = build_mask(
        sight,
        queries=6,
        keys=6,
        device=queries.device,
        attended=attended if padded else None,
    )
    mixed, _ = backend.attend(queries, keys, values, mask=mask, scores=Scores(1 / math.sqrt(4)))
    expected = naive(
        queries, keys, values, sight=sight, attended=attended, documents=torch.zeros(2, 6, dtype=torch.long)
    )
    torch.testing.assert_close(mixed, expected)


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.kind)
@pytest.mark.parametrize("tokens", [1, 3])
def test_backends_equal_a_naive_loop_after_a_cache(backend: Backend, tokens: int) -> None:
    queries, keys, values = random_heads(tokens=tokens, keys=7)
    for sight in (Sight(), Sight(window=4)):
        mask = build_mask(sight, queries=tokens, keys=7, device=queries.device)
        mixed, _ = backend.attend(queries, keys, values, mask=mask, scores=Scores(1 / math.sqrt(4)))
        everything = torch.ones(2, 7, dtype=torch.bool)
        expected = naive(queries, keys, values, sight=sight, attended=everything, documents=torch.zeros(2, 7))
        torch.testing.assert_close(mixed, expected)


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.kind)
def test_documents_do_not_see_each_other(backend: Backend) -> None:
    queries, keys, values = random_heads(tokens=6, keys=6)
    documents = torch.tensor([[0, 0, 0, 1, 1, 2], [0, 1, 1, 1, 1, 1]])
    mask = build_mask(Sight(), queries=6, keys=6, device=queries.device, documents=documents)
    mixed, _ = backend.attend(queries, keys, values, mask=mask, scores=Scores(1 / math.sqrt(4)))
    everything = torch.ones(2, 6, dtype=torch.bool)
    expected = naive(queries, keys, values, sight=Sight(), attended=everything, documents=documents)
    torch.testing.assert_close(mixed, expected)


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.kind)
def test_gradients(backend: Backend) -> None:
    queries, keys, values = (x[:, :, :3].clone().requires_grad_() for x in random_heads(tokens=3, keys=3))

    def run(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        mask = Mask(causal=True, allowed=None)
        return backend.attend(queries, keys, values, mask=mask, scores=Scores(0.5))[0]

    assert torch.autograd.gradcheck(run, (queries, keys, values))


def test_soft_cap_bounds_the_scores() -> None:
    queries, keys, values = random_heads(tokens=5, keys=5)
    mask = build_mask(Sight(), queries=5, keys=5, device=queries.device)
    scores = Scores(20.0, soft_cap=3.0)
    manual, weights = Manual().attend(queries, keys, values, mask=mask, scores=scores)
    assert weights is not None
    last = weights[:, :, 4]
    assert (last.amax(-1) / last.amin(-1)).max() <= math.exp(6.0) * 1.001
    assert (last.amax(-1) / last.amin(-1)).max() > math.exp(5.0)
    for backend in (Matmul(), Auto()):
        torch.testing.assert_close(backend.attend(queries, keys, values, mask=mask, scores=scores)[0], manual)


def test_manual_weights_by_hand() -> None:
    queries = torch.tensor([[1.0, 0.0], [0.0, 2.0]]).view(1, 1, 2, 2)
    keys = torch.tensor([[0.0, 0.0], [0.0, math.log(3.0) / 2]]).view(1, 1, 2, 2)
    values = torch.tensor([[8.0, 0.0], [0.0, 4.0]]).view(1, 1, 2, 2)
    mixed, weights = Manual().attend(queries, keys, values, mask=Mask(causal=True, allowed=None), scores=Scores(1.0))
    torch.testing.assert_close(weights, torch.tensor([[1.0, 0.0], [0.25, 0.75]]).view(1, 1, 2, 2))
    torch.testing.assert_close(mixed, torch.tensor([[[8.0, 0.0], [2.0, 3.0]]]))


def test_a_model_returns_its_attention_weights() -> None:
    model = model_with(backend="manual", window=4)
    weights = model.attention_weights(torch.arange(7)[None])
    assert [w.shape for w in weights] == [(1, 4, 7, 7)] * 2
    torch.testing.assert_close(weights[0].sum(-1), torch.ones(1, 4, 7))
    assert (weights[1].triu(1) == 0).all() and (weights[1].tril(-4) == 0).all()
    with pytest.raises(ConfigError, match="backend=manual"):
        model_with().attention_weights(torch.arange(7)[None])


def test_as_many_key_heads_as_query_heads_is_multi_head_attention() -> None:
    """A grouped model whose key heads are copied for each query head computes the same as multi-head."""
    grouped, multi = model_with(kv_heads=2), model_with(kv_heads=4)
    weights = grouped.state_dict()
    for layer in range(2):
        name = f"blocks.{layer}.attention.qkv.weight"
        query, key, value = weights[name].split([32, 16, 16])
        copies = [x.view(2, 8, 32).repeat_interleave(2, 0).flatten(0, 1) for x in (key, value)]
        weights[name] = torch.cat([query, *copies])
    multi.load_state_dict(weights)
    ids = torch.randint(0, 50, (2, 9))
    torch.testing.assert_close(multi(ids), grouped(ids))


@pytest.mark.parametrize("backend", ["sdpa", "matmul", "manual"])
def test_models_agree_whatever_the_backend(backend: str) -> None:
    for settings in ({}, {"window": 3, "sinks": 1}, {"causal": False}, {"qk_norm": "head"}):
        ids = torch.randint(0, 50, (2, 9))
        expected = model_with(**settings)(ids)
        torch.testing.assert_close(model_with(backend=backend, **settings)(ids), expected, atol=2e-6, rtol=1e-5)


def test_qk_norm_makes_scores_blind_to_the_length_of_queries() -> None:
    for kind in ("head", "width"):
        model = model_with(qk_norm=kind, backend="manual")
        ids = torch.randint(0, 50, (1, 6))
        before = model.attention_weights(ids)[0]
        with torch.no_grad():
            model.get_parameter("blocks.0.attention.qkv.weight")[:48] *= 1000.0
            after = model.attention_weights(ids)[0]
            model.get_parameter("blocks.0.attention.query_norm.weight").mul_(3.0)
            sharper = model.attention_weights(ids)[0]
        torch.testing.assert_close(after, before, atol=0.02, rtol=0.1)
        assert not torch.allclose(sharper, after, atol=1e-3)


def test_dropout_acts_in_training_alone() -> None:
    for backend in ("sdpa", "matmul", "manual"):
        model = model_with(dropout=0.5, backend=backend)
        ids = torch.randint(0, 50, (1, 6))
        torch.testing.assert_close(model.eval()(ids), model_with(backend=backend).eval()(ids))
        assert not torch.equal(model.train()(ids), model(ids))


def test_conflicting_settings_are_refused() -> None:
    for settings, reason in (
        ({"heads": 4, "kv_heads": 3}, "multiple of kv_heads"),
        ({"sinks": 2}, "set window too"),
        ({"soft_cap": 5.0, "backend": "sdpa"}, "no soft_cap"),
    ):
        with pytest.raises(ValidationError, match=reason):
            GroupedQuery.model_validate(settings)
    with pytest.raises(ValidationError, match=r"width \(30\) must be a multiple of attention.heads \(4\)"):
        ModelConfig(width=30)


def random_heads(*, tokens: int, keys: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (2, 4, T, 4), keys and values (2, 2, S, 4), float64."""
    shapes = ((2, 4, tokens, 4), (2, 2, keys, 4), (2, 2, keys, 4))
    generator = torch.Generator().manual_seed(0)
    queries, past, values = (torch.randn(s, dtype=torch.float64, generator=generator) for s in shapes)
    return queries, past, values


def model_with(**settings: object) -> Transformer:
    config = ModelConfig.model_validate(
        {"vocab_size": 50, "width": 32, "depth": 2, "context": 16, "initial_std": 0.2, "attention": settings}
    )
    return config.build(seed=3)
