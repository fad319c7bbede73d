"""What must be possible: a few conversations learned by heart, and answered with their end, whatever is switched on."""

import pytest

from llmcore.lora import LoRA
from llmcore.model.adapters import add_adapters
from llmcore.model.config import ModelConfig
from llmcore.records import Chat, Message
from llmcore.tokenizer import Tokenizer
from llmcore.train.config import TrainConfig
from llmcore.train.loop import train_step
from llmcore.train.optim import AdamW
from llmsft.answers import several_answers
from llmsft.batches import ChatBatches, numbered_rows
from llmsft.loss import sft_loss

TOKENIZER = Tokenizer.byte_level()
CHATS = [
    Chat(messages=(Message(role="user", content=question), Message(role="assistant", content=answer)))
    for question, answer in [("a", "'x'"), ("b", "[1, 2]"), ("c", "7")]
]


@pytest.mark.parametrize(("packed", "lora", "neftune"), [(True, False, None), (True, True, None), (False, False, 5.0)])
def test_conversations_are_learned_by_heart(packed: bool, lora: bool, neftune: float | None) -> None:
    std = 0.3 if lora else 0.02  # a head that adapters leave as it is must be able to be sure of a token
    model = ModelConfig(vocab_size=260, width=64, depth=2, context=64, initial_std=std).build(seed=0)
    if lora:
        add_adapters(model, LoRA(rank=32, alpha=64), seed=0)
    rows = numbered_rows(CHATS, TOKENIZER, max_length=64).rendered
    batches = ChatBatches(
        rows, pad_id=TOKENIZER.pad_id, train=TrainConfig(batch=3), pair_cost=1e-4 if packed else None, max_length=64
    )
    optimizer, loss = AdamW(weight_decay=0.0).build(model, 5e-3), sft_loss("nll", neftune_noise_alpha=neftune)
    model.train()
    for step in range(120):
        result = train_step(model, optimizer, batches.micro_batches(step), loss, clip=1.0)
    assert result.loss < (0.01 if neftune is None else 0.1)
    model.eval()
    said = several_answers(model, CHATS, TOKENIZER, temperature=0.0, samples=1, max_new_tokens=16)
    assert said == [["'x'"], ["[1, 2]"], ["7"]]
