"""`llmcore import hf` and `llmcore export hf`: the commands."""

from pathlib import Path
from typing import Annotated

import typer

from llmcore import command
from llmcore.manifest import Manifest, read_manifest
from llmcore.options import BaseOption, ResultJsonOption, refuse_unused

import_app = command.new_app("Bring a model from elsewhere.")
export_app = command.new_app("Take a model elsewhere.")


@import_app.command("hf", no_args_is_help=True)
def import_from_hugging_face(
    source: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that save_pretrained wrote, or a download.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The checkpoint to write.")],
    chat: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The chat format, where the template is not known; none: without."),
    ] = None,
    context: Annotated[
        int | None, typer.Option(metavar="N", help="Longest sequence; all of the model's if left out.")
    ] = None,
    json: ResultJsonOption = False,
) -> None:
    """Turn a Hugging Face folder into a checkpoint; transformers is not needed."""
    from llmcore.huggingface.reading import import_hf

    report(import_hf(source, out, chat=chat, context=context), out, json=json)


@export_app.command("hf", no_args_is_help=True)
def export_to_hugging_face(
    checkpoint: Annotated[Path, typer.Argument(metavar="CKPT", help="A policy, reward model or adapter.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write.")],
    check: Annotated[
        bool, typer.Option("--check", help="Read it back and compare, bit for bit: weights, logits and tokenizer.")
    ] = False,
    base: BaseOption = None,
    json: ResultJsonOption = False,
) -> None:
    """Turn a checkpoint into a folder that transformers, TRL and vLLM load; an adapter into one for PEFT."""
    from llmcore.huggingface.peft import export_peft
    from llmcore.huggingface.writing import export_hf

    if (kind := read_manifest(checkpoint).kind) == "adapter":
        report(export_peft(checkpoint, out, base=base, check=check), out, json=json)
    else:
        refuse_unused(f"for a {kind}, which stands on no other model", base=base)
        report(export_hf(checkpoint, out, check=check), out, json=json)


def report(manifest: Manifest, out: Path, *, json: bool) -> None:
    """Say what was written."""
    if json:
        print(manifest.model_dump_json())
    else:
        details = ", ".join(f"{name} {value}" for name, value in manifest.config.items())
        print(f"{out}: {manifest.kind} {manifest.id} ({details})")
