"""Settings of supervised fine-tuning."""

from typing import Literal

from pydantic import Field, model_validator

from llmcore.config import Config
from llmcore.lora import OptionalAdapter
from llmcore.objective import NextToken
from llmcore.train.config import TrainConfig
from llmsft.curriculum import Curriculum


class SFTInputs(Config):
    """What the run is made from."""

    base: str | None = None
    """The policy to fine-tune (`llmpretrain run`, `llmsft run`, or imported)."""
    data: str | None = None
    """Chats: a records artifact, a folder with train.jsonl and valid.jsonl, or one JSONL file; built-in if absent."""
    reference: str | None = None
    """The policy whose loss orders a curriculum by loss; the base if absent."""


class ChatData(Config):
    """How chats become rows."""

    max_length: int | None = Field(None, ge=2)
    """Tokens kept of a conversation, from its start; the model's context if absent."""
    max_dropped: float = Field(0.01, ge=0, le=1)
    """The share of conversations that may be dropped (nothing left to train on) before it is an error."""
    completion_only_loss: bool = False
    """Train on the assistant's last turn alone; otherwise on all of its turns."""
    packing: bool = False
    """Put several conversations into one row, each seeing itself alone: no padding, and the same loss and gradient."""


class SFTConfig(Config):
    """An assistant from a base model and chats."""

    inputs: SFTInputs = SFTInputs()
    """What the run is made from; each has an option of the same name."""
    data: ChatData = ChatData()
    """How chats become rows."""
    curriculum: Curriculum | None = None
    """Begin with the easy conversations (`curriculum.by=length`); none: all of them from the start."""
    lora: OptionalAdapter = None
    """Train adapters beside frozen weights (`lora.rank=8`); none: train all weights. The output is then an adapter,
    which every command takes in place of a policy; `llmsft merge` makes it one."""
    loss_type: Literal["nll", "dft"] = "nll"
    """Cross-entropy, or dynamic fine-tuning (arXiv:2508.05629), which weighs each target by its probability."""
    neftune_noise_alpha: float | None = Field(None, gt=0)
    """Noise on the embeddings in training (NEFTune, arXiv:2310.05914; 5 is usual); none: without."""
    loss: NextToken = NextToken()
    """What training adds to the cross-entropy."""
    train: TrainConfig = TrainConfig(steps=300, batch=32, lr=5e-4)
    """The optimization."""

    @model_validator(mode="after")
    def check_loss(self) -> "SFTConfig":
        """What is added to the cross-entropy needs one."""
        if self.loss_type == "dft" and self.loss != NextToken():
            raise ValueError("loss.label_smoothing and loss.z_loss belong to loss_type 'nll', and loss_type is 'dft'")
        return self
