"""Completions of prompts by the live policy.

Rows are prompt and completion side by side, padded on the right. The mask says which tokens the policy sampled: it is
built from positions, and includes the stop token.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from llmcore.batching import pad_rows
from llmcore.generate.engine import generate
from llmcore.generate.noise import sequence_seeds
from llmcore.generate.sampling import Sampling
from llmcore.model.transformer import Transformer
from llmcore.tokenizer import Tokenizer
from llmcore.train.distributed import ALONE, Ranks
from llmrl.config import RolloutConfig
from llmrl.prompts import Prompts
from llmrl.rewards.reward import Sample


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
