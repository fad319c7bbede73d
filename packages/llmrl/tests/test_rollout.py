"""Rollouts: prompts as a function of (seed, number), masks from positions, groups that belong together."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from llmcore.errors import DataError
from llmcore.model.config import ModelConfig
from llmcore.model.transformer import Transformer
from llmcore.records import Message, Prompt
from llmcore.tokenizer import Tokenizer
from llmrl.config import RolloutConfig
from llmrl.rollout import (
    Prompts,
    join,
    length_metrics,
    sample_rollout,
    score_rows,
    switch_dropout_off,
    tensors_of,
)
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


def test_epochs_are_permutations_and_every_rollout_is_a_function_of_its_number() -> None:
    prompts = some_prompts(7)
    drawn = [place for number in range(7) for place in prompts.draw(3, number, 5)]
    assert all(count == 5 for count in Counter(drawn).values())
    assert sorted(drawn[:7]) == sorted(drawn[7:14]) == list(range(7))
    assert drawn[:7] != drawn[7:14]
    assert prompts.draw(3, 4, 5) == drawn[20:25]
    assert len(prompts.draw(0, 0, 40)) == 40
    assert prompts.draw_again(3, 1, 1, 4) == prompts.draw_again(3, 1, 1, 4) != prompts.draw_again(3, 1, 2, 4)


def test_prompts_too_long_for_the_context_are_dropped_and_counted_or_refused() -> None:
    records = [prompt("short"), prompt("y" * 100)]
    kept = Prompts(records, TOKENIZER, longest=40, max_dropped=0.5)
    assert kept.counts == {"prompts": 1, "dropped: too long": 1}
    with pytest.raises(DataError, match="1 of 2 prompts"):
        Prompts(records, TOKENIZER, longest=40, max_dropped=0.4)
    with pytest.raises(DataError, match="2 of 2 prompts"):
        Prompts(records, TOKENIZER, longest=4, max_dropped=1.0)


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
    assert figures["completions/max_length"][0] == 12.0


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
    whole, parts = (score_rows(model, rollout, temperature=0.8, rows=rows) for rows in (100, 2))
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


def test_dropout_is_off_everywhere() -> None:
    model = ModelConfig(vocab_size=16, width=16, depth=2, context=16, dropout=0.5).build(seed=0).train()
    ids = torch.arange(8)[None]
    assert not torch.equal(model(ids), model(ids))
    switch_dropout_off(model)
    assert torch.equal(model(ids), model(ids))


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
