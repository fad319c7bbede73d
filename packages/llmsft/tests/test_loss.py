"""NEFTune's noise and the losses, against what the papers say."""

import math

import pytest
import torch
from torch import Tensor

from llmcore.losses import next_token_loss, token_logprobs
from llmcore.model.config import ModelConfig
from llmcore.model.transformer import Transformer
from llmcore.records import Chat, Message
from llmcore.tokenizer import Tokenizer
from llmcore.train.config import TrainConfig
from llmsft.batches import ChatBatch, ChatBatches, numbered_rows
from llmsft.loss import embedding_noise, sft_loss

TOKENIZER = Tokenizer.byte_level()


def model() -> Transformer:
    return ModelConfig(vocab_size=260, width=32, depth=2, context=128).build(seed=0)


def batch(*, packed: bool) -> ChatBatch:
    chats = [
        Chat(messages=(Message(role="user", content="q" * n), Message(role="assistant", content="abc" * n)))
        for n in (1, 4, 9)
    ]
    rows = numbered_rows(chats, TOKENIZER, max_length=128).rendered
    train = TrainConfig(batch=3)
    cost = 1e-3 if packed else None
    made = ChatBatches(rows, pad_id=TOKENIZER.pad_id, train=train, pair_cost=cost, max_length=128)
    return made.micro_batches(0)[0]


def noise_of(policy: Transformer, data: ChatBatch, *, alpha: float, seed: int = 0) -> Tensor:
    """What is added to the embeddings."""
    plain = policy.embedding(data.ids, torch.float32)
    torch.manual_seed(seed)
    with embedding_noise(policy, data.lengths, alpha=alpha):
        return (policy.embedding(data.ids, torch.float32) - plain).detach()


@pytest.mark.parametrize("packed", [False, True])
def test_noise_is_uniform_and_as_large_as_its_conversation_is_short(packed: bool) -> None:
    policy, data = model().train(), batch(packed=packed)
    noise = noise_of(policy, data, alpha=5.0)
    bound = 5.0 / (data.lengths * 32.0).sqrt().unsqueeze(-1)
    relative = (noise / bound)[data.ids != TOKENIZER.pad_id]
    assert relative.abs().max() <= 1 + 1e-4 and relative.abs().max() > 0.99
    assert relative.mean().abs() < 0.05 and relative.std().item() == pytest.approx(1 / math.sqrt(3), rel=0.05)


def test_noise_is_of_the_seed_and_in_training_alone() -> None:
    policy, data = model().train(), batch(packed=False)
    assert noise_of(policy, data, alpha=5.0).equal(noise_of(policy, data, alpha=5.0))
    assert not noise_of(policy, data, alpha=5.0).equal(noise_of(policy, data, alpha=5.0, seed=1))
    assert not noise_of(policy.eval(), data, alpha=5.0).any()
    loss = sft_loss("nll", neftune_noise_alpha=5.0)
    policy.train()
    noisy = loss(policy, data).total.item()
    assert noisy != next_token_loss(policy, data.plain).total.item()
    policy.eval()
    assert loss(policy, data).total.equal(next_token_loss(policy, data.plain).total)


def test_dft_weighs_each_target_by_its_probability_and_that_has_no_gradient() -> None:
    policy, data = model(), batch(packed=False)
    loss = sft_loss("dft")(policy, data)
    grads = torch.autograd.grad(loss.total, list(policy.parameters()))
    logprobs = token_logprobs(policy, data.ids)[data.mask[:, 1:]]
    wanted = -(logprobs.detach().exp() * logprobs).sum()
    torch.testing.assert_close(loss.total, wanted)
    for found, right in zip(grads, torch.autograd.grad(wanted, list(policy.parameters())), strict=True):
        torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-6)
    assert loss.count == len(logprobs) and loss.metrics["nll"][0] == pytest.approx(-logprobs.sum().item(), rel=1e-5)


def test_competence_is_logged() -> None:
    policy, data = model(), batch(packed=False)._replace(competence=0.25)
    loss = sft_loss("nll")(policy, data)
    total, count = loss.metrics["competence"]
    assert total / count == 0.25
