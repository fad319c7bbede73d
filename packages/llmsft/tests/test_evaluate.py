import json
import math

import numpy as np
import pytest
import torch

from llmcore.errors import DataError
from llmcore.intervals import mean, share
from llmcore.losses import next_token_loss
from llmcore.model.config import ModelConfig
from llmcore.model.transformer import Transformer
from llmcore.records import Chat, Message
from llmcore.tokenizer import Tokenizer
from llmcore.train.loop import train_step
from llmcore.train.optim import AdamW
from llmsft.batches import numbered_rows, padded_batch
from llmsft.evaluate import Asked, ask, figures, gains, held_out_loss
from llmsft.overlap import overlap

TOKENIZER = Tokenizer.byte_level()
CHATS = [
    Chat(messages=(Message(role="user", content=question), Message(role="assistant", content=answer)))
    for question, answer in [("a", "'x'"), ("b", "[1, 2]"), ("c", "7")]
]


def memorised() -> torch.nn.Module:
    """A model that has learned three chats by heart."""
    model = ModelConfig(vocab_size=260, width=64, depth=2, context=64).build(seed=0)
    batch = padded_batch(numbered_rows(CHATS, TOKENIZER, max_length=64).rendered, TOKENIZER.pad_id).plain
    optimizer = AdamW().build(model, 3e-3)
    for _ in range(120):
        result = train_step(model, optimizer, [batch], next_token_loss, clip=1.0)
    assert result.loss < 0.01
    return model.eval()


def test_an_overfitted_model_answers_by_heart_and_stops() -> None:
    model = memorised()
    made = ask(model, CHATS, TOKENIZER, samples=4)
    assert made.greedy == ["'x'", "[1, 2]", "7"]
    found = figures(made)
    assert found["greedy"]["value"] == found["exact_match"]["value"] == 1.0 and found["asked"] == 3
    assert found["loss"] < 0.01 and found["perplexity"] == pytest.approx(math.exp(found["loss"]))
    assert found["rouge1"]["value"] == pytest.approx(1.0) and "pass@4" in found


def loss_of(model: Transformer) -> float:
    rows = numbered_rows(CHATS, TOKENIZER, max_length=64).rendered
    return held_out_loss(model, rows, pad_id=TOKENIZER.pad_id)


def test_loss_is_a_mean_over_tokens_not_over_batches() -> None:
    model = ModelConfig(vocab_size=260, width=16, depth=1, context=64).build(seed=0)
    torch.nn.init.zeros_(model.embedding.weight)
    assert loss_of(model) == pytest.approx(math.log(260), rel=1e-5)
    model = ModelConfig(vocab_size=260, width=16, depth=1, context=64, initial_std=0.5).build(seed=0)
    rows = numbered_rows(CHATS, TOKENIZER, max_length=64).rendered
    whole = next_token_loss(model, padded_batch(rows, TOKENIZER.pad_id).plain)
    assert loss_of(model) == pytest.approx(float(whole.total.detach()) / whole.count, rel=1e-5)


def asked(*answers: str, sampled: list[list[str]] | None = None) -> Asked:
    """What a policy that gave these greedy answers to `CHATS` would have made of them."""
    wanted = [chat.messages[-1].content for chat in CHATS]
    nats, tokens = np.array([1.0, 2.0, 9.0]), np.array([1.0, 4.0, 5.0])
    return Asked(wanted, nats, tokens, list(answers), sampled or [[a] for a in answers], overlap(wanted, list(answers)))


def test_the_perplexity_is_of_all_tokens_together() -> None:
    found = figures(asked("", "", ""))
    assert found["loss"] == 1.2 and found["perplexity"] == math.exp(1.2) and found["tokens"] == 10
    low, high = (found["loss_interval"][end] for end in ("low", "high"))
    assert found["perplexity_interval"] == {"value": math.exp(1.2), "low": math.exp(low), "high": math.exp(high)}


def test_losses_by_conversation_add_up_to_the_loss() -> None:
    model = ModelConfig(vocab_size=260, width=16, depth=1, context=64).build(seed=0)
    found = ask(model, CHATS, TOKENIZER, max_new_tokens=1)
    assert found.nats.sum() / found.tokens.sum() == pytest.approx(loss_of(model), rel=1e-6)


def test_exact_match_is_the_text_and_right_is_also_the_same_literal() -> None:
    found = figures(asked('"x"', "[1, 2] ", "8"))
    assert found["exact_match"] == share(1, 3)._asdict() and found["greedy"] == share(2, 3)._asdict()


def test_pass_at_k_is_a_mean_over_conversations() -> None:
    samples = [["'x'", "no", "no", "no"], ["[1, 2]"] * 4, ["no"] * 4]
    found = figures(asked("", "", "", sampled=samples))
    assert [found[f"pass@{k}"]["value"] for k in (1, 2, 4)] == pytest.approx([1.25 / 3, 1.5 / 3, 2 / 3])
    assert found["sampled"] == pytest.approx(found["pass@1"])


def test_a_second_policy_is_compared_conversation_by_conversation() -> None:
    first, second = asked("no", "no", "7"), asked("'x'", "[1, 2]", "7")._replace(nats=np.array([0.0, 1.0, 5.0]))
    found = gains(first, second)
    assert found["gain/greedy"] == mean([1, 1, 0])._asdict() and found["gain/loss"]["value"] == pytest.approx(-0.6)
    assert found["gain/rouge1"]["value"] == pytest.approx(2 / 3) and found["gain/bleu"]["value"] > 0
    other = second._replace(tokens=second.tokens * 2)
    assert "gain/loss" not in gains(first, other)  # other tokens: their losses have no common unit


def test_a_prompt_that_fills_the_context_is_answered_by_nothing() -> None:
    model = ModelConfig(vocab_size=260, width=16, depth=1, context=48).build(seed=0)
    long = Chat(messages=(Message(role="user", content="q" * 99), Message(role="assistant", content="a")))
    found = ask(model, [CHATS[0], long], TOKENIZER, max_new_tokens=4)
    assert found.greedy[1] == "" and found.tokens[1] == 0 and found.tokens[0] > 0
    with pytest.raises(DataError, match="no answer of 1 conversations begins within 48 tokens"):
        ask(model, [long], TOKENIZER)


def test_one_conversation_has_figures_that_json_can_hold() -> None:
    model = ModelConfig(vocab_size=260, width=16, depth=1, context=64).build(seed=0)
    found = figures(ask(model, CHATS[:1], TOKENIZER, max_new_tokens=2, samples=2))
    assert json.loads(json.dumps(found, allow_nan=False)) == found and found["loss_interval"]["low"] is None
