"""Pretraining: tokens to a base model."""

from functools import partial
from pathlib import Path

from llmcore.builtin import builtin_data
from llmcore.checkpoint import Checkpoint, load_checkpoint
from llmcore.errors import ArtifactError, ConfigError
from llmcore.generate.chat import text_prompt
from llmcore.manifest import NAME as MANIFEST
from llmcore.manifest import Manifest, verify_artifact
from llmcore.model.config import ModelConfig
from llmcore.model.transformer import Transformer
from llmcore.shards import TokenShards
from llmcore.tokenizer import Tokenizer, require_same_tokenizer
from llmcore.train.loop import fit
from llmcore.train.rehearsal import Rehearsal
from llmcore.train.run import Run
from llmcore.train.samples import Prompting
from llmcore.train.source import FromFunction
from llmpretrain.batches import TokenBatches
from llmpretrain.config import PretrainConfig
from llmpretrain.evaluate import held_out

EVAL_WINDOWS = 64
INIT = "its weights alone, with a new optimizer from step 0; this is not a resume"
PROMPTS = ("def ", "The ")
"""What samples during the run begin with, unless the settings say."""


def run(
    config: PretrainConfig, out: Path, *, resume: str | Rehearsal = "auto", json: bool = False, quiet: bool = False
) -> Manifest:
    """Train a base model on a tokens artifact and write a policy to `out`."""
    data = tokens_folder(config.inputs.data, make=isinstance(resume, str))
    tokens = verify_artifact(data, expect="tokens")
    tokenizer = Tokenizer.load(data)
    start = initial_weights(config, tokenizer)
    shape = config.model.with_vocabulary(tokenizer.vocab_size) if start is None else start.model.config
    config = config.model_copy(update={"model": shape})
    train = TokenShards(data, "train", tokenizer=tokenizer)
    valid = TokenShards(data, "valid", tokenizer=tokenizer)
    epochs = config.train.steps * config.train.batch * config.model.context / len(train)
    job = Run(
        out,
        made_by="llmpretrain run",
        config=config,
        parents={"data": tokens} if start is None else {"data": tokens, "init": start.manifest},
        tokenizer=tokenizer,
        resume=resume,
        json=json,
        quiet=quiet,
        facts={
            "data": f"{data} · {len(train):,} tokens to train on, {len(valid):,} held out · {epochs:.2f} epochs",
            **({} if start is None else {"init": f"{config.inputs.init} · {start.manifest.id}: {INIT}"}),
        },
        prompting=Prompting(PROMPTS, partial(text_prompt, tokenizer=tokenizer)),
        next_commands=[f"llmcore generate {out} --prompt 'def '", f"llmsft run --base {out}"],
    )
    batches = TokenBatches(train, context=config.model.context, train=config.train)

    def evaluate(model: Transformer) -> dict[str, float]:
        found = held_out(model, valid, tokenizer, windows=EVAL_WINDOWS)
        return {"loss": found.loss, "bits_per_byte": found.bits_per_byte.value}

    model = config.model.build(seed=config.train.seed) if start is None else start.model
    fit(
        model,
        FromFunction(batches.micro_batches, batches.data_rows),
        config.loss.build(),
        config.train,
        job,
        evaluate=evaluate,
    )
    return job.finish(model)


def tokens_folder(data: str | None, *, make: bool = True) -> Path:
    """The tokens artifact to read, the built-in one if none is given; of plain text it is said how it becomes one."""
    if not data:
        return builtin_data("tokens", make=make)
    path = Path(data)
    if path.exists() and not (path / MANIFEST).exists():
        raise ArtifactError(f"{data!r} is no tokens artifact", hint=f"make one of it first: llmdata tokens {data}")
    return path


def initial_weights(config: PretrainConfig, tokenizer: Tokenizer) -> Checkpoint | None:
    """The checkpoint to begin from, if one is given: of the shape that is asked for, and with the data's tokenizer."""
    if not config.inputs.init:
        return None
    start = load_checkpoint(Path(config.inputs.init), expect="policy")
    require_same_tokenizer(
        config.inputs.init,
        start.tokenizer,
        tokenizer,
        of="the tokens",
        hint="make the tokens with the checkpoint's tokenizer: llmdata tokens --tokenizer DIR",
    )
    asked = config.model.with_vocabulary(tokenizer.vocab_size)
    if config.model != ModelConfig() and asked != start.model.config:
        found = start.model.config.model_dump(mode="json")
        different = [
            f"model.{name} is {value!r}, of {config.inputs.init} it is {found[name]!r}"
            for name, value in asked.model_dump(mode="json").items()
            if found.get(name) != value
        ]
        raise ConfigError("; ".join(different), hint="leave [model] out: --init brings the shape of its model")
    return start
