"""The model's head with the loss behind it, whose logits are never all held at once: chunk by chunk, block by block."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from llmcore.errors import ConfigError
from llmcore.generate.sampling import Sampling, truncate
from llmcore.model.linear import widen

# Logits of one chunk of tokens, in float32. Larger chunks only cost memory; much smaller ones make the products
# with the head's weight inefficient.
CHUNK_BYTES = 64 * 2**20
# Logits worked on at a time, in float32: they stay in a processor's cache from the first pass over them to the last.
BLOCK_BYTES = 2 * 2**20


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    *,
    targets: Tensor,
    rows: Tensor | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """(N, D), (V, D), targets (M,) -> summed loss, the cross-entropy in it, and how many targets had the best logit.

    `rows` (M,) says which of the N hidden states the targets belong to, each at most once; none: all.
    The gradients are formed in the forward, while a chunk's logits are there. With the logits s of one token and
    Z = Σ exp s, its loss is log Z - (1 - ε) s_target - ε · mean(s) + ζ · log² Z: label smoothing ε (arXiv:1512.00567,
    section 7) spreads a share of the target over all tokens, the z-loss ζ (arXiv:2204.02311, section 5) keeps log Z
    near 0.
    """
    total, nll, right = ChunkedCrossEntropy.apply(
        hidden, weight, targets, rows, Extras(label_smoothing, z_loss), torch.is_grad_enabled()
    )
    return total, nll, right


def linear_logprobs(
    hidden: Tensor,
    weight: Tensor,
    *,
    targets: Tensor,
    temperature: float = 1.0,
    sampling: Sampling | None = None,
    entropy: bool = False,
    entropy_gradient: bool = False,
) -> tuple[Tensor, Tensor]:
    """(N, D), (V, D), (N,) -> (N,) log-probabilities and (N,) entropies, which are 0 unless asked for.

    `sampling` stands for its own temperature and truncation; see `token_logprobs`. The backward computes each chunk's
    logits again: what it multiplies with is not known before. Entropies have a gradient only with `entropy_gradient`,
    for which the backward goes over those logits twice more.
    """
    assert sampling is None or temperature == 1.0, "the sampling has a temperature of its own"
    sampling = sampling or Sampling(temperature=temperature)
    if sampling.penalises:
        raise ConfigError(
            "penalties depend on what was generated before: tokens cannot be scored under them",
            hint="leave repetition_penalty, presence_penalty and frequency_penalty at their defaults",
        )
    logprobs, entropies = ChunkedLogprobs.apply(hidden, weight, targets, sampling, entropy, entropy_gradient)
    return logprobs, entropies


class Extras(NamedTuple):
    """What is added to the plain cross-entropy."""

    label_smoothing: float = 0.0
    z_loss: float = 0.0


class ChunkedCrossEntropy(torch.autograd.Function):
    """See `linear_cross_entropy`."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, rows: Tensor | None, extras: Extras, grad: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        want_hidden, want_weight = (need and grad for need in ctx.needs_input_grad[:2])
        head = weight.to(hidden.dtype)
        total, nll = widen(hidden).new_zeros(()), widen(hidden).new_zeros(())
        right = torch.zeros((), dtype=torch.long, device=hidden.device)
        grad_hidden = torch.zeros_like(hidden) if want_hidden else None
        grad_weight = torch.zeros_like(weight) if want_weight else None
        for chunk in chunks(len(targets), len(weight)):
            picked = hidden[chunk] if rows is None else hidden[rows[chunk]]
            logits = F.linear(picked, head)
            sums = cross_entropy(logits, targets[chunk], extras, grad=want_hidden or want_weight)
            total += sums.total
            nll += sums.nll
            right += sums.right
            if grad_hidden is not None:
                grad_hidden[chunk if rows is None else rows[chunk]] = logits @ head
            if grad_weight is not None:
                grad_weight += logits.T @ picked
            del logits  # before the next chunk has its own
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.mark_non_differentiable(nll, right)
        return total, nll, right

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _nll: Tensor, _right: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return (
            None if grad_hidden is None else grad_hidden * upstream.to(grad_hidden.dtype),
            None if grad_weight is None else grad_weight * upstream.to(grad_weight.dtype),
            None,
            None,
            None,
            None,
        )


class ChunkedLogprobs(torch.autograd.Function):
    """See `linear_logprobs`."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        sampling: Sampling,
        entropy: bool,
        entropy_gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        head = weight.to(hidden.dtype)
        logprobs = widen(hidden).new_zeros(len(targets))
        entropies = torch.zeros_like(logprobs)
        for chunk in chunks(len(targets), len(weight)):
            logits = sampled_from(F.linear(hidden[chunk], head), sampling)
            normaliser = logits.logsumexp(-1)
            logprobs[chunk] = logits.gather(-1, targets[chunk, None]).squeeze(-1) - normaliser
            if entropy or entropy_gradient:
                shares = (logits - normaliser[:, None]).exp_()
                left_out_is_nothing = logits.clamp_(min=torch.finfo(logits.dtype).min)  # 0 times -inf would be NaN
                entropies[chunk] = normaliser - (shares * left_out_is_nothing).sum(-1)
        ctx.save_for_backward(hidden, weight, targets, entropies if entropy_gradient else None)
        ctx.sampling = sampling
        if not entropy_gradient:
            ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, of_entropies: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, entropies = ctx.saved_tensors
        temperature = ctx.sampling.temperature or 1.0
        head = weight.to(hidden.dtype)
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        for chunk in chunks(len(targets), len(weight)):
            logits = sampled_from(F.linear(hidden[chunk], head), ctx.sampling)
            slope = torch.softmax(logits, -1).neg_()
            slope.scatter_add_(-1, targets[chunk, None], torch.ones_like(slope[:, :1]))
            slope = slope.mul_(upstream[chunk, None] / temperature)
            if entropies is not None:
                slope += entropy_slope(logits, entropies[chunk]) * (of_entropies[chunk, None] / temperature)
            slope = slope.to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden[chunk] = slope @ head
            if grad_weight is not None:
                grad_weight += slope.T @ hidden[chunk]
        return grad_hidden, grad_weight, None, None, None, None


def sampled_from(logits: Tensor, sampling: Sampling) -> Tensor:
    """(M, V) -> (M, V) float32, what `steer` makes of logits that nothing penalises; they may be overwritten."""
    logits = widen(logits)
    return logits if sampling.greedy else truncate(logits.mul_(1.0 / sampling.temperature), sampling)


def entropy_slope(logits: Tensor, entropies: Tensor) -> Tensor:
    """(M, V), (M,) -> (M, V), the gradient of each entropy H with respect to its logits: -p · (log p + H)."""
    logprobs = torch.log_softmax(logits, -1)
    shares = logprobs.exp()
    left_out_is_nothing = logprobs.clamp_(min=torch.finfo(logits.dtype).min)  # 0 times -inf would be NaN
    return left_out_is_nothing.add_(entropies[:, None]).mul_(shares).neg_()


class ChunkSums(NamedTuple):
    """Sums over the targets of one chunk."""

    total: Tensor
    nll: Tensor
    right: Tensor


def cross_entropy(logits: Tensor, targets: Tensor, extras: Extras, *, grad: bool) -> ChunkSums:
    """(M, V), (M,) -> the sums; the logits are overwritten, with the gradient of `total` where it is wanted."""
    sums = []
    for block in chunks(len(targets), logits.shape[1], BLOCK_BYTES):
        wide = widen(logits[block])
        sums.append(cross_entropy_block(wide, targets[block], extras, grad=grad))
        if grad and wide.dtype != logits.dtype:
            logits[block] = wide
    return ChunkSums(*(torch.stack(parts).sum(0) for parts in zip(*sums, strict=True)))


def cross_entropy_block(logits: Tensor, targets: Tensor, extras: Extras, *, grad: bool) -> ChunkSums:
    """The same of float32 logits. One exponential serves the sum and the gradient.

    A target that ties with the best logit counts as right.
    """
    smoothing, z_loss = extras
    best = logits.amax(-1, keepdim=True)
    wanted = logits.gather(-1, targets[:, None])
    right = (wanted >= best).sum()
    mean = logits.mean(-1, keepdim=True) if smoothing else wanted
    shares = logits.sub_(best).exp_()
    sums = shares.sum(-1, keepdim=True)
    log_sums = sums.log() + best
    total = nll = (log_sums - wanted).sum()
    if smoothing:
        total = nll + smoothing * (wanted - mean).sum()
    if z_loss:
        total = total + z_loss * log_sums.square().sum()
    if grad:
        shares.mul_((1 + 2 * z_loss * log_sums) / sums) if z_loss else shares.div_(sums)
        if smoothing:
            shares.sub_(smoothing / shares.shape[-1])
        shares.scatter_add_(-1, targets[:, None], torch.full_like(sums, smoothing - 1.0))
    return ChunkSums(total, nll, right)


def chunks(count: int, vocabulary: int, limit: int | None = None) -> Iterator[slice]:
    """Slices of at most so many bytes of float32 logits."""
    size = max(1, (limit or CHUNK_BYTES) // (4 * vocabulary))
    return (slice(start, min(start + size, count)) for start in range(0, count, size))
