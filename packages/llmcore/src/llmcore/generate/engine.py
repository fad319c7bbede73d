"""The generation engine: `generate` for many sequences at once, `stream` for one, token by token.

One engine serves the commands, evaluation and reinforcement learning. A sequence is a function of the model, its
prompt, its seed and the settings: the batch it is in changes no more than rounding does.
"""

from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from torch import nn

from llmcore.errors import ConfigError, DataError
from llmcore.generate.decoding import Decoding
from llmcore.generate.noise import sequence_seeds
from llmcore.generate.sampling import Sampling
from llmcore.model.linear import held_weights
from llmcore.model.step import Step
from llmcore.model.transformer import Transformer
from llmcore.tokenizer import Tokenizer

MAX_ROWS = 256
"""Sequences that are decoded together; more only cost memory."""


class Completion(NamedTuple):
    """One continuation of a prompt."""

    ids: list[int]
    """The new tokens, with the stop token if one was chosen."""
    logprobs: list[float]
    """Of each token under the distribution it was sampled from, as `token_logprobs(..., sampling=)` scores it.

    That is after temperature, top-k, top-p and min-p; after penalties too, which nothing else can score. Greedy: at 1.
    """
    stopped: bool
    """Whether it ended by itself; False: cut at max_new_tokens or at the context's end."""


def generate(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    stop_ids: Collection[int],
    num_samples: int = 1,
    seeds: Sequence[int] | None = None,
    tokenizer: Tokenizer | None = None,
    max_rows: int = MAX_ROWS,
    compiled: bool = False,
) -> list[list[Completion]]:
    """Continue each prompt `num_samples` times: for each prompt a list of completions.

    `seeds` gives each sequence its own (prompt by prompt, sample by sample); else they follow from the settings' seed.
    A tokenizer is needed for stop strings only. A prompt that fills the context gets empty completions, and sequences
    end with the context, so that they can be scored. `compiled` takes each step through torch.compile: it pays for
    many tokens of one shape of model and batch, after what the first takes to compile (`docs/performance.md`).
    """
    check_prompts(model, prompts)
    check_stop_strings(sampling, tokenizer)
    if seeds is None:
        seeds = sequence_seeds(sampling.seed, range(len(prompts) * num_samples))
    assert len(seeds) == len(prompts) * num_samples, f"{len(seeds)} seeds, {len(prompts)} × {num_samples} sequences"
    found: list[list[Completion]] = [[Completion([], [], False)] * num_samples for _ in prompts]
    with evaluating(model), held_weights(model, model.activation_dtype):
        step = Step(model, compiled=compiled)
        for group in groups(model, prompts, rows=max_rows, num_samples=num_samples):
            decoding = Decoding(
                step,
                [prompts[index] for index in group],
                sampling,
                seeds=[seeds[index * num_samples + sample] for index in group for sample in range(num_samples)],
                stop_ids=stop_ids,
                tokenizer=tokenizer,
            )
            while not decoding.done:
                decoding.step()
            sequences = completions(decoding)
            for place, index in enumerate(group):
                found[index] = sequences[place * num_samples : (place + 1) * num_samples]
    return found


def stream(
    model: Transformer,
    prompt: Sequence[int],
    sampling: Sampling,
    *,
    stop_ids: Collection[int],
    tokenizer: Tokenizer | None = None,
) -> Generator[int, None, None]:
    """The new tokens of one prompt as they are chosen, the stop token included; `close` frees everything.

    Between two tokens the model is as it was: it may be used, even trained, while a stream waits. The sequence is
    the first that `generate` gives. Where a window bounds what the model sees (`ModelConfig.endless`), prompt and
    stream may be longer than the context, without end, in memory that does not grow.
    """
    check_prompts(model, [prompt], endless=model.config.endless)
    check_stop_strings(sampling, tokenizer)
    return stream_tokens(model, prompt, sampling, stop_ids=stop_ids, tokenizer=tokenizer)


def stream_tokens(
    model: Transformer,
    prompt: Sequence[int],
    sampling: Sampling,
    *,
    stop_ids: Collection[int],
    tokenizer: Tokenizer | None,
) -> Generator[int, None, None]:
    if len(prompt) == model.config.context and not model.config.endless:
        return
    seeds = sequence_seeds(sampling.seed, range(1))
    with evaluating(model), held_weights(model, model.activation_dtype):
        decoding = Decoding(
            Step(model), [prompt], sampling, seeds=seeds, stop_ids=stop_ids, tokenizer=tokenizer, streaming=True
        )
    while not decoding.done:
        with evaluating(model):
            decoding.step()
        yield int(decoding.last[0])


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """No dropout while inside; each module's mode is as it was afterwards."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def check_prompts(model: Transformer, prompts: Sequence[Sequence[int]], *, endless: bool = False) -> None:
    """Refuse what the model cannot continue."""
    if model.config.head != "lm":
        raise ConfigError(f"a model with head {model.config.head!r} gives no next token", hint="generate with a policy")
    if not model.config.attention.sight().causal:
        raise ConfigError(
            "a model whose attention is not causal (model.attention.causal=false) gives no next token",
            hint="generate with a causal model; this one is an encoder",
        )
    vocab_size, context = model.head_weight().shape[0], model.config.context
    for prompt in prompts:
        if len(prompt) > context and not endless:
            raise DataError(
                f"the prompt has {len(prompt)} tokens, but the model's context has {context}",
                hint="shorten the prompt, or train a model with a longer context (model.context)",
            )
        if len(prompt) == 0:
            raise DataError("the prompt is empty: it has no token to continue", hint="begin it with the bos token")
        if not 0 <= min(prompt) <= max(prompt) < vocab_size:
            wrong = next(token for token in prompt if not 0 <= token < vocab_size)
            raise DataError(
                f"token id {wrong!r} is not below the model's vocabulary of {vocab_size}",
                hint="encode the prompt with the tokenizer of this model",
            )


def check_stop_strings(sampling: Sampling, tokenizer: Tokenizer | None) -> None:
    if sampling.stop and tokenizer is None:
        raise ConfigError(f"stop strings {list(sampling.stop)!r} need a tokenizer", hint="pass tokenizer=")


def groups(model: Transformer, prompts: Sequence[Sequence[int]], *, rows: int, num_samples: int) -> Iterator[list[int]]:
    """Numbers of prompts that are decoded together, of similar lengths; those without room for a token are left out."""
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    order = [index for index in order if len(prompts[index]) < model.config.context]
    size = max(1, rows // num_samples)
    return (order[start : start + size] for start in range(0, len(order), size))


def completions(decoding: Decoding) -> list[Completion]:
    """What each row became, moved from the device at once."""
    count = decoding.count
    tokens, logprobs = decoding.tokens[:count], decoding.logprobs[:count]
    hits = decoding.is_stop[tokens]
    ends = (hits.int().argmax(0) + 1).where(hits.any(0), count + 1).tolist()
    found = []
    for row, (end, ids, chances) in enumerate(zip(ends, tokens.T.tolist(), logprobs.T.tolist(), strict=True)):
        end = min(end, decoding.string_ends.get(row, count + 1))
        length = min(end, decoding.limits[row])
        found.append(Completion(ids[:length], chances[:length], end <= decoding.limits[row]))
    return found
