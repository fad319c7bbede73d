"""Built-in data: what a stage works with when none are given, made once by the installed llmdata."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

from llmcore.errors import ConfigError, ExtensionError
from llmcore.extensions import installed, load_entry
from llmcore.next_command import as_typed
from llmcore.train.distributed import place_from_environment

MAKING = {
    "tokens": "llmdata tokens --out runs/data/tokens",
    "chats": "llmdata records --kind chats --out runs/data/chats",
    "preferences": "llmdata records --kind preferences --out runs/data/preferences",
    "prompts": "llmdata records --kind prompts --out runs/data/prompts",
}
"""How each built-in artifact is made by hand."""


def builtin_data(name: str, *, make: bool = True) -> Path:
    """The built-in artifact `name` below runs/data; where it is not there and may not be made, an error says how."""
    out = Path("runs") / "data" / name
    if (out / "manifest.json").exists():
        return out
    if not make:
        raise ConfigError(
            f"no {name} were given, the built-in ones are not made yet, and this command makes nothing",
            hint=f"name them (--data or --prompts), or make them: {as_typed(MAKING[name])}",
        )
    offered = installed("llmcore.builtin_data")
    if name not in offered:
        raise ExtensionError(
            f"no {name} were given, and no installed package makes built-in ones",
            hint="give them with --data (or --prompts), or install packages/llmdata",
        )
    if place_from_environment().rank > 0:
        return wait_for(out)
    print(f"no {name} given: making the built-in ones in {out} (once)", file=sys.stderr)
    maker = cast(Callable[[Path], Path], load_entry(offered[name]))
    return maker(out)


def wait_for(out: Path, *, limit: float = 600.0) -> Path:
    """An artifact that process 0 makes for all."""
    deadline = time.monotonic() + limit
    while not (out / "manifest.json").exists():
        if time.monotonic() > deadline:
            raise ExtensionError(
                f"process 0 made no {str(out)!r} within {limit:.0f} s that this machine sees",
                hint="make it before, with llmdata, on a disk that all machines share",
            )
        time.sleep(0.1)
    return out
