"""The prepared step of decoding against the model's own forward."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from llmcore.generate.engine import generate
from llmcore.generate.sampling import Sampling
from llmcore.model.cache import Cache
from llmcore.model.config import ModelConfig
from llmcore.model.linear import held_weights
from llmcore.model.rolling import allocate_cache
from llmcore.model.step import Step
from llmcore.model.transformer import Transformer

VIEWS = {"view", "select", "slice", "unbind", "transpose", "unsqueeze", "squeeze", "split", "_unsafe_view", "detach",
         "expand", "split_with_sizes", "t", "alias", "permute"}  # fmt: skip


@pytest.mark.parametrize(
    "settings",
    [
        {"attention": {"qkv_bias": True, "out_bias": True}, "feedforward": {"kind": "swiglu", "bias": True}},
        {"layout": "post", "norm": {"kind": "layernorm"}, "positions": {"kind": "learned"}},
        {"layout": "reordered", "attention": {"qk_norm": "width"}, "feedforward": {"kind": "relu2"}},
        {"attention": {"qk_norm": "head", "soft_cap": 5.0, "kv_heads": 1}, "norm": {"kind": "rmsnorm_offset"}},
        {"attention": {"kind": "mla", "query_latent_width": 8}, "positions": {"kind": "rope"}, "embedding_scale": 3.0},
        {"attention": {"backend": "manual"}, "tie_embeddings": False, "positions": {"kind": "none"}},
        {"attention": {"backend": "sdpa"}, "layout": "post", "feedforward": {"kind": "gelu", "bias": True}},
    ],
)
@pytest.mark.parametrize("rows", [1, 4])
def test_a_step_gives_what_the_forward_gives(settings: dict[str, object], rows: int) -> None:
    model = model_with(settings)
    assert_steps_match(model, torch.randint(0, 50, (rows, 9)), atol=1e-5)


def test_parts_that_offer_no_step_are_called_as_they_are() -> None:
    for part in ("attention_norm", "feedforward", "attention"):
        model = model_with({})
        for block in model.blocks:
            setattr(block, part, Plain(getattr(block, part)))
        assert (Step(model).blocks is None) == (part == "attention")
        assert_steps_match(model, torch.randint(0, 50, (2, 6)), atol=1e-5)


def test_a_step_goes_on_with_the_weights_it_was_made_from() -> None:
    model, ids = model_with({"tie_embeddings": False}), torch.randint(0, 50, (1, 5))
    with torch.no_grad():
        expected = model(ids)[:, -1]
        cache = Cache.allocate(model.config, 1, 5)
        model.hidden(ids[:, :-1], cache=cache)
        step = Step(model)
        for block in model.blocks:
            for parameter in block.parameters():
                parameter.mul_(0.5)
        torch.testing.assert_close(step(ids[:, -1], cache), expected, atol=1e-5, rtol=1e-5)


def test_a_step_holds_no_second_copy_of_held_weights() -> None:
    model = model_with({"tie_embeddings": False})
    with held_weights(model, torch.float32):
        step = Step(model)
        assert model.head is not None and model.head.held is not None
        assert step.project.matrix.data_ptr() == model.head.held.data_ptr()


@pytest.mark.parametrize("rows", [1, 4])
def test_the_matmul_precision_is_as_it_was_even_after_an_error(rows: int) -> None:
    torch.set_float32_matmul_precision("medium")
    model = model_with({})
    step, cache = Step(model), Cache.allocate(model.config, rows, 1)
    tokens = torch.ones(rows, dtype=torch.long)
    with torch.no_grad():
        step(tokens, cache)
        assert torch.get_float32_matmul_precision() == "medium"
        with pytest.raises(AssertionError, match="2 tokens in a cache of 1"):
            step(tokens, cache)
    assert torch.get_float32_matmul_precision() == "medium"


def test_a_bfloat16_model_decodes_what_it_scores_with_a_float32_cache() -> None:
    model = model_with({"initial_std": 0.05})
    model.activation_dtype = torch.bfloat16
    assert allocate_cache(model.config, 1, 4, dtype=torch.bfloat16, device="cpu").keys.dtype == torch.float32
    assert_steps_match(model, torch.randint(0, 50, (3, 9)), atol=0.03)


def test_a_layer_of_a_step_is_few_operations() -> None:
    """At one row each operation costs about a microsecond, whatever it computes."""
    counts = [count_operations(model_with({"depth": depth, "attention": {"kv_heads": 4}})) for depth in (1, 2)]
    assert (counts[1] - counts[0]).total() <= 24, counts[1] - counts[0]


@pytest.mark.slow
def test_a_compiled_step_gives_what_the_step_gives() -> None:
    prompts = [[1, 2, 3], [4, 5], [6]]
    for attention in ({"kind": "gqa"}, {"kind": "mla"}):
        model = model_with({"attention": attention, "context": 64})
        sampling = Sampling(max_new_tokens=30, temperature=0)
        eager = generate(model, prompts, sampling, stop_ids=[])
        compiled = generate(model, prompts, sampling, stop_ids=[], compiled=True)
        for (one,), (other,) in zip(eager, compiled, strict=True):
            assert one.ids == other.ids
            torch.testing.assert_close(torch.tensor(one.logprobs), torch.tensor(other.logprobs), atol=1e-5, rtol=0)


def test_without_a_compiler_a_warning_says_that_the_step_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    from llmcore.model.step import compile_blocks

    compile_blocks.cache_clear()
    monkeypatch.setattr("shutil.which", lambda _: None)
    model = model_with({})
    with pytest.warns(UserWarning, match="no C\\+\\+ compiler"):
        found = generate(model, [[1, 2]], Sampling(max_new_tokens=4), stop_ids=[], compiled=True)
    compile_blocks.cache_clear()
    assert found == generate(model, [[1, 2]], Sampling(max_new_tokens=4), stop_ids=[])


class Plain(nn.Module):
    """A part of a model that has nothing but a forward."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, *arguments: Any) -> Tensor:
        made: Tensor = self.part(*arguments)
        return made


class Counting(TorchDispatchMode):
    """How often each operation that computes is called."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name not in VIEWS:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def count_operations(model: Transformer) -> Counter[str]:
    step, cache = Step(model), Cache.allocate(model.config, 1, 4)
    with torch.no_grad():
        step(torch.tensor([1]), cache)
        with Counting() as counting:
            step(torch.tensor([2]), cache)
    return counting.counts


def assert_steps_match(model: Transformer, ids: Tensor, *, atol: float) -> None:
    """The last tokens of rows (B, T), the first three of which are read as a prompt with ragged padding."""
    attended = torch.arange(3) >= torch.arange(len(ids)).unsqueeze(1) % 3
    whole = torch.cat([attended, torch.ones(len(ids), ids.shape[1] - 3, dtype=torch.bool)], 1)
    with torch.no_grad():
        expected = model(ids, attended=whole)
        cache = allocate_cache(model.config, len(ids), ids.shape[1], dtype=model.activation_dtype, device="cpu")
        model.hidden(ids[:, :3], attended=None if attended.all() else attended, cache=cache)
        step = Step(model)
        for place in range(3, ids.shape[1]):
            torch.testing.assert_close(step(ids[:, place], cache), expected[:, place], atol=atol, rtol=atol)


def model_with(settings: dict[str, object]) -> Transformer:
    shape = {"vocab_size": 50, "width": 32, "depth": 2, "context": 16, "initial_std": 0.2}
    return ModelConfig.model_validate(shape | settings).build(seed=1).eval()
