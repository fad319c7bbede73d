"""The command line of llmmoe."""

import json as json_library
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmcore import command
from llmcore.errors import ArtifactError, DataError
from llmcore.options import DeviceOption, ResultJsonOption

if TYPE_CHECKING:
    from torch import Tensor

    from llmcore.shards import TokenShards

ROWS = 16
"""Windows in one forward."""

app = command.new_app("Mixtures of experts: which experts serve. Pretrain one with model.feedforward.kind=moe.")


@app.callback()
def commands() -> None:
    """A command group even while there is one command."""


@app.command()
def usage(
    checkpoint: Annotated[Path, typer.Argument(metavar="DIR", help="A policy or reward with experts.")],
    data: Annotated[Path, typer.Option("--data", metavar="DIR", help="Tokens, as llmdata tokens makes them.")],
    split: Annotated[str, typer.Option("--split", help="Which split of the tokens.")] = "valid",
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="At most this many tokens.")] = 65_536,
    device: DeviceOption = "auto",
    json: ResultJsonOption = False,
) -> None:
    """Print the share of tokens that each expert serves, for each layer."""
    from llmcore.checkpoint import load_checkpoint
    from llmcore.manifest import verify_artifact
    from llmcore.shards import TokenShards
    from llmcore.train.device import resolve_device
    from llmmoe.usage import evenness, expert_usage

    loaded = load_checkpoint(checkpoint, expect=None, device=resolve_device(device))
    verify_artifact(data, expect="tokens")
    shards = TokenShards(data, split, tokenizer=loaded.tokenizer)
    context = loaded.model.config.context
    if len(shards) < context:
        raise DataError(
            f"{data} has {len(shards)} tokens in split {split!r}, the model reads {context} at a time",
            hint="give a longer text, or another --split",
        )
    shares = expert_usage(loaded.model, windows(shards, context=context, tokens=tokens))
    if not shares:
        raise ArtifactError(
            f"{checkpoint} has no experts: its feed-forward is {loaded.model.config.feedforward.kind!r}",
            hint="pretrain a mixture with llmpretrain run SETTINGS model.feedforward.kind=moe",
        )
    if json:
        print(json_library.dumps({"tokens": min(tokens, len(shards)), "shares": shares}))
        return
    print("shares of tokens by expert, the first expert first; evenness 1 is all alike, 0 is one for all")
    for layer, values in shares.items():
        print(f"{layer}  evenness {evenness(values):.3f}  " + " ".join(f"{value:6.1%}" for value in values))


def windows(shards: "TokenShards", *, context: int, tokens: int) -> "Iterator[Tensor]":
    """(B, context) ids, evenly spread over the split, at least one window."""
    import numpy as np
    import torch

    count = max(1, min(tokens, len(shards)) // context)
    starts = np.linspace(0, len(shards) - context, count).astype(np.int64)
    for first in range(0, count, ROWS):
        yield torch.from_numpy(shards.windows(starts[first : first + ROWS], context))


def main() -> None:
    """The entry point of `llmmoe`."""
    command.main(app)
