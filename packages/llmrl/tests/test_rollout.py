"""Rollouts: masks from positions, groups that belong together, log-probabilities whatever the batches."""

import json
from pathlib import Path

import torch

from llmcore.model.config import ModelConfig
from llmcore.model.transformer import Transformer
from llmcore.records import Message, Prompt
from llmcore.tokenizer import Tokenizer
from llmrl.config import RolloutConfig
from llmrl.logprobs import rollout_logprobs
from llmrl.metrics import length_metrics
from llmrl.prompts import Prompts
from llmrl.rollout import join, sample_rollout, tensors_of
from llmrl.samples import SampleLog

TOKENIZER = Tokenizer.byte_level()


def prompt(text: str) -> Prompt:
    return Prompt(prompt=(Message(role="user", content=text),), answer=text)


def some_prompts(count: int = 7) -> Prompts:
    return Prompts([prompt("x" * (i + 1)) for i in range(count)], TOKENIZER, longest=60)


def tiny() -> Transformer:
    """A small model that ends its turn now and then."""
    model = ModelConfig(vocab_size=TOKENIZER.vocab_size, width=16, depth=1, context=96).build(seed=0)
    with torch.no_grad():
        model.embedding.weight[TOKENIZER.end_of_turn_id] *= 8
    return model


def test_the_mask_is_made_of_positions_not_of_ids() -> None:
    pad = TOKENIZER.pad_id
    ids, mask = tensors_of([[1, 2, pad, 7], [1, pad, 5, pad, pad, 6]], [2, 1], pad)
    assert mask[:, :6].tolist() == [[False, False, True, True, False, False], [False, True, True, True, True, True]]
    assert not mask[:, 6:].any()
    assert ids[0, :4].tolist() == [1, 2, pad, 7]


def test_a_rollout_says_what_was_sampled() -> None:
    model, prompts = tiny(), some_prompts()
    config = RolloutConfig(max_completion_length=12)
    rollout = sample_rollout(model, prompts, [4, 0, 2], TOKENIZER, config, samples=4, seed=5)
    assert rollout.ids.shape == rollout.mask.shape
    assert 0 < int(rollout.truncated.sum()) < 12, "both kinds of ending must occur for this test to see them"
    for i, sample in enumerate(rollout.samples):
        start = len(prompts.ids[[4, 0, 2][i // 4]])
        assert sample.prompt is prompts.records[[4, 0, 2][i // 4]]
        assert rollout.ids[i, :start].tolist() == prompts.ids[[4, 0, 2][i // 4]]
        assert rollout.ids[i][rollout.mask[i]].tolist() == list(sample.ids)
        assert not rollout.mask[i, :start].any() and bool(rollout.mask[i, start])
        assert (sample.ids[-1] in TOKENIZER.stop_ids) == sample.stopped == (not bool(rollout.truncated[i]))
        assert not set(sample.ids[:-1]) & TOKENIZER.stop_ids
        assert sample.text == TOKENIZER.decode(sample.ids[: len(sample.ids) - sample.stopped], skip_special=False)
    figures = length_metrics(rollout)
    assert figures["completions/clipped_ratio"] == (float(rollout.truncated.sum()), 12)
    assert figures["completions/max_length"] == (12.0, "max")


def test_the_same_seed_gives_the_same_rollout_and_another_another() -> None:
    model, prompts, config = tiny(), some_prompts(), RolloutConfig(max_completion_length=8)
    one, same, other = (
        sample_rollout(model, prompts, [0, 1], TOKENIZER, config, samples=2, seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(one.ids, same.ids)
    assert [s.ids for s in one.samples] != [s.ids for s in other.samples]


def test_scores_do_not_depend_on_how_rows_are_batched() -> None:
    model, prompts = tiny(), some_prompts()
    rollout = sample_rollout(
        model, prompts, [0, 1, 2], TOKENIZER, RolloutConfig(max_completion_length=8), samples=2, seed=0
    )
    whole, parts = (rollout_logprobs(model, rollout, temperature=0.8, rows=rows) for rows in (100, 2))
    torch.testing.assert_close(whole, parts, rtol=0, atol=1e-5)
    assert not whole.requires_grad


def test_joined_rollouts_keep_rows_whole() -> None:
    model, prompts, config = tiny(), some_prompts(), RolloutConfig(max_completion_length=8)
    first = sample_rollout(model, prompts, [6, 5], TOKENIZER, config, samples=2, seed=0)
    second = sample_rollout(model, prompts, [0], TOKENIZER, config, samples=2, seed=1)
    joined = join(first, torch.tensor([2, 3]), second, pad_id=TOKENIZER.pad_id)
    assert len(joined.ids) == len(joined.samples) == 4
    for i, sample in enumerate(joined.samples):
        assert joined.ids[i][joined.mask[i]].tolist() == list(sample.ids)


def test_the_sample_log_is_cut_where_a_run_goes_on(tmp_path: Path) -> None:
    rollout = sample_rollout(
        tiny(), some_prompts(), [0], TOKENIZER, RolloutConfig(max_completion_length=4), samples=2, seed=0
    )
    rewards = torch.tensor([1.0, float("nan")])
    told: list[str] = []
    log = SampleLog(tmp_path / "samples.jsonl", every=4, count=2, updates=2, shown=1, say=told.append)
    for step in (1, 3, 5, 7):
        log.add(step, rollout, {"exact": rewards}, rewards, rewards)
    rows = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 1, 3, 3, 7, 7]  # the rollouts that steps 1, 4 and 8 used
    assert rows[1]["reward"] is None and rows[0]["reward"] == 1.0
    assert len(told) == 3 and all("reward 1.0 A +1.00" in line for line in told)
    with log.path.open("a") as file:
        file.write('{"half a li')
    log.start(4)
    assert [json.loads(line)["step"] for line in log.path.read_text().splitlines()] == [1, 1, 3, 3]
