"""Backends one by one: a calculation by hand, and the packages that people install themselves."""

import importlib
import math
import sys
from importlib.util import find_spec
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llmcore.errors import ConfigError, ExtensionError
from llmcore.model.attention import GroupedQuery
from llmcore.model.backends.contract import Backend, Scores
from llmcore.model.backends.flash import Flash, document_bounds, flash, flash_documents, reach
from llmcore.model.backends.flex import Flex
from llmcore.model.backends.manual import Manual
from llmcore.model.backends.matmul import Matmul
from llmcore.model.backends.sdpa import SDPA
from llmcore.model.backends.xformers import XFormers, aligned_bias
from llmcore.model.config import ModelConfig
from llmcore.model.masks import Sight, build_mask


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("backend", [Manual(), Matmul(), SDPA()], ids=lambda backend: backend.kind)
def test_three_tokens_by_hand(backend: Backend) -> None:
    """The calculation in the docstring of `manual`."""
    queries = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    keys = torch.tensor([[0.0, 0.0], [0.0, math.log(3.0)], [math.log(2.0), 0.0]])
    values = torch.tensor([[4.0, 0.0], [0.0, 8.0], [12.0, 4.0]])
    mask = build_mask(Sight(), queries=3, keys=3, device=queries.device)
    mixed, weights = backend.attend(
        queries[None, None], keys[None, None], values[None, None], mask=mask, scores=Scores(1.0)
    )
    torch.testing.assert_close(mixed[0], torch.tensor([[4.0, 0.0], [1.0, 6.0], [14 / 3, 16 / 3]]))
    if weights is not None:
        expected = torch.tensor([[1.0, 0.0, 0.0], [1 / 4, 3 / 4, 0.0], [1 / 6, 3 / 6, 2 / 6]])
        torch.testing.assert_close(weights[0, 0], expected)


def test_two_heads_are_one_head_twice_side_by_side() -> None:
    queries, keys, values = (torch.randn(1, 2, 5, 3) for _ in range(3))
    mask = build_mask(Sight(), queries=5, keys=5, device=queries.device)
    both, _ = Manual().attend(queries, keys, values, mask=mask, scores=Scores(0.5))
    heads = [
        Manual().attend(queries[:, [h]], keys[:, [h]], values[:, [h]], mask=mask, scores=Scores(0.5))[0] for h in (0, 1)
    ]
    torch.testing.assert_close(both, torch.cat(heads, -1))


def test_flex_has_no_backward_on_a_cpu_and_says_so() -> None:
    model = ModelConfig.model_validate({"vocab_size": 9, "width": 16, "attention": {"backend": "flex"}}).build(seed=0)
    with pytest.raises(ConfigError, match="no backward on a CPU"):
        model(torch.tensor([[1, 2, 3]]))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("sight", [Sight(), Sight(window=20, sinks=4), Sight(causal=False)], ids=str)
def test_flex_on_a_gpu_with_gradients(sight: Sight) -> None:
    heads = [torch.randn(2, count, 100, 32, device="cuda", requires_grad=True) for count in (4, 2, 2)]
    found = []
    for backend in (Flex(), Manual()):
        mask = build_mask(sight, queries=100, keys=100, device=heads[0].device)
        mixed, _ = backend.attend(*heads, mask=mask, scores=Scores(0.2, soft_cap=3.0))
        found.append([mixed, *torch.autograd.grad(mixed.square().sum(), heads)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize(("kind", "module", "package"), [("flash", "flash_attn", "flash-attn"), ("xformers",) * 3])
def test_a_package_that_is_not_installed_is_named(kind: str, module: str, package: str) -> None:
    if find_spec(module) is not None:
        pytest.skip(f"{module} is installed")
    config = ModelConfig.model_validate({"vocab_size": 9, "attention": {"backend": kind}})
    with pytest.raises(ExtensionError, match=rf"needs {package}, which cannot be imported"):
        config.build()


def test_flash_attention_on_a_cpu_is_refused() -> None:
    queries = torch.randn(1, 2, 3, 4)
    mask = build_mask(Sight(), queries=3, keys=3, device=queries.device)
    with pytest.raises(ConfigError, match=r"bfloat16 and float16 on a GPU, not torch.float32 on cpu"):
        Flash().attend(queries, queries, queries, mask=mask, scores=Scores(1.0))


@pytest.mark.gpu
@pytest.mark.parametrize("backend", [Flash(), XFormers()], ids=lambda backend: backend.kind)
@pytest.mark.parametrize("sight", [Sight(), Sight(window=20), Sight(causal=False)], ids=str)
@pytest.mark.parametrize("packed", [False, True])
def test_installed_packages_agree(backend: Backend, sight: Sight, packed: bool) -> None:
    if find_spec("flash_attn" if backend.kind == "flash" else "xformers") is None or not torch.cuda.is_available():
        pytest.skip(f"{backend.kind} is not installed, or there is no GPU")
    heads = [torch.randn(2, count, 50, 32, device="cuda", dtype=torch.bfloat16) for count in (4, 2, 2)]
    documents = (torch.arange(50, device="cuda") // 17).expand(2, -1) if packed else None
    mask = build_mask(sight, queries=50, keys=50, device=heads[0].device, documents=documents)
    found, _ = backend.attend(*heads, mask=mask, scores=Scores(0.2))
    expected, _ = Manual().attend(*heads, mask=mask, scores=Scores(0.2))
    torch.testing.assert_close(found, expected, atol=2e-2, rtol=2e-2)


def reference(queries: Tensor, keys: Tensor, values: Tensor, *, allowed: Tensor, scale: float) -> Tensor:
    """(B, T, H, C), (B, S, Hkv, C) and (T, S) -> (B, T, H, C), by PyTorch."""
    queries, keys, values = (x.transpose(1, 2) for x in (queries, keys, values))
    mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=allowed, scale=scale, enable_gqa=True)
    return mixed.transpose(1, 2)


def flash_attn_func(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float, softmax_scale: float, causal: bool, window_size: tuple[int, int]
) -> Tensor:
    """What flash-attn documents: the last query stands at the last key; -1 is no bound."""
    gap = torch.arange(k.shape[1]) - torch.arange(k.shape[1] - q.shape[1], k.shape[1]).unsqueeze(1)  # key - query
    before, after = window_size
    allowed = (gap >= -before if before >= 0 else gap == gap) & (gap <= after if after >= 0 else gap == gap)
    return reference(q, k, v, allowed=allowed & (gap <= 0) if causal else allowed, scale=softmax_scale)


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float,
    softmax_scale: float,
    causal: bool,
    window_size: tuple[int, int],
) -> Tensor:
    """Several sequences (N, H, C) one after another, between the given bounds."""
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32 and max_seqlen_q == max_seqlen_k
    assert max_seqlen_q == cu_seqlens_q.diff().max()
    spans = zip(cu_seqlens_q[:-1].tolist(), cu_seqlens_q[1:].tolist(), strict=True)
    pieces = [
        flash_attn_func(q[None, a:b], k[None, a:b], v[None, a:b], dropout_p, softmax_scale, causal, window_size)
        for a, b in spans
    ]
    return torch.cat(pieces, 1)[0]


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("causal", [True, False])
def test_what_flash_attention_is_asked_means_the_mask(
    monkeypatch: pytest.MonkeyPatch, causal: bool, window: int | None
) -> None:
    """Of the documented interface, computed by PyTorch: its kernels need a GPU."""
    sight = Sight(causal=causal, window=window)
    package = ModuleType("flash_attn")
    vars(package).update(flash_attn_func=flash_attn_func, flash_attn_varlen_func=flash_attn_varlen_func)
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    queries, keys, values = (torch.randn(2, count, 7, 4) for count in (4, 2, 2))
    documents = torch.tensor([[0, 0, 0, 0, 1, 1, 2], [0, 1, 1, 1, 1, 1, 1]])
    for numbers in (None, documents):
        for tokens in (7,) if numbers is not None or not sight.causal else (7, 2, 1):
            mask = build_mask(sight, queries=tokens, keys=7, device=queries.device, documents=numbers)
            assert mask.distance is not None
            expected, _ = Manual().attend(queries[:, :, -tokens:], keys, values, mask=mask, scores=Scores(0.5))
            turned = [x.transpose(1, 2) for x in (queries[:, :, -tokens:], keys, values)]
            if numbers is None:
                found = flash(turned, distance=mask.distance, scores=Scores(0.5)).flatten(2)
            else:
                found = flash_documents(turned, numbers, distance=mask.distance, scores=Scores(0.5))
            torch.testing.assert_close(found, expected)


def test_masks_that_are_more_than_distances_are_not_given_to_flash_attention() -> None:
    attended = torch.tensor([[False, True, True, True]])
    for sight, padded in ((Sight(), attended), (Sight(window=2, sinks=1), None)):
        assert build_mask(sight, queries=4, keys=4, device=attended.device, attended=padded).distance is None


def test_what_xformers_is_asked_means_the_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the documented interface, computed by PyTorch."""

    class LowerTriangularMask:
        pass

    def memory_efficient_attention(
        q: Tensor, k: Tensor, v: Tensor, attn_bias: object, p: float, scale: float
    ) -> Tensor:
        assert q.shape[2] == k.shape[2] == v.shape[2], "its four-dimensional form has as many key heads as query heads"
        bias = (
            torch.ones(q.shape[1], k.shape[1]).tril().bool()
            if isinstance(attn_bias, LowerTriangularMask)
            else attn_bias
        )
        assert bias is None or isinstance(bias, Tensor)
        queries, keys, values = (x.transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias, scale=scale).transpose(1, 2)

    package = ModuleType("xformers.ops")
    vars(package).update(LowerTriangularMask=LowerTriangularMask, memory_efficient_attention=memory_efficient_attention)
    monkeypatch.setitem(sys.modules, "xformers", ModuleType("xformers"))
    monkeypatch.setitem(sys.modules, "xformers.ops", package)
    assert importlib.import_module("xformers.ops") is package
    queries, keys, values = (torch.randn(2, count, 7, 4) for count in (4, 2, 2))
    attended = torch.tensor([[True] * 7, [False] * 2 + [True] * 5])
    for sight in (Sight(), Sight(window=3, sinks=1), Sight(causal=False)):
        for padded in (None, attended):
            mask = build_mask(sight, queries=7, keys=7, device=queries.device, attended=padded)
            found, _ = XFormers().attend(queries, keys, values, mask=mask, scores=Scores(0.5))
            expected, _ = Manual().attend(queries, keys, values, mask=mask, scores=Scores(0.5))
            torch.testing.assert_close(found, expected)
    bias = aligned_bias(mask, queries, keys)
    assert bias is not None and bias.shape == (2, 4, 7, 7) and bias.stride(2) == 8


def test_documents_of_packed_rows_as_bounds() -> None:
    assert document_bounds(torch.tensor([[0, 0, 1], [1, 2, 2]])).tolist() == [0, 2, 3, 4, 6]
    assert (reach(Sight()), reach(Sight(window=3)), reach(Sight(causal=False, window=3))) == ((-1, -1), (2, 0), (2, 2))


def test_sdpa_can_be_asked_for() -> None:
    assert GroupedQuery.model_validate({"backend": "sdpa"}).backend == SDPA()
