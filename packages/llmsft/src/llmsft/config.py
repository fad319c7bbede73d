"""Settings of supervised fine-tuning."""

from pydantic import Field

from llmcore.config import Config
from llmcore.lora import OptionalAdapter
from llmcore.train.config import TrainConfig


class SFTInputs(Config):
    """What the run is made from."""

    base: str | None = None
    """The policy to fine-tune (`llmpretrain run`, `llmsft run`, or imported)."""
    data: str | None = None
    """Chats: a records artifact, a folder with train.jsonl and valid.jsonl, or one JSONL file; built-in if absent."""


class ChatData(Config):
    """How chats become rows."""

    max_length: int | None = Field(None, ge=2)
    """Tokens kept of a conversation, from its start; the model's context if absent."""
    max_dropped: float = Field(0.01, ge=0, le=1)
    """The share of conversations that may be dropped (nothing left to train on) before it is an error."""


class SFTConfig(Config):
    """An assistant from a base model and chats."""

    inputs: SFTInputs = SFTInputs()
    """What the run is made from; each has an option of the same name."""
    data: ChatData = ChatData()
    """How chats become rows."""
    lora: OptionalAdapter = None
    """Train adapters beside frozen weights (`lora.rank=8`); none: train all weights. The output is then an adapter,
    which every command takes in place of a policy; `llmsft merge` makes it one."""
    train: TrainConfig = TrainConfig(steps=300, batch=32, lr=5e-4)
    """The optimization."""
