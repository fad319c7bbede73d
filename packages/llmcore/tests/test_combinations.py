"""Every allowed combination of parts computes one function, however it is asked: in float64, to nine digits.

A combination is positions × layout of norms × attention × what a query sees. Each is read whole, in pieces after a
cache, after a ring, padded, packed and in a batch; every backend must agree. Those that are not allowed come last.
"""

from collections.abc import Callable, Iterator
from functools import cache
from inspect import getgeneratorlocals
from itertools import product
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llmcore.config import load_config
from llmcore.errors import ConfigError, DataError
from llmcore.generate.engine import generate, stream
from llmcore.generate.sampling import Sampling
from llmcore.losses import Batch, next_token_loss
from llmcore.model.cache import Cache
from llmcore.model.config import ModelConfig
from llmcore.model.rolling import RollingCache, allocate_cache
from llmcore.model.transformer import Transformer, mean_attended

Settings = dict[str, object]
POSITIONS: dict[str, Settings] = {
    "rope": {"kind": "rope"},
    "yarn": {"kind": "rope", "scaling": {"kind": "yarn", "original_context": 8}},
    "learned": {"kind": "learned"},
    "sinusoidal": {"kind": "sinusoidal", "scale": 0.3},
    "none": {"kind": "none"},
}
LAYOUTS: dict[str, Settings] = {
    "pre": {"layout": "pre"},
    "post": {"layout": "post", "norm": {"kind": "layernorm"}},
    "reordered": {"layout": "reordered", "norm": {"kind": "rmsnorm_offset"}},
}
LATENT: Settings = {
    "kind": "mla",
    "heads": 3,
    "latent_width": 6,
    "content_width": 4,
    "rotary_width": 2,
    "value_width": 5,
}
ATTENTIONS: dict[str, Settings] = {
    "multi-head": {"heads": 4, "kv_heads": 4},
    "grouped": {"heads": 4, "kv_heads": 2},
    "multi-query": {"heads": 4, "kv_heads": 1, "qkv_bias": True, "out_bias": True},
    "qk-norm of heads": {"qk_norm": "head"},
    "qk-norm of the width": {"qk_norm": "width"},
    "soft cap": {"soft_cap": 2.0},
    "latent": LATENT,
    "latent queries": LATENT | {"query_latent_width": 7},
}
NORMS = ("rmsnorm", "rmsnorm_offset", "layernorm")
WINDOW = 3
SIGHTS: dict[str, Settings] = {
    "everything before": {},
    "window": {"window": WINDOW},
    "window and sinks": {"window": WINDOW, "sinks": 2},
    "encoder": {"causal": False},
    "encoder with a window": {"causal": False, "window": WINDOW},
}
CONTEXT = 14


class Combination(NamedTuple):
    positions: str
    layout: str
    attention: str
    sight: str

    def __str__(self) -> str:
        return ", ".join(self)


Check = Callable[[Combination], None]


def for_each(*, causal: bool = False, windowed: bool = False) -> Callable[[Check], Callable[[str, str, str], None]]:
    """A test for each attention and sight, of positions and layouts of norms: one of them varied, and (slow) both."""
    sights = [name for name in SIGHTS if not (causal and "encoder" in name) and not (windowed and "window" not in name)]

    def spread(check: Check) -> Callable[[str, str, str], None]:
        @pytest.mark.parametrize("varied", ["one", pytest.param("both", marks=pytest.mark.slow)])
        @pytest.mark.parametrize("sight", sights)
        @pytest.mark.parametrize("attention", ATTENTIONS)
        def test(attention: str, sight: str, varied: str) -> None:
            for positions, layout in product(POSITIONS, LAYOUTS):
                if (positions == "rope" or layout == "pre") != (varied == "one"):
                    continue
                one = Combination(positions, layout, attention, sight)
                try:
                    check(one)
                except AssertionError as error:
                    raise AssertionError(f"{one}: {error}") from error

        test.__name__, test.__doc__ = check.__name__, check.__doc__
        return test

    return spread


A_FEW = [
    Combination("rope", "pre", "grouped", "everything before"),
    Combination("learned", "post", "multi-head", "encoder"),
    Combination("yarn", "reordered", "qk-norm of the width", "window and sinks"),
    Combination("rope", "pre", "latent queries", "window"),
    Combination("none", "pre", "soft cap", "window"),
]
pytestmark = pytest.mark.usefixtures("one_thread")
a_few = pytest.mark.parametrize("one", A_FEW, ids=str)


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.no_grad():
        yield


@for_each()
def test_backends_agree(one: Combination) -> None:
    ids, attended = random_ids(2, 7), F.pad(torch.ones(2, 5), (2, 0)).bool()
    attended[0] = True
    allowed = ["sdpa", "matmul", "auto"][one.attention == "soft cap" :]
    manual = model_of(one, backend="manual")
    for backend in allowed:
        other = model_of(one, backend=backend)
        assert_equal(other(ids), manual(ids))
        assert_equal(other(ids, attended=attended)[attended], manual(ids, attended=attended)[attended])


@for_each(causal=True)
def test_with_a_cache_is_as_without(one: Combination) -> None:
    model, ids = model_of(one), random_ids(2, 9)
    whole = model(ids)
    for cuts in ([1] * 9, [4, 1, 1, 3]):
        memory = Cache.allocate(model.config, 2, 9, dtype=torch.float64)
        assert_equal(read(model, ids, cuts, memory), whole)


@for_each(causal=True, windowed=True)
def test_a_rolling_cache_is_as_a_window_mask(one: Combination) -> None:
    """Ten windows long, which is beyond the context, where positions are defined there."""
    model = model_of(one)
    ids = random_ids(2, 10 * WINDOW + 4 if model.config.endless else CONTEXT)
    whole = model(ids)
    for cuts in ([1], [2, 1, 1, 4], [8, 2]):
        ring = RollingCache.of_window(model.config, 2, dtype=torch.float64)
        assert_equal(read(model, ids, cuts * ids.shape[1], ring), whole)
        assert ring.capacity == WINDOW + model.config.attention.sight().sinks
        assert ring.length == ids.shape[1]


@for_each(causal=True)
def test_ragged_rows_are_as_alone(one: Combination) -> None:
    """Prompts padded on the left, read in two pieces, repeated and picked, then one token after another."""
    model = model_of(one)
    prompts = [random_ids(1, length)[0] for length in (1, 6, 4)]
    more = random_ids(3, 5)
    ids = torch.stack([F.pad(prompt, (6 - len(prompt), 0)) for prompt in prompts])
    attended = torch.stack([torch.arange(6) >= 6 - len(prompt) for prompt in prompts])
    for cuts in ([6], [2, 4], [5, 1]):
        memory = allocate_cache(model.config, 3, 11, dtype=torch.float64, device="cpu")
        parts = zip(torch.split(ids, cuts, 1), torch.split(attended, cuts, 1), strict=True)
        found = [model(piece, attended=real, cache=memory)[:, -1:] for piece, real in parts][-1:]
        memory.repeat(2)
        memory.keep(torch.tensor([4, 1, 2]))  # the third row, the first, the second
        found = [found[0][[2, 0, 1]]] + [model(more[:, t : t + 1], cache=memory) for t in range(5)]
        for row, prompt in enumerate([prompts[2], prompts[0], prompts[1]]):
            alone = model(torch.cat([prompt, more[row]])[None])[0, len(prompt) - 1 :]
            assert_equal(torch.cat(found, 1)[row], alone)


@for_each()
def test_padding_and_company_change_nothing(one: Combination) -> None:
    model, ids = model_of(one), random_ids(3, 6)
    alone = torch.cat([model(row[None]) for row in ids])
    assert_equal(model(ids), alone)
    for pads in ((0, 4), (4, 0)):
        attended = F.pad(torch.ones_like(ids), pads).bool()
        padded = model(F.pad(ids, pads, value=7), attended=attended)
        assert_equal(padded[attended].view(alone.shape), alone)


@for_each()
def test_packed_documents_are_as_alone(one: Combination) -> None:
    model = model_of(one)
    pieces = [random_ids(1, length) for length in (6, 1, 5)]
    documents = torch.cat([torch.full_like(piece, number) for number, piece in enumerate(pieces)], 1)
    packed = model(torch.cat(pieces, 1), documents=documents)
    assert_equal(packed, torch.cat([model(piece) for piece in pieces], 1))


@a_few
def test_gradients(one: Combination) -> None:
    model = fresh(one, width=8, depth=1, context=5, vocab_size=5, feedforward={"hidden": 3})
    ids = torch.tensor([[0, 1, 4, 1, 2]])

    def run(*_weights: Tensor) -> Tensor:
        scores: Tensor = model(ids)
        return scores.logsumexp(-1)

    with torch.enable_grad():
        assert torch.autograd.gradcheck(run, tuple(model.parameters()), fast_mode=True)


@pytest.mark.parametrize("sight", SIGHTS)
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_gradients_of_backends_agree(attention: str, sight: str) -> None:
    """Of all weights, with padding in one row, each backend against the manual one."""
    check_gradients(Combination("rope", "pre", attention, sight))


@pytest.mark.slow
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_of_backends_agree_for_all_positions_and_layouts(positions: str, layout: str) -> None:
    for attention, sight in product(ATTENTIONS, SIGHTS):
        check_gradients(Combination(positions, layout, attention, sight))


def check_gradients(one: Combination) -> None:
    ids, attended = random_ids(2, 6), F.pad(torch.ones(2, 4), (2, 0)).bool()
    attended[0] = True
    found = {}
    with torch.enable_grad():
        for backend in ["manual", "matmul", "auto", "sdpa"][: 3 if one.attention == "soft cap" else 4]:
            model = fresh(one, backend=backend)
            loss = model(ids, attended=attended)[attended].logsumexp(-1).sum()
            found[backend] = torch.autograd.grad(loss, list(model.parameters()))
    for backend, gradients in found.items():
        for gradient, expected in zip(gradients, found["manual"], strict=True):
            assert gradient.isfinite().all(), backend
            assert_equal(gradient, expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    "parts",
    [
        *({"feedforward": {"kind": kind, "hidden": 3}} for kind in ("gelu", "relu2", "geglu", "swiglu")),
        *({"norm": {"kind": kind}, "layout": layout} for kind in NORMS for layout in LAYOUTS),
        *({"positions": positions} for positions in POSITIONS.values()),
        *({"attention": settings | sight} for settings in ATTENTIONS.values() for sight in SIGHTS.values()),
        {"tie_embeddings": False},
        {"embedding_scale": 3.0},
        {"head": "scalar"},
    ],
    ids=str,
)
def test_gradients_of_every_part(parts: Settings) -> None:
    """Against finite differences, one part varied at a time."""
    shape: Settings = {"vocab_size": 5, "width": 8, "depth": 1, "context": 5, "initial_std": 0.3}
    small: Settings = {"feedforward": {"hidden": 3}, "attention": {"heads": 2, "kv_heads": 1}}
    model = ModelConfig.model_validate(shape | small | parts).build(seed=1).to(torch.float64).eval()
    model.activation_dtype = torch.float64
    ids = torch.tensor([[0, 1, 4, 1, 2]])

    def run(*_weights: Tensor) -> Tensor:
        scores: Tensor = model(ids)
        return scores.logsumexp(-1) + scores[..., 0]

    with torch.enable_grad():
        assert torch.autograd.gradcheck(run, tuple(model.parameters()), fast_mode=True)


@a_few
def test_flex_agrees_too(one: Combination) -> None:
    model, ids = fresh(one, backend="flex", dtype=torch.float32), random_ids(2, 7)
    expected = fresh(one, backend="manual", dtype=torch.float32)(ids)
    torch.testing.assert_close(model(ids), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@a_few
def test_compiled_is_as_eager(one: Combination) -> None:
    """In one graph: nothing in a forward stops the compiler."""
    model, ids = fresh(one, dtype=torch.float32), random_ids(2, 9)
    torch._dynamo.reset()
    with torch.enable_grad():
        expected = model(ids)
        found = torch.compile(model, fullgraph=True)(ids)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        gradients = [
            torch.autograd.grad(scores.logsumexp(-1).sum(), list(model.parameters())) for scores in (expected, found)
        ]
    for eager, fused in zip(*gradients, strict=True):
        torch.testing.assert_close(fused, eager, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (["attention.sinks=2"], "set window too"),
        (["attention.kind=mla", "attention.sinks=2"], "set window too"),
        (["attention.soft_cap=5", "attention.backend.kind=sdpa"], "sdpa backend has no soft_cap"),
        (["attention.soft_cap=5", "attention.backend.kind=flash"], "flash backend has no soft_cap"),
        (["attention.soft_cap=5", "attention.backend.kind=xformers"], "xformers backend has no soft_cap"),
        (["attention.window=5", "attention.sinks=2", "attention.backend.kind=flash"], "flash backend has no sinks"),
        (["attention.dropout=0.1", "attention.backend.kind=flex"], "flex backend has no dropout"),
        (["attention.kind=mla", "attention.backend.kind=flash"], "no values narrower than keys"),
        (["attention.kind=mla", "attention.backend.kind=xformers"], "no values narrower than keys"),
        (["attention.kind=mla", "attention.soft_cap=5"], "unknown key"),
        (["attention.kind=mla", "attention.rotary_width=3"], "even head width"),
        (["attention.heads=4", "attention.kv_heads=3"], "multiple of kv_heads"),
        (["width=30"], "multiple of attention.heads"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_not_allowed_is_one_clear_error(settings: list[str], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        load_config(ModelConfig, settings)


@pytest.mark.parametrize("setting", ["positions=none", "positions.kind=none", "positions.scaling.kind=none"])
def test_none_is_a_kind_on_a_command_line_too(setting: str) -> None:
    positions: Settings = {"kind": "rope", "scaling": {"kind": "none"}} if "scaling" in setting else {"kind": "none"}
    assert load_config(ModelConfig, [setting]) == ModelConfig.model_validate({"positions": positions})


def test_an_encoder_learns_no_next_token() -> None:
    model = fresh(A_FEW[1], dtype=torch.float32)
    with pytest.raises(ConfigError, match="not causal sees the next token"):
        next_token_loss(model, Batch(random_ids(2, 5), torch.ones(2, 5, dtype=torch.bool)))


@pytest.mark.parametrize(
    "one",
    [
        Combination("rope", "pre", "grouped", "everything before"),
        Combination("learned", "pre", "grouped", "window"),
        Combination("sinusoidal", "pre", "latent", "window and sinks"),
        Combination("rope", "pre", "grouped", "encoder with a window"),
    ],
    ids=str,
)
def test_without_a_window_or_with_positions_of_the_context_alone_it_ends_there(one: Combination) -> None:
    model, ids = model_of(one), random_ids(1, CONTEXT + 1)
    with pytest.raises(ConfigError, match=f"{CONTEXT + 1} tokens in a context of {CONTEXT}"):
        model(ids)


def test_a_window_wider_than_the_context_ends_with_it() -> None:
    assert model_of(Combination("rope", "pre", "grouped", "window")).config.endless
    config = ModelConfig.model_validate({"context": 8, "attention": {"window": 9}})
    assert not config.endless


def test_an_encoder_does_not_generate() -> None:
    model = fresh(A_FEW[1], dtype=torch.float32)
    with pytest.raises(ConfigError, match="not causal"):
        generate(model, [[1]], Sampling(), stop_ids=[])
    with pytest.raises(ConfigError, match="not causal"):
        stream(model, [1], Sampling(), stop_ids=[])


@pytest.mark.parametrize("positions", ["rope", "none"])
@pytest.mark.parametrize("attention", ["grouped", "latent"])
@pytest.mark.parametrize("sight", ["window", "window and sinks"])
def test_a_stream_goes_on_for_ever_in_constant_memory(positions: str, attention: str, sight: str) -> None:
    """Ten contexts long, from a prompt longer than the context, each token is the best of a forward of all before."""
    one = Combination(positions, "pre", attention, sight)
    model, prompt = model_of(one), random_ids(1, CONTEXT + 7)[0].tolist()
    tokens = stream(model, prompt, Sampling(max_new_tokens=10**15, temperature=0), stop_ids=[])
    new = [next(tokens) for _ in range(10 * CONTEXT)]
    cache_size = getgeneratorlocals(tokens)["decoding"].cache.keys.shape[3]
    assert cache_size == WINDOW + model.config.attention.sight().sinks
    tokens.close()
    scores = model(torch.tensor([prompt + new]))[0, len(prompt) - 1 : -1]
    assert scores.argmax(-1).tolist() == new
    assert len(set(new)) > 1


def test_other_sequences_end_with_the_context() -> None:
    model = fresh(Combination("rope", "pre", "grouped", "window"), dtype=torch.float32)
    ((sample,),) = generate(model, [[1, 2]], Sampling(max_new_tokens=99), stop_ids=[])
    assert len(sample.ids) == CONTEXT - 2 and not sample.stopped
    with pytest.raises(DataError, match=f"{CONTEXT + 1} tokens"):
        generate(model, [[1] * (CONTEXT + 1)], Sampling(), stop_ids=[])
    learned = fresh(Combination("learned", "pre", "grouped", "window"), dtype=torch.float32)
    assert len(list(stream(learned, [1, 2], Sampling(max_new_tokens=99), stop_ids=[]))) == CONTEXT - 2


def test_an_encoder_with_a_scalar_head_learns_to_score() -> None:
    """Which rows hold token 3 anywhere: bidirectional, mean over attended tokens, any padding."""
    model = fresh(Combination("rope", "pre", "grouped", "encoder"), dtype=torch.float32, head="scalar", depth=1)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, 20, (64, 8), generator=generator)
    attended = torch.arange(8) < torch.randint(3, 9, (64, 1), generator=generator)
    wanted = torch.arange(64) % 2 == 0
    ids[wanted, 1] = 3

    def scores(ids: Tensor, attended: Tensor) -> Tensor:
        pooled = mean_attended(model.hidden(ids, attended=attended), attended)
        return (pooled @ model.head_weight().T).squeeze(-1)

    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    with torch.enable_grad():
        for _ in range(40):
            optimizer.zero_grad()
            torch.autograd.backward(F.binary_cross_entropy_with_logits(scores(ids, attended), wanted.float()))
            optimizer.step()
    assert ((scores(ids, attended) > 0) == wanted).float().mean() > 0.95
    longer = scores(F.pad(ids, (0, 4)), F.pad(attended, (0, 4)))
    torch.testing.assert_close(longer, scores(ids, attended), atol=1e-4, rtol=1e-4)


def fresh(
    one: Combination, *, backend: str = "auto", dtype: torch.dtype = torch.float64, **settings: object
) -> Transformer:
    """A model with large weights, so that everything it sees makes a difference."""
    attention = ATTENTIONS[one.attention] | SIGHTS[one.sight] | {"backend": backend}
    shape: Settings = {"vocab_size": 20, "width": 16, "depth": 2, "context": CONTEXT, "initial_std": 0.3}
    shape |= {"feedforward": {"hidden": 8}, "attention": attention, "positions": POSITIONS[one.positions]}
    model = ModelConfig.model_validate(shape | LAYOUTS[one.layout] | settings).build(seed=1).to(dtype).eval()
    model.activation_dtype = dtype
    return model


@cache
def model_of(one: Combination, *, backend: str = "auto") -> Transformer:
    return fresh(one, backend=backend)


def read(model: Transformer, ids: Tensor, cuts: list[int], memory: Cache) -> Tensor:
    """(B, T) in pieces of these sizes, as far as they are needed -> (B, T, V)."""
    found, start = [], 0
    for size in cuts:
        if start < ids.shape[1]:
            found.append(model(ids[:, start : start + size], cache=memory))
            start += size
    return torch.cat(found, 1)


def random_ids(rows: int, tokens: int) -> Tensor:
    return torch.randint(0, 20, (rows, tokens))


def assert_equal(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)
