"""What a model says while it learns: `run/samples.jsonl`, seeded, so that only the weights differ."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import nn

from llmcore.errors import ConfigError
from llmcore.generate.engine import generate
from llmcore.generate.sampling import Sampling
from llmcore.generate.text import printable
from llmcore.model.transformer import Transformer
from llmcore.storage import disk_error, write_durably
from llmcore.tokenizer import Tokenizer
from llmcore.train.config import TrainConfig
from llmcore.train.metrics import parse_row

TEMPERATURE = 0.8


class Prompting(NamedTuple):
    """How a stage asks its model."""

    texts: Sequence[str]
    """What it is asked, if the settings name nothing."""
    encode: Callable[[str], list[int]]
    """A text as the tokens that such a model continues."""


class Sampler:
    """Asks the same prompts with the same seed whenever it is called."""

    def __init__(self, path: Path, prompting: Prompting, tokenizer: Tokenizer, config: TrainConfig) -> None:
        self.path, self.tokenizer = path, tokenizer
        self.texts = list(config.sample_prompts or prompting.texts)
        self.prompts = [prompting.encode(text) for text in self.texts]
        self.sampling = Sampling(max_new_tokens=config.sample_tokens, temperature=TEMPERATURE, seed=config.seed)

    def start(self, step: int) -> None:
        """Drop what was written of steps that will come again."""
        forget_after(self.path, step)

    def sample(self, model: nn.Module, step: int) -> list[tuple[str, str]]:
        """What the model says now: pairs of a prompt and its continuation, also added to the file."""
        speaker = next(module for module in model.modules() if isinstance(module, Transformer))
        room = speaker.config.context - 1
        prompts = [prompt[-room:] for prompt in self.prompts]
        answers = generate(speaker, prompts, self.sampling, stop_ids=self.tokenizer.stop_ids)
        said = [printable(self.tokenizer.decode(answer.ids)) for (answer,) in answers]
        pairs = list(zip(self.texts, said, strict=True))
        lines = [{"step": step, "prompt": prompt, "text": text} for prompt, text in pairs]
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        except OSError as error:
            raise disk_error(self.path, error) from error
        return pairs


def sampler_of(
    path: Path, prompting: Prompting | None, tokenizer: Tokenizer | None, config: TrainConfig
) -> Sampler | None:
    """What the settings ask for; ConfigError where the stage's models say nothing."""
    if config.sample_every is None:
        return None
    if prompting is None or tokenizer is None:
        raise ConfigError(
            f"train.sample_every is {config.sample_every}, and this stage has no samples to show",
            hint="leave it out (of reinforcement learning, run/samples.jsonl holds the rollouts in any case)",
        )
    if not (config.sample_prompts or prompting.texts):
        raise ConfigError("train.sample_every is set, and there is nothing to ask", hint="set train.sample_prompts")
    return Sampler(path, prompting, tokenizer, config)


def forget_after(path: Path, step: int) -> None:
    """Drop from a file of samples the steps that will come again, and the lines that a power failure left damaged."""
    if path.exists():
        rows = [(line, parse_row(line)) for line in path.read_bytes().split(b"\n")[:-1]]
        kept = [line for line, row in rows if row is not None and row["step"] <= step]
        write_durably(path, b"".join(line + b"\n" for line in kept))
