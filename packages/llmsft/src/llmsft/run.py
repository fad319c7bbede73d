"""Supervised fine-tuning: chats to an assistant."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from llmcore.builtin import builtin_data
from llmcore.chat import Rendered, render_chat
from llmcore.checkpoint import Checkpoint, load_checkpoint
from llmcore.errors import ConfigError
from llmcore.manifest import Manifest
from llmcore.model.adapters import add_adapters
from llmcore.model.transformer import Transformer
from llmcore.options import required
from llmcore.records import Chat, Message, load_splits
from llmcore.tokenizer import Tokenizer, require_same_tokenizer
from llmcore.train.device import resolve_device
from llmcore.train.loop import fit
from llmcore.train.rehearsal import Rehearsal
from llmcore.train.run import Run
from llmcore.train.samples import Prompting
from llmcore.train.schedule import warmup_steps
from llmcore.train.source import FromFunction
from llmsft.batches import ChatBatches, Epochs, Order, Rows, check_dropped, numbered_rows
from llmsft.config import SFTConfig
from llmsft.curriculum import ByLoss, Examples, Ramp, Scores
from llmsft.evaluate import held_out_loss
from llmsft.loss import sft_loss
from llmsft.packing import relative_pair_cost
from llmsft.preview import one_line, summary
from llmsft.reference import stored_losses

EVAL_CHATS = 256
SAMPLED_CHATS = 3
SHOWN_ROWS = 3


def run(
    config: SFTConfig, out: Path, *, resume: str | Rehearsal = "auto", json: bool = False, quiet: bool = False
) -> Manifest:
    """Fine-tune the policy in `inputs.base` on chats and write a policy, or with LoRA an adapter, to `out`."""
    start = prepare(config, make=isinstance(resume, str))
    job = Run(
        out,
        made_by="llmsft run",
        config=config,
        parents=start.parents,
        tokenizer=start.base.tokenizer,
        resume=resume,
        json=json,
        quiet=quiet,
        facts=facts(config, start),
        prompting=Prompting(questions(start.held_out), partial(as_question, tokenizer=start.base.tokenizer)),
        next_commands=[f"llmcore chat {out}", f"llmsft eval {start.folder} {out} --data {start.data}"],
    )
    model, tokenizer, watched = start.base.model, start.base.tokenizer, start.watched.rendered
    with job:
        batches = ChatBatches(
            start.rows.rendered,
            pad_id=tokenizer.pad_id,
            train=config.train,
            order=curriculum_order(config, start, job),
            pair_cost=relative_pair_cost(model.config) if config.data.packing else None,
            max_length=model.config.context,
        )
        if config.lora is not None:
            add_adapters(model, config.lora, seed=config.train.seed)

        def evaluate(model: Transformer) -> dict[str, float]:
            return {"loss": held_out_loss(model, watched, pad_id=tokenizer.pad_id)}

        fit(
            model,
            FromFunction(batches.micro_batches, partial(data_rows, batches, start.rows)),
            sft_loss(config.loss_type, config.loss, neftune_noise_alpha=config.neftune_noise_alpha),
            config.train,
            job,
            evaluate=evaluate if watched else None,
        )
        return job.finish(model, counts=start.rows.counts, base=("base", start.folder))


class Start(NamedTuple):
    """What a run begins with."""

    folder: Path
    """Of the base."""
    data: Path
    base: Checkpoint
    reference: Checkpoint
    """What a curriculum by loss asks."""
    chats: list[Chat]
    held_out: list[Chat]
    rows: Rows
    watched: Rows
    """The first few of those held out, cut and masked like the others: what `val_loss` is of."""
    parents: dict[str, Manifest]


def prepare(config: SFTConfig, *, make: bool = True) -> Start:
    """Read the base and the conversations, and render them; built-in conversations may be made if `make`."""
    folder = required(config.inputs.base, "--base", "the policy to fine-tune")
    data = Path(config.inputs.data) if config.inputs.data else builtin_data("chats", make=make)
    base = load_checkpoint(folder, expect="policy")
    keys = config.curriculum.by.keys() if config.curriculum else ()
    chats, held_out, data_manifest = load_splits(data, Chat, keep=keys)
    max_length = min(config.data.max_length or base.model.config.context, base.model.config.context)
    rows, watched = (
        numbered_rows(
            some, base.tokenizer, max_length=max_length, completion_only_loss=config.data.completion_only_loss
        )
        for some in (chats, held_out[:EVAL_CHATS])
    )
    check_dropped(rows, allowed=config.data.max_dropped, max_length=max_length)
    parents = {"base": base.manifest, "data": data_manifest}
    reference = base
    if config.inputs.reference is not None:
        reference = reference_policy(config, base)
        parents["reference"] = reference.manifest
    return Start(folder, data, base, reference, chats, held_out, rows, watched, parents)


def reference_policy(config: SFTConfig, base: Checkpoint) -> Checkpoint:
    """The reference of a curriculum by loss, which reads the same tokens as the base."""
    other = config.inputs.reference
    if config.curriculum is None or not isinstance(config.curriculum.by, ByLoss):
        raise ConfigError(f"--reference {other!r}: nothing asks it", hint="set curriculum.by=loss, or leave it out")
    reference = load_checkpoint(Path(str(other)), expect="policy")
    require_same_tokenizer(str(other), reference.tokenizer, base.tokenizer, of="the base")
    return reference


def curriculum_order(config: SFTConfig, start: Start, job: Run) -> Order | None:
    """Which rows a step sees, if a curriculum says so."""
    curriculum, train, rows = config.curriculum, config.train, start.rows
    if curriculum is None:
        return None
    scores = curriculum.by.scores(
        Examples(
            rows.rendered,
            [start.chats[number] for number in rows.numbers],
            rows.numbers,
            partial(reference_losses, config, start, job),
        )
    )
    after = Epochs(rows.rendered, train, sort=not config.data.packing)
    return Ramp(scores, curriculum, batch=train.batch, steps=train.steps, seed=train.seed, after=after.rows_of)


def reference_losses(config: SFTConfig, start: Start, job: Run, rows: Sequence[Rendered]) -> Scores:
    """Nats per trained token of each row under the reference checkpoint, made once a run, by rank 0."""
    ranks = job.engine.ranks
    found = (
        stored_losses(
            job.folder,
            start.reference.model.to(resolve_device(config.train.device)),
            rows,
            pad_id=start.reference.tokenizer.pad_id,
            reference=start.reference.manifest.id,
        ).tolist()
        if ranks.main
        else None
    )
    return np.array(ranks.first(found), dtype=np.float64)


def facts(config: SFTConfig, start: Start) -> dict[str, str]:
    """What the start panel says of the inputs: where the loss falls above all."""
    train, rows = config.train, start.rows
    trained, tokens = rows.counts["trained tokens"], rows.counts["tokens in rows"]
    assert 0 < trained <= tokens, f"{trained} of {tokens} tokens are trained on"
    passes = train.steps * train.batch / len(rows.rendered)
    found = {
        "base": f"{start.folder} · {start.base.manifest.id}",
        "data": f"{start.data} · {summary(rows.counts)} · {passes:.1f} epochs",
        "held out": summary(start.watched.counts) if start.watched.rendered else unwatched(start.held_out),
    }
    for number, row in enumerate(rows.rendered[:SHOWN_ROWS], 1):
        found[f"example {number}"] = one_line(row, start.base.tokenizer, longest=120)
    if config.curriculum is not None:
        ramp = config.curriculum
        steps = warmup_steps(ramp.ramp, train.steps)
        found["order"] = (
            f"by {ramp.by.kind} · {ramp.start:.0%} of it at first, all from step {steps} ({ramp.pacing.kind})"
        )
    return found


def unwatched(held_out: Sequence[Chat]) -> str:
    """Why there is nothing to evaluate."""
    why = f"no answer of {len(held_out)} conversations begins within data.max_length" if held_out else "nothing"
    return f"{why}: no val_loss"


def data_rows(batches: ChatBatches, rows: Rows, step: int) -> list[int]:
    """The numbers of the conversations that a step sees, in the order of the data."""
    return [rows.numbers[row] for row in batches.data_rows(step)]


def questions(chats: Sequence[Chat]) -> list[str]:
    """What the first few held-out conversations ask: the samples during the run answer it."""
    asked = [[m.content for m in chat.messages if m.role == "user"] for chat in chats[:SAMPLED_CHATS]]
    return [contents[0] for contents in asked if contents]


def as_question(text: str, tokenizer: Tokenizer) -> list[int]:
    """A text as a conversation that waits for its answer."""
    return render_chat([Message(role="user", content=text)], tokenizer, generation_prompt=True).ids
