"""What must agree before a run goes on in a folder: who made it, the settings, and the parents.

`run/run.json` holds it, with the device and precision that `auto` was resolved to and the machine it ran on.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, JsonValue, ValidationError

from llmcore.config import Config, read_saved
from llmcore.errors import ConfigError, LLMError
from llmcore.manifest import ABSOLUTE_PATH, Manifest, plain_config
from llmcore.train.config import SAFE_TO_CHANGE, TrainConfig

NAME = "run.json"
LARGEST = 16 << 20
SHOWN = 12
"""Differences that are listed; the others are counted."""


class Identity(Config):
    """`run.json`: what a run is."""

    schema_version: int = Field(1, ge=1, le=1)
    """The version of this format."""
    made_by: str
    """The stage."""
    config: dict[str, JsonValue]
    """Its resolved settings, without the paths of the inputs."""
    parents: dict[str, str]
    """The ids of what it is made from, by role."""
    inputs: dict[str, JsonValue] = {}
    """Where those were, seen from where the command was given; not compared."""
    device: str = ""
    """What `auto` was resolved to."""
    dtype: str = ""
    """What `auto` was resolved to."""
    environment: dict[str, str] = {}
    """What bit-exactness depends on beyond this."""


def identity_of(*, made_by: str, config: Config, parents: Mapping[str, Manifest]) -> Identity:
    """The identity of a run about to start."""
    return Identity(
        made_by=made_by,
        config=json.loads(json.dumps(plain_config(config))),
        parents={role: parent.id for role, parent in sorted(parents.items())},
        inputs=inputs_of(config),
    )


def inputs_of(config: Config) -> dict[str, JsonValue]:
    """The settings `inputs`, with absolute paths as seen from here."""
    inputs = config.model_dump(mode="json").get("inputs") or {}
    return {
        name: ABSOLUTE_PATH.sub(lambda match: os.path.relpath(match[0]), value) if isinstance(value, str) else value
        for name, value in inputs.items()
    }


def read_identity(path: Path) -> Identity:
    """The identity of the run in a folder."""
    advice = "choose another --out, or restore it from a copy"
    return read_saved(Identity, path, what="the description of a run", limit=LARGEST, hint=advice)


def check_same_run(out: Path, *, found: Identity, wanted: Identity, config: Config) -> None:
    """Raise ConfigError with both values of everything that differs and may not."""
    safe = set(safe_paths(config))
    found = with_new_settings(found, type(config))
    differences = [
        f"{name} is {shown(new)}, it was {shown(old)}"
        for name, old, new in compare(flat(found), flat(wanted))
        if not any(name == other or name.startswith(f"{other}.") for other in safe)
    ]
    if differences:
        more = f"; and {len(differences) - SHOWN} more" if len(differences) > SHOWN else ""
        raise ConfigError(
            f"{out} holds another run: {'; '.join(differences[:SHOWN])}{more} (run/{NAME})",
            hint="give the settings it was started with, or choose another --out",
        )


def with_new_settings(found: Identity, kind: type[Config]) -> Identity:
    """An identity with the defaults of settings that came after it: what a run did before it could say so."""
    try:
        config = plain_config(kind.model_validate(found.config))
    except (ValidationError, LLMError):  # it had settings or parts that are gone: they are told as differences
        return found
    return found.model_copy(update={"config": json.loads(json.dumps(config))})


def safe_paths(config: Config, prefix: str = "") -> Iterator[str]:
    """The dotted names of settings that may change between two parts of a run."""
    if isinstance(config, TrainConfig):
        yield from (f"{prefix}{name}" for name in SAFE_TO_CHANGE)
    for name in type(config).model_fields:
        value = getattr(config, name)
        if isinstance(value, Config):
            yield from safe_paths(value, f"{prefix}{name}.")


def flat(identity: Identity) -> dict[str, JsonValue]:
    """Every compared value by its dotted name."""
    parents = {f"parent {role}": value for role, value in identity.parents.items()}
    return {"made_by": identity.made_by, **dict(leaves(identity.config)), **parents}


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


ABSENT = object()


def compare(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, object, object]]:
    """(name, old value, new value) of each difference."""
    for name in dict.fromkeys((*old, *new)):
        before, after = old.get(name, ABSENT), new.get(name, ABSENT)
        if before != after:
            yield name, before, after


def shown(value: object) -> str:
    return "not set" if value is ABSENT else repr(value)
