"""Completions of prompts by the live policy, and their log-probabilities under any policy.

Rows are prompt and completion side by side, padded on the right. The mask says which tokens the policy sampled: it is
built from positions, and includes the stop token. Which prompts a rollout has is a function of (seed, number).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from llmcore.batching import pad_rows
from llmcore.chat import render_chat
from llmcore.errors import DataError
from llmcore.generate.engine import generate
from llmcore.generate.noise import sequence_seeds
from llmcore.generate.sampling import Sampling
from llmcore.model.adapters import adapters_off
from llmcore.model.transformer import Transformer
from llmcore.records import Prompt
from llmcore.tokenizer import Tokenizer
from llmcore.train.distributed import ALONE, Ranks
from llmrl.config import RolloutConfig
from llmrl.rewards.reward import Sample
from llmrl.states import sampled_logprobs

SCORING_ROWS = 128
"""Rows of one forward pass without gradients."""


class Rollout(NamedTuple):
    """Completions of some prompts; those of one prompt stand together."""

    ids: Tensor
    """(B, T) prompt and completion, padded on the right."""
    mask: Tensor
    """(B, T) bool: sampled by the policy, the stop token included."""
    truncated: Tensor
    """(B,) bool: cut at the longest length, without a stop token."""
    samples: list[Sample]
    """The same completions as rewards see them."""

    @property
    def lengths(self) -> Tensor:
        """(B,) tokens of each completion."""
        return self.mask.sum(1)


class Prompts:
    """Prompts rendered for generation; those too long for the context are dropped and counted."""

    def __init__(
        self, records: Sequence[Prompt], tokenizer: Tokenizer, *, longest: int, max_dropped: float = 0.0
    ) -> None:
        rendered = [render_chat(record.prompt, tokenizer, generation_prompt=True).ids for record in records]
        kept = [i for i, ids in enumerate(rendered) if len(ids) <= longest]
        dropped = len(records) - len(kept)
        if not kept or dropped > max_dropped * len(records):
            raise DataError(
                f"{dropped} of {len(records)} prompts have more than {longest} tokens (the longest "
                f"{max(map(len, rendered), default=0)}), which with the completion is more than the model's context",
                hint="shorten them, lower rollout.max_completion_length, or allow it with rollout.max_dropped=1",
            )
        self.records = [records[i] for i in kept]
        self.ids = [rendered[i] for i in kept]
        self.counts = {"prompts": len(kept), "dropped: too long": dropped}

    def draw(self, seed: int, number: int, count: int) -> list[int]:
        """The prompts of one rollout: epochs are permutations, and rollout `number` takes the next `count` of them."""
        total = len(self.records)
        drawn: list[int] = []
        place = number * count
        while len(drawn) < count:
            epoch, start = divmod(place, total)
            order = np.random.default_rng([seed, epoch]).permutation(total)
            piece = order[start : start + count - len(drawn)].tolist()
            drawn += piece
            place += len(piece)
        return drawn

    def draw_again(self, seed: int, number: int, attempt: int, count: int) -> list[int]:
        """Other prompts for attempt `attempt` of a rollout, a function of the three."""
        chosen = np.random.default_rng([seed, number, attempt]).integers(len(self.records), size=count)
        return [int(place) for place in chosen]


def sample_rollout(
    model: Transformer,
    prompts: Prompts,
    chosen: Sequence[int],
    tokenizer: Tokenizer,
    config: RolloutConfig,
    *,
    samples: int,
    seed: int,
    ranks: Ranks = ALONE,
) -> Rollout:
    """`samples` completions of each chosen prompt, rows in the order of the prompts, on the model's device.

    Each of the `ranks` samples those of its own prompts; all get the whole rollout.
    """
    sampling = Sampling(
        max_new_tokens=config.max_completion_length,
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        seed=seed,
    )
    return complete(model, prompts, chosen, tokenizer, sampling, samples=samples, ranks=ranks)


def complete(
    model: Transformer,
    prompts: Prompts,
    chosen: Sequence[int],
    tokenizer: Tokenizer,
    sampling: Sampling,
    *,
    samples: int = 1,
    ranks: Ranks = ALONE,
) -> Rollout:
    """Completions with any sampling: that of a rollout, or greedy ones."""
    mine = ranks.share(len(chosen))
    own = generate(
        model,
        [prompts.ids[number] for number in chosen[mine]],
        sampling,
        stop_ids=tokenizer.stop_ids,
        num_samples=samples,
        seeds=sequence_seeds(sampling.seed, range(mine.start * samples, mine.stop * samples)),
    )
    told = [[(completion.ids, completion.stopped) for completion in group] for group in own]
    groups = [group for of_rank in ranks.gather(told) for group in of_rank]
    assert [len(group) for group in groups] == [samples] * len(chosen), "a completion is missing"
    rows: list[list[int]] = []
    starts: list[int] = []
    found: list[Sample] = []
    for number, group in zip(chosen, groups, strict=True):
        for words, stopped in group:
            rows.append([*prompts.ids[number], *words])
            starts.append(len(prompts.ids[number]))
            text = tokenizer.decode(words[:-1] if stopped else words, skip_special=False)
            found.append(Sample(prompts.records[number], text, tuple(words), stopped))
    device = next(model.parameters()).device
    ids, mask = tensors_of(rows, starts, tokenizer.pad_id)
    truncated = torch.tensor([not sample.stopped for sample in found])
    return Rollout(ids.to(device), mask.to(device), truncated.to(device), found)


def tensors_of(rows: Sequence[Sequence[int]], starts: Sequence[int], pad_id: int) -> tuple[Tensor, Tensor]:
    """Ragged rows whose completions begin at `starts` -> ids and mask, both (B, T)."""
    ids = pad_rows(rows, value=pad_id)
    columns = torch.arange(ids.shape[1])
    ends = torch.tensor([len(row) for row in rows])
    return ids, (columns >= torch.tensor(starts)[:, None]) & (columns < ends[:, None])


def join(first: Rollout, kept: Tensor, second: Rollout, *, pad_id: int) -> Rollout:
    """Some rows of one rollout, then all of another."""
    columns = max(first.ids.shape[1], second.ids.shape[1])
    pad = [(r.ids, r.mask, columns - r.ids.shape[1]) for r in (first, second)]
    ids = [torch.nn.functional.pad(i, (0, extra), value=pad_id) for i, _, extra in pad]
    mask = [torch.nn.functional.pad(m, (0, extra), value=False) for _, m, extra in pad]
    return Rollout(
        torch.cat([ids[0][kept], ids[1]]),
        torch.cat([mask[0][kept], mask[1]]),
        torch.cat([first.truncated[kept], second.truncated]),
        [first.samples[i] for i in kept.tolist()] + second.samples,
    )


def score_rows(
    model: Transformer, rollout: Rollout, *, temperature: float, rows: int = SCORING_ROWS, ranks: Ranks = ALONE
) -> Tensor:
    """(B, T-1) log-probabilities of the sampled tokens by the training forward, without a gradient; 0 elsewhere.

    Each of the `ranks` computes its share of the rows; all get all.
    """
    count, columns = len(rollout.ids), rollout.ids.shape[1] - 1
    found = [torch.zeros(0, columns, device=rollout.ids.device)]
    with torch.no_grad():
        for p in pieces(ranks.share(count), rows):
            found.append(sampled_logprobs(model, rollout.ids[p], rollout.mask[p], temperature=temperature)[0])
    return ranks.join_rows(torch.cat(found), count)


def pieces(share: slice, rows: int) -> list[slice]:
    """A run of rows in pieces of at most so many."""
    return [slice(start, min(start + rows, share.stop)) for start in range(share.start, share.stop, rows)]


def reference_logprobs(
    policy: Transformer, reference: Transformer, rollout: Rollout, *, temperature: float, ranks: Ranks = ALONE
) -> Tensor:
    """(B, T-1) by the reference: a model of its own, or the policy itself, which then means without its adapters."""
    if reference is policy:
        with adapters_off(policy):
            return score_rows(policy, rollout, temperature=temperature, ranks=ranks)
    reference.activation_dtype = policy.activation_dtype
    return score_rows(reference, rollout, temperature=temperature, ranks=ranks)


def switch_dropout_off(model: Transformer) -> None:
    """Dropout would make the policy that is scored another one than the policy that sampled."""
    model.config = model.config.model_copy(update={"dropout": 0.0})
    for module in model.modules():
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0  # type: ignore[assignment]


def length_metrics(rollout: Rollout) -> dict[str, tuple[float, int]]:
    """Lengths of completions under TRL's names."""
    lengths = rollout.lengths.float().cpu()
    truncated = rollout.truncated.cpu()
    metrics = {
        "completions/mean_length": (float(lengths.sum()), len(lengths)),
        "completions/min_length": (float(lengths.min()), 1),
        "completions/max_length": (float(lengths.max()), 1),
        "completions/clipped_ratio": (float(truncated.sum()), len(lengths)),
    }
    ended = lengths[~truncated]
    if len(ended):
        metrics["completions/mean_terminated_length"] = (float(ended.sum()), len(ended))
        metrics["completions/min_terminated_length"] = (float(ended.min()), 1)
        metrics["completions/max_terminated_length"] = (float(ended.max()), 1)
    return metrics


def number_or_none(value: Tensor) -> float | None:
    """JSON has no NaN."""
    number = float(value)
    return round(number, 6) if number == number else None
