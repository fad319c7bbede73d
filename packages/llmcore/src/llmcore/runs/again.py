"""What `llmcore replay` does first: which step of which run, and the stage whose function makes its model and loss."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast, get_type_hints

from llmcore.config import Config
from llmcore.errors import ArtifactError, ConfigError, ExtensionError
from llmcore.extensions import installed, load_entry
from llmcore.train.identity import NAME, Identity, read_identity

STAGES = "llmcore.stage"
"""The entry-point group of functions that train: `(config, out, *, resume, json, quiet)`, named as `llmsft.run`."""

DUMP = re.compile(r"step-(\d+)")

Stage = Callable[..., object]


class Which(NamedTuple):
    """A step to take again."""

    out: Path
    step: int
    dump: Path | None


def replay_step(path: Path, settings: Sequence[str], *, step: int | None, json: bool) -> None:
    """Take a step of a run again; `settings` may say where the run's inputs are now (`inputs.base=DIR`)."""
    from llmcore.train.replay import Replay

    which = find_step(path, step)
    identity = read_identity(which.out / "run" / NAME)
    stage = find_stage(identity, which.out)
    config = config_of(stage, identity, settings)
    stage(config, which.out, resume=Replay(which.step, dump=which.dump, json=json), json=False, quiet=True)


def find_step(path: Path, step: int | None) -> Which:
    """A nan-dump, or the folder that holds some, or a run with the number of a step."""
    if (path / "step.json").exists():
        return Which(path.absolute().parents[2], dumped_step(path), path)
    if (path / "run" / NAME).exists() and step is not None:
        if step < 1:
            raise ConfigError(f"--step {step}: steps are counted from 1", hint="give --step 1 or more")
        return Which(path, step, None)
    dumps = path if path.name == "nan-dump" else path / "run" / "nan-dump"
    found = sorted((dumped_step(folder), folder) for folder in dumps.glob("step-*")) if dumps.is_dir() else []
    if not found:
        raise ArtifactError(
            f"{path} is neither a run nor a nan-dump",
            hint="give OUT/run/nan-dump of a run that diverged, or OUT with --step N",
        )
    number, folder = found[-1]
    return Which(dumps.absolute().parents[1], number, folder)


def dumped_step(folder: Path) -> int:
    match = DUMP.fullmatch(folder.name)
    if match is None:
        raise ArtifactError(
            f"{folder} is no nan-dump: its name is not step-N", hint="give it back the name that the run gave it"
        )
    return int(match[1])


def find_stage(identity: Identity, out: Path) -> Stage:
    """The function that made a run, from the package that offers it."""
    name = identity.made_by.replace(" ", ".")
    offered = installed(STAGES)
    if name not in offered:
        raise ExtensionError(
            f"{out} was made by {identity.made_by!r}, which no installed package offers in {STAGES!r}",
            hint=f"install {identity.made_by.partition(' ')[0]}",
        )
    return cast(Stage, load_entry(offered[name]))


def config_of(stage: Stage, identity: Identity, settings: Sequence[str]) -> Config:
    """The settings of a run, with its inputs where they were or where `settings` say."""
    foreign = [setting for setting in settings if not setting.startswith("inputs.")]
    if foreign:
        raise ConfigError(
            f"{foreign[0]!r} would make it another run", hint="only inputs.NAME=PATH may be given to a replay"
        )
    kind: type[Config] = get_type_hints(stage)["config"]
    given: dict[str, Any] = dict(load_inputs(settings))
    known = {name: value for name, value in identity.inputs.items() if value is not None}
    return kind.model_validate({**identity.config, "inputs": {**known, **given}})


def load_inputs(settings: Sequence[str]) -> list[tuple[str, str]]:
    """`inputs.base=DIR` -> (base, DIR)."""
    pairs = (setting.removeprefix("inputs.").partition("=") for setting in settings)
    return [(name, value) for name, _, value in pairs]
