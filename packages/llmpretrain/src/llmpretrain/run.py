"""Pretraining: tokens to a base model."""

from pathlib import Path

from llmcore.command import builtin_data
from llmcore.errors import ArtifactError
from llmcore.losses import next_token_loss
from llmcore.manifest import NAME as MANIFEST
from llmcore.manifest import Manifest, verify_artifact
from llmcore.model.transformer import Transformer
from llmcore.shards import TokenShards
from llmcore.tokenizer import Tokenizer
from llmcore.train.loop import fit
from llmcore.train.run import Run
from llmcore.train.source import FromFunction
from llmpretrain.batches import TokenBatches
from llmpretrain.config import PretrainConfig
from llmpretrain.evaluate import held_out

EVAL_WINDOWS = 64


def run(
    config: PretrainConfig, out: Path, *, resume: str = "auto", json: bool = False, quiet: bool = False
) -> Manifest:
    """Train a base model on a tokens artifact and write a policy to `out`."""
    data = tokens_folder(config.inputs.data)
    tokens = verify_artifact(data, expect="tokens")
    tokenizer = Tokenizer.load(data)
    config = config.model_copy(update={"model": config.model.with_vocabulary(tokenizer.vocab_size)})
    train = TokenShards(data, "train", tokenizer=tokenizer)
    valid = TokenShards(data, "valid", tokenizer=tokenizer)
    epochs = config.train.steps * config.train.batch * config.model.context / len(train)
    job = Run(
        out,
        made_by="llmpretrain run",
        config=config,
        parents={"data": tokens},
        tokenizer=tokenizer,
        resume=resume,
        json=json,
        quiet=quiet,
        facts={"data": f"{data} · {len(train):,} tokens to train on, {len(valid):,} held out · {epochs:.2f} epochs"},
        next_commands=[f"llmcore generate {out} --prompt 'def '", f"llmsft run --base {out}"],
    )
    batches = TokenBatches(train, context=config.model.context, train=config.train)

    def evaluate(model: Transformer) -> dict[str, float]:
        found = held_out(model, valid, tokenizer, windows=EVAL_WINDOWS)
        return {"loss": found.loss, "bits_per_byte": found.bits_per_byte.value}

    model = config.model.build(seed=config.train.seed)
    fit(model, FromFunction(batches.micro_batches), next_token_loss, config.train, job, evaluate=evaluate)
    return job.finish(model)


def tokens_folder(data: str | None) -> Path:
    """The tokens artifact to read, the built-in one if none is given; of plain text it is said how it becomes one."""
    if not data:
        return builtin_data("tokens")
    path = Path(data)
    if path.exists() and not (path / MANIFEST).exists():
        raise ArtifactError(f"{data!r} is no tokens artifact", hint=f"make one of it first: llmdata tokens {data}")
    return path
