"""A Hugging Face config.json, read key by key; what is absent has the default that transformers gives it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmcore.errors import ArtifactError
from llmcore.storage import read_regular

LIMIT = 16 << 20
Json = dict[str, Any]


class Settings:
    """The keys of a config.json (or a table inside one), each asked for with its type and default."""

    def __init__(self, path: Path, values: Mapping[str, Any]) -> None:
        self.path = path
        self.values = dict(values)

    def number(self, name: str, default: float | None = None) -> float:
        """A number; needed where there is no default."""
        value = self.given(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(name, value, "a number")
        return float(value)

    def size(self, name: str, default: int | None = None) -> int:
        """A whole number above 0; needed where there is no default."""
        value = self.given(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.wrong(name, value, "a whole number above 0")
        return value

    def optional_size(self, name: str, default: int | None = None) -> int | None:
        """A whole number above 0, or null."""
        return None if self.values.get(name, default) is None else self.size(name, default)

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self.given(name, default)
        if not isinstance(value, bool):
            raise self.wrong(name, value, "true or false")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        """A word; needed where there is no default."""
        value = self.given(name, default)
        if not isinstance(value, str):
            raise self.wrong(name, value, "a word")
        return value

    def table(self, name: str) -> "Settings":
        """A table, empty where it is absent or null."""
        value = self.values.get(name) or {}
        if not isinstance(value, dict):
            raise self.wrong(name, value, "a table")
        return Settings(self.path, value)

    def only(self, name: str, *allowed: object, default: object = None) -> None:
        """Refuse a model whose setting computes something that ours cannot."""
        value = self.values.get(name, default)
        if value not in allowed:
            known = " or ".join(repr(one) for one in allowed)
            raise ArtifactError(
                f"{self.path}: {name}={value!r} is not supported for {self.values.get('model_type', 'this model')!r} "
                f"(supported: {known})",
                hint="import another model, or one without this setting",
            )

    def given(self, name: str, default: object) -> object:
        value = self.values.get(name)
        value = default if value is None else value
        if value is None:
            raise ArtifactError(f"{self.path} lacks {name!r}", hint="give a folder that save_pretrained wrote")
        return value

    def wrong(self, name: str, value: object, wanted: str) -> ArtifactError:
        return ArtifactError(
            f"{self.path}: {name}={value!r}, but {wanted} is needed", hint="mend it there, or download the model again"
        )


def read_settings(path: Path) -> Settings:
    """A config.json."""
    return Settings(path, read_json(path))


def read_json(path: Path, *, limit: int = LIMIT) -> Json:
    """A file that holds one JSON table."""
    try:
        values = json.loads(read_regular(path, limit=limit).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is not valid JSON: {error}", hint="restore it from a copy") from None
    if not isinstance(values, dict):
        raise ArtifactError(f"{path} holds no JSON table but {type(values).__name__}", hint="restore it from a copy")
    return values


def read_json_if_there(path: Path) -> Json:
    """The same; an absent file is an empty table."""
    return read_json(path) if path.exists() else {}
