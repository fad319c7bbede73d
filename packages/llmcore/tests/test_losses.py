"""Chunked losses against the plain ones, gradients included."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import llmcore.head
from llmcore.errors import ConfigError
from llmcore.generate.sampling import Sampling, truncate
from llmcore.head import linear_cross_entropy, linear_logprobs
from llmcore.losses import Batch, before_last, next_token_loss, token_logprobs
from llmcore.model.config import ModelConfig
from llmcore.model.transformer import Transformer
from llmcore.objective import NextToken


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three tokens to a chunk and two to a block, so that chunks, blocks and their ends are met."""
    torch.manual_seed(0)
    monkeypatch.setattr(llmcore.head, "CHUNK_BYTES", 4 * 50 * 3)
    monkeypatch.setattr(llmcore.head, "BLOCK_BYTES", 4 * 50 * 2)


@pytest.mark.parametrize("masked", [False, True])
def test_next_token_loss_equals_plain_cross_entropy(masked: bool) -> None:
    model, batch = tiny_model(), tiny_batch(masked=masked)
    loss = next_token_loss(model, batch)
    (loss.total * 0.3).backward()
    gradients = take_gradients(model)

    scores = model(batch.ids)[:, :-1].flatten(0, 1)
    targets = batch.ids[:, 1:].flatten().masked_fill(~batch.mask[:, 1:].flatten(), -100)
    expected = F.cross_entropy(scores, targets, reduction="sum")
    (expected * 0.3).backward()
    torch.testing.assert_close(loss.total, expected)
    assert loss.count == (targets >= 0).sum() == batch.targets
    right = (scores.argmax(-1) == targets).sum()
    assert loss.metrics["accuracy"] == (right, loss.count)
    for name, gradient in take_gradients(model).items():
        torch.testing.assert_close(gradients[name], gradient, atol=1e-5, rtol=1e-4)


def test_masked_tokens_are_no_targets_but_are_read() -> None:
    model, batch = tiny_model(), tiny_batch(masked=False)
    mask = torch.zeros_like(batch.mask)
    mask[:, 7] = True
    loss = next_token_loss(model, Batch(batch.ids, mask))
    expected = -torch.log_softmax(model(batch.ids)[:, 6], -1).gather(1, batch.ids[:, 7:8]).sum()
    torch.testing.assert_close(loss.total, expected)
    other = batch.ids.clone()
    other[:, 3] = (other[:, 3] + 1) % 50
    assert next_token_loss(model, Batch(other, mask)).total != loss.total


def test_a_batch_without_targets_gives_zero_on_the_graph() -> None:
    model, batch = tiny_model(), tiny_batch(masked=False)
    loss = next_token_loss(model, Batch(batch.ids, torch.zeros_like(batch.mask)))
    assert loss.total.item() == 0 and loss.count == 0
    loss.total.backward()
    assert all(not gradient.any() for gradient in take_gradients(model).values())


def test_without_gradients_the_loss_is_the_same() -> None:
    model, batch = tiny_model(), tiny_batch(masked=True)
    expected = next_token_loss(model, batch)
    with torch.no_grad():
        loss = next_token_loss(model, batch)
    assert loss.total == expected.total and not loss.total.requires_grad


def test_a_frozen_head_gets_no_gradient() -> None:
    hidden, weight, targets = (x.detach() for x in double_case())
    hidden.requires_grad_()
    linear_cross_entropy(hidden, weight, targets=targets)[0].backward()
    assert hidden.grad is not None and weight.grad is None
    hidden = hidden.detach()
    weight.requires_grad_()
    linear_cross_entropy(hidden, weight, targets=targets)[0].backward()
    assert hidden.grad is None and weight.grad is not None


def test_packed_documents_cost_what_they_cost_alone() -> None:
    model = tiny_model()
    pieces = [torch.randint(0, 50, (1, n)) for n in (4, 6, 5)]
    masks = [F.pad(torch.ones(1, piece.shape[1] - 1, dtype=torch.bool), (1, 0)) for piece in pieces]
    documents = torch.cat([torch.full_like(piece, i) for i, piece in enumerate(pieces)], 1)
    packed = next_token_loss(model, Batch(torch.cat(pieces, 1), torch.cat(masks, 1), documents))
    alone = [next_token_loss(model, Batch(piece, mask)) for piece, mask in zip(pieces, masks, strict=True)]
    torch.testing.assert_close(packed.total, sum(loss.total for loss in alone), atol=1e-4, rtol=1e-6)
    assert packed.count == sum(loss.count for loss in alone) == 12


def test_cross_entropy_gradients() -> None:
    hidden, weight, targets = double_case()
    rows = torch.tensor([4, 0, 5, 2])

    def run(hidden: Tensor, weight: Tensor) -> Tensor:
        return linear_cross_entropy(hidden, weight, targets=targets[:4], rows=rows)[0]

    assert torch.autograd.gradcheck(run, (hidden, weight))


@pytest.mark.parametrize(("label_smoothing", "z_loss"), [(0.1, 0.0), (0.0, 0.01), (0.2, 0.03)])
def test_smoothing_and_z_loss_and_their_gradients_are_autograds(label_smoothing: float, z_loss: float) -> None:
    hidden, weight, targets = double_case()
    extras = {"label_smoothing": label_smoothing, "z_loss": z_loss}

    def run(hidden: Tensor, weight: Tensor) -> Tensor:
        return linear_cross_entropy(hidden, weight, targets=targets, **extras)[0]

    scores = hidden @ weight.T
    plain = F.cross_entropy(scores, targets, reduction="sum", label_smoothing=label_smoothing)
    expected = plain + z_loss * scores.logsumexp(-1).square().sum()
    total, nll, _ = linear_cross_entropy(hidden, weight, targets=targets, **extras)
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(nll, F.cross_entropy(scores, targets, reduction="sum"))
    wanted = torch.autograd.grad(expected, (hidden, weight))
    for ours, theirs in zip(torch.autograd.grad(total, (hidden, weight)), wanted, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert torch.autograd.gradcheck(run, (hidden, weight))


def test_a_smoothed_loss_tells_the_plain_one_beside_it() -> None:
    model, batch = tiny_model(), tiny_batch(masked=True)
    plain = next_token_loss(model, batch)
    smooth = NextToken(label_smoothing=0.1).build()(model, batch)
    assert smooth.metrics["nll"] == (pytest.approx(plain.total.item()), plain.count)
    assert smooth.total != plain.total and smooth.metrics["accuracy"] == plain.metrics["accuracy"]
    assert "nll" not in plain.metrics
    again = NextToken().build()(model, batch)
    assert torch.equal(again.total, plain.total) and again.metrics == plain.metrics


def test_logprob_gradients() -> None:
    hidden, weight, targets = double_case()

    def run(hidden: Tensor, weight: Tensor) -> Tensor:
        return linear_logprobs(hidden, weight, targets=targets, temperature=0.7)[0]

    assert torch.autograd.gradcheck(run, (hidden, weight))


@pytest.mark.parametrize("cut", [{}, {"top_k": 3}], ids=str)
def test_entropy_has_the_gradient_of_the_sum_over_the_vocabulary(cut: dict[str, int]) -> None:
    """In float64 against autograd, tokens in chunks; log-probabilities keep theirs beside it."""
    hidden, weight, targets = double_case()
    sampling = Sampling.model_validate({"temperature": 0.7, **cut})
    upstream = torch.randn(2, len(targets), dtype=torch.float64)

    def both(gradient: bool) -> tuple[Tensor, Tensor]:
        return linear_logprobs(
            hidden, weight, targets=targets, sampling=sampling, entropy=True, entropy_gradient=gradient
        )

    plain = torch.log_softmax(truncate(hidden @ weight.T / 0.7, sampling), -1)
    kept = plain > -torch.inf
    wanted_entropies = -torch.where(kept, plain.exp() * plain.masked_fill(~kept, 0.0), 0.0).sum(-1)
    chosen = plain.gather(-1, targets[:, None]).squeeze(-1)
    weights = torch.where(chosen.isfinite(), upstream[0], 0.0)
    objective = torch.where(chosen.isfinite(), chosen, 0.0) @ weights + wanted_entropies @ upstream[1]
    logprobs, entropies = both(True)
    torch.testing.assert_close(entropies, wanted_entropies)
    found = torch.autograd.grad([logprobs, entropies], (hidden, weight), [weights, upstream[1]])
    for ours, theirs in zip(found, torch.autograd.grad(objective, (hidden, weight)), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert not both(False)[1].requires_grad and torch.equal(both(False)[1], entropies)
    if not cut:  # the ends of a truncation are jumps
        assert torch.autograd.gradcheck(
            lambda h, w: linear_logprobs(h, w, targets=targets, temperature=0.7, entropy_gradient=True),
            (hidden, weight),
        )


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_token_logprobs_equal_log_softmax(temperature: float) -> None:
    model, ids = tiny_model(), tiny_batch(masked=False).ids
    upstream = torch.randn(3, 10)
    logprobs = token_logprobs(model, ids, temperature=temperature)
    entropies = entropies_of(model, ids, temperature=temperature)
    assert logprobs.shape == entropies.shape == (3, 10) and not entropies.requires_grad
    logprobs.backward(upstream)
    gradients = take_gradients(model)

    plain = torch.log_softmax(model(ids)[:, :-1] / temperature, -1)
    expected = plain.gather(-1, ids[:, 1:, None]).squeeze(-1)
    expected.backward(upstream)
    torch.testing.assert_close(logprobs, expected)
    torch.testing.assert_close(entropies, -(plain.exp() * plain).sum(-1))
    for name, gradient in take_gradients(model).items():
        torch.testing.assert_close(gradients[name], gradient, atol=1e-5, rtol=1e-4)
    assert torch.equal(token_logprobs(model, ids, temperature=temperature), logprobs)


@pytest.mark.parametrize(
    "cut", [{"top_k": 20}, {"top_p": 0.7}, {"min_p": 0.3}, {"temperature": 0.6, "top_k": 8, "top_p": 0.9}], ids=str
)
def test_token_logprobs_of_a_truncated_distribution(cut: dict[str, float]) -> None:
    """Equal to log_softmax of the truncated scores, with -inf for what is left out; gradients and entropies too."""
    model, ids = tiny_model(), tiny_batch(masked=False).ids
    sampling = Sampling.model_validate(cut)
    logprobs, entropies = token_logprobs(model, ids, sampling=sampling), entropies_of(model, ids, sampling=sampling)
    kept = logprobs.isfinite()
    assert 0 < kept.sum() < kept.numel()
    torch.where(kept, logprobs, 0.0).sum().backward()
    gradients = take_gradients(model)

    plain = torch.log_softmax(truncate(model(ids)[:, :-1].flatten(0, 1) / sampling.temperature, sampling), -1)
    expected = plain.view(3, 10, -1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    expected[kept].sum().backward()
    torch.testing.assert_close(logprobs, expected)
    torch.testing.assert_close(entropies.flatten(), torch.special.entr(plain.exp()).sum(-1))
    for name, gradient in take_gradients(model).items():
        torch.testing.assert_close(gradients[name], gradient, atol=1e-5, rtol=1e-4)


def test_a_greedy_choice_is_scored_at_temperature_one_and_a_penalised_one_not_at_all() -> None:
    model, ids = tiny_model(), tiny_batch(masked=False).ids
    greedy = token_logprobs(model, ids, sampling=Sampling(temperature=0, top_k=1))
    assert torch.equal(greedy, token_logprobs(model, ids))
    with pytest.raises(ConfigError, match="penalties depend"):
        token_logprobs(model, ids, sampling=Sampling(presence_penalty=0.5))


def test_token_logprobs_sum_to_the_next_token_loss() -> None:
    model, batch = tiny_model(), tiny_batch(masked=False)
    torch.testing.assert_close(-token_logprobs(model, batch.ids).sum(), next_token_loss(model, batch).total)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_activations_keep_a_float32_loss(dtype: torch.dtype) -> None:
    """The loss is that of the rounded scores, exactly; it isn't rounded itself."""
    hidden = torch.randn(200, 16).to(dtype).requires_grad_()
    weight, targets = torch.randn(50, 16).requires_grad_(), torch.randint(0, 50, (200,))
    total, _, _ = linear_cross_entropy(hidden, weight, targets=targets)
    scores = F.linear(hidden, weight.to(dtype)).float()
    expected = F.cross_entropy(scores, targets, reduction="sum")
    assert total.dtype == torch.float32
    torch.testing.assert_close(total, expected, rtol=1e-6, atol=1e-3)
    total.backward()
    assert hidden.grad is not None and weight.grad is not None
    got = hidden.grad.float(), weight.grad.clone()
    assert weight.grad.dtype == torch.float32
    hidden.grad = weight.grad = None
    expected.backward()
    assert hidden.grad is not None and weight.grad is not None
    for ours, plain in zip(got, (hidden.grad.float(), weight.grad), strict=True):
        assert (ours - plain).norm() / plain.norm() < 0.02


def test_extreme_scores_stay_finite() -> None:
    hidden = torch.tensor([[1e4], [-1e4]], requires_grad=True)
    weight, targets = torch.tensor([[1.0], [-1.0]]), torch.tensor([0, 0])
    total, _, right = linear_cross_entropy(hidden, weight, targets=targets)
    assert total.item() == pytest.approx(2e4) and right == 1
    total.backward()
    assert hidden.grad is not None
    torch.testing.assert_close(hidden.grad, torch.tensor([[0.0], [-2.0]]))


def test_losses_can_be_differentiated_twice_over_the_same_graph() -> None:
    hidden, weight, targets = double_case()
    total, _, _ = linear_cross_entropy(hidden, weight, targets=targets)
    (first,) = torch.autograd.grad(total, hidden, retain_graph=True)
    (second,) = torch.autograd.grad(total * 2, hidden)
    torch.testing.assert_close(second, 2 * first)


def test_a_batch_moves_whole() -> None:
    batch = tiny_batch(masked=True)
    moved = Batch(batch.ids, batch.mask, documents=torch.zeros_like(batch.ids)).to("meta")
    assert moved.documents is not None
    assert {moved.ids.device.type, moved.mask.device.type, moved.documents.device.type} == {"meta"}
    assert batch.to("cpu").documents is None and batch.rows == 3


def double_case() -> tuple[Tensor, Tensor, Tensor]:
    """Hidden (6, 4), weight (60, 4), targets (6,)."""
    hidden = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(60, 4, dtype=torch.float64, requires_grad=True)
    return hidden, weight, torch.randint(0, 60, (6,))


def tiny_model() -> Transformer:
    return ModelConfig(vocab_size=50, width=32, depth=2, context=16, initial_std=0.2).build(seed=1)


def tiny_batch(*, masked: bool) -> Batch:
    ids = torch.randint(0, 50, (3, 11))
    mask = torch.rand(3, 11) < 0.5 if masked else torch.ones(3, 11, dtype=torch.bool)
    mask[:, 0] = False
    return Batch(ids, mask)


def take_gradients(model: Transformer) -> dict[str, Tensor]:
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return gradients


def entropies_of(model: Transformer, ids: Tensor, **settings: Any) -> Tensor:
    """(B, T) -> (B, T-1)."""
    hidden = before_last(model.hidden(ids))
    _, entropies = linear_logprobs(hidden, model.head_weight(), targets=ids[:, 1:].flatten(), entropy=True, **settings)
    return entropies.view(ids.shape[0], -1)
