"""Where and how precisely to train, with the reason."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from llmcore.errors import ConfigError
from llmcore.generate.engine import generate
from llmcore.generate.noise import gumbel_noise
from llmcore.generate.sampling import Sampling, truncate
from llmcore.head import linear_cross_entropy
from llmcore.model.cache import Cache
from llmcore.model.config import ModelConfig
from llmcore.train import device
from llmcore.train.device import Placement, choose_dtype, place, resolve, resolve_device, to_device

CPU = torch.device("cpu")


def test_auto_takes_a_device_that_is_there() -> None:
    found = resolve_device("auto")
    assert torch.zeros(1, device=found).device.type == found.type


def test_a_named_device_is_taken_as_it_is() -> None:
    assert resolve_device("cpu") == CPU


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "cpu:7", "xpu", ""])
def test_a_device_that_is_not_there_is_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigError, match=repr(name)):
        resolve_device(name)


@pytest.mark.parametrize(
    ("flags", "wanted", "reason"),
    [
        ({"avx2"}, torch.float32, "no bf16"),
        ({"avx512f", "avx512_bf16"}, torch.bfloat16, "avx512_bf16"),
        ({"amx_bf16", "amx_tile"}, torch.bfloat16, "amx_bf16"),
    ],
)
def test_auto_dtype_on_a_cpu_follows_its_instructions(
    monkeypatch: pytest.MonkeyPatch, flags: set[str], wanted: torch.dtype, reason: str
) -> None:
    monkeypatch.setattr(device, "cpu_flags", lambda: frozenset(flags))
    chosen, why = choose_dtype("auto", CPU)
    assert chosen == wanted
    assert reason in why


def test_a_named_dtype_is_taken_and_another_refused() -> None:
    assert choose_dtype("bf16", CPU) == (torch.bfloat16, "as set")
    with pytest.raises(ConfigError, match="'fp8'"):
        choose_dtype("fp8", CPU)


def test_the_reason_names_device_threads_and_dtype() -> None:
    reason = resolve("cpu", "fp32").reason
    assert reason == f"cpu × {torch.get_num_threads()} threads · fp32 (as set)"


def test_placing_sets_the_precision_of_every_part_that_has_one() -> None:
    inner = ModelConfig(vocab_size=9, width=16, depth=1, context=8).build(seed=0)
    wrapper = nn.ModuleDict({"policy": inner, "other": nn.Linear(2, 2)})
    place(wrapper, Placement(CPU, torch.bfloat16, ""))
    assert inner.activation_dtype == torch.bfloat16
    assert {weight.dtype for weight in wrapper.parameters()} == {torch.float32}
    assert inner.hidden(torch.zeros(1, 3, dtype=torch.long)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("flags", "precision"),
    [({"avx512f"}, "medium"), ({"avx512f", "amx_tile"}, "highest"), ({"avx2"}, "highest")],
)
def test_fp32_products_leave_full_precision_only_where_it_costs_none(
    monkeypatch: pytest.MonkeyPatch, flags: set[str], precision: str
) -> None:
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")
        monkeypatch.setattr(device, "cpu_flags", lambda: frozenset(flags))
        device.use_fast_fp32()
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)


def test_fast_fp32_products_on_this_machine_are_as_exact_as_fp32() -> None:
    before = torch.get_float32_matmul_precision()
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(256, 256, generator=generator) for _ in range(2))
    exact = left.double() @ right.double()
    try:
        device.use_fast_fp32()
        assert float((left @ right - exact).abs().max()) < 3e-4  # bf16 would be off by about 0.3
    finally:
        torch.set_float32_matmul_precision(before)


class Pair(NamedTuple):
    left: Tensor
    right: dict[str, list[Tensor]]


def test_a_batch_of_any_shape_goes_to_the_device() -> None:
    batch = Pair(torch.ones(2), {"x": [torch.zeros(3)]})
    moved = to_device(batch, torch.device("meta"))
    assert isinstance(moved, Pair)
    assert moved.left.device.type == moved.right["x"][0].device.type == "meta"
    assert to_device("text", torch.device("meta")) == "text"


class NoFloat64(TorchDispatchMode):
    """Refuses float64 on one device, as Apple's MPS does."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(
        self, func: Callable[..., object], types: object, args: tuple[object, ...] = (), kwargs: object = None
    ) -> object:
        found = func(*args, **(kwargs or {}))  # type: ignore[dict-item]
        for tensor in found if isinstance(found, tuple | list) else (found,):
            if isinstance(tensor, Tensor) and tensor.device.type == self.device:
                assert tensor.dtype != torch.float64, f"{func} makes float64 on the device"
        return found


@pytest.mark.slow
@pytest.mark.parametrize(
    "parts",
    [
        {"positions": {"kind": "rope", "scaling": {"kind": "yarn", "original_context": 8}}},
        {"positions": {"kind": "learned"}, "layout": "post", "norm": {"kind": "layernorm"}},
        {"positions": {"kind": "sinusoidal"}, "attention": {"window": 3, "sinks": 1}},
        {"attention": {"kind": "mla", "heads": 2, "latent_width": 4, "content_width": 4, "rotary_width": 2}},
        {"attention": {"soft_cap": 2.0, "qk_norm": "head"}, "feedforward": {"kind": "gelu"}},
    ],
    ids=str,
)
def test_a_forward_and_its_gradient_need_no_float64_on_the_device(parts: dict[str, object]) -> None:
    """Shown on the meta device, which stands for one that has none; numbers beside it (rotary tables) may."""
    model = ModelConfig.model_validate({"vocab_size": 9, "width": 16, "depth": 1, "context": 16, **parts}).build(seed=0)
    where = torch.device("meta")
    model = model.to(where)
    ids = torch.zeros(2, 8, dtype=torch.long, device=where)
    with NoFloat64("meta"):
        model(ids).sum().backward()
        with torch.no_grad():
            memory = Cache.allocate(model.config, 2, 16, dtype=torch.float32, device=where)
            model(ids, cache=memory)
            model(ids[:, :1], cache=memory)
        linear_cross_entropy(model.hidden(ids).flatten(0, 1), model.head_weight(), targets=ids.flatten())[0].backward()
        gumbel_noise(ids[:, 0], ids[:, 0], vocab_size=9)
        scores = torch.zeros(2, 9, device=where)
        truncate(scores, Sampling(top_k=2, top_p=0.5, min_p=0.1))


@pytest.mark.skipif(not torch.backends.mps.is_available(), reason="needs Apple's MPS")
def test_mps_computes_what_the_cpu_does() -> None:
    model = ModelConfig(vocab_size=64, width=32, depth=2, context=64).build(seed=0).eval()
    expected = generate(model, [[1, 2, 3], [4]], Sampling(max_new_tokens=16), stop_ids=[0])
    place(model, resolve("mps", "fp32"))
    found = generate(model, [[1, 2, 3], [4]], Sampling(max_new_tokens=16), stop_ids=[0])
    assert [[one.ids for one in each] for each in found] == [[one.ids for one in each] for each in expected]
