"""Supervised fine-tuning: chats to an assistant."""

from pathlib import Path

from llmcore.checkpoint import load_checkpoint
from llmcore.command import builtin_data, required
from llmcore.losses import next_token_loss
from llmcore.manifest import Manifest
from llmcore.model.adapters import add_adapters
from llmcore.model.transformer import Transformer
from llmcore.records import Chat, load_records
from llmcore.train.loop import fit
from llmcore.train.run import Run
from llmcore.train.source import FromFunction
from llmsft.batches import ChatBatches
from llmsft.config import SFTConfig
from llmsft.evaluate import chat_loss

EVAL_CHATS = 256


def run(config: SFTConfig, out: Path, *, resume: str = "auto", json: bool = False, quiet: bool = False) -> Manifest:
    """Fine-tune the policy in `inputs.base` on chats and write a policy to `out`."""
    base = required(config.inputs.base, "--base", "the policy to fine-tune")
    data = Path(config.inputs.data) if config.inputs.data else builtin_data("chats")
    start = load_checkpoint(base, expect="policy")
    chats, data_manifest = load_records(data, Chat, "train")
    held_out, _ = load_records(data, Chat, "valid")
    batches = ChatBatches(
        chats,
        start.tokenizer,
        max_length=config.data.max_length or start.model.config.context,
        max_dropped=config.data.max_dropped,
        train=config.train,
    )
    job = Run(
        out,
        made_by="llmsft run",
        config=config,
        parents={"base": start.manifest, "data": data_manifest},
        tokenizer=start.tokenizer,
        resume=resume,
        json=json,
        quiet=quiet,
        facts={"data": describe(data, batches.counts), "base": f"{base} · {start.manifest.id}"},
        next_commands=[f"llmcore chat {out}", f"llmsft eval {base} {out} --data {data}"],
    )

    def evaluate(model: Transformer) -> dict[str, float]:
        return {"loss": chat_loss(model, held_out[:EVAL_CHATS], start.tokenizer)}

    if config.lora is not None:
        add_adapters(start.model, config.lora, seed=config.train.seed)
    fit(
        start.model,
        FromFunction(batches.micro_batches),
        next_token_loss,
        config.train,
        job,
        evaluate=evaluate if held_out else None,
    )
    return job.finish(start.model, counts=batches.counts, base=("base", base))


def describe(data: Path, counts: dict[str, int]) -> str:
    """The data in one line: how many rows, and how much of them is trained on."""
    share = counts["trained tokens"] / counts["tokens"]
    return f"{data} · {counts['rows']:,} chats · {counts['trained tokens']:,} trained tokens, {share:.0%} of all"
