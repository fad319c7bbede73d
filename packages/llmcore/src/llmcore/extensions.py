"""Parts: a choice with settings of its own is a frozen config with a `kind` and a `build`.

The core knows its own kinds; any other `kind` is looked up among the entry points of installed packages, so that a
norm, a feed-forward or a reward of somebody else's joins without a line changed here:

    [project.entry-points."llmcore.norm"]
    scalenorm = "mypackage:ScaleNorm"
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points, packages_distributions, version
from typing import Any, cast, get_args

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, SerializerFunctionWrapHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from llmcore.config import Config
from llmcore.errors import ConfigError, ExtensionError


class Part(Config):
    """A replaceable part: `kind` names it, the other fields are its settings, `build` makes it."""

    kind: str
    """Which part this is."""


@dataclass(frozen=True)
class PartOf:
    """The annotation that turns a table with a `kind` into the config class of that kind."""

    group: str
    builtin: Mapping[str, type[Part]]

    def class_for(self, value: object) -> type[Part]:
        """The config class for a table; without a `kind`, the first of the core's own."""
        if isinstance(value, Part):
            return type(value)
        value = self.spelled(value)
        default = next(iter(self.builtin), "")
        kind = value.get("kind", default) if isinstance(value, dict) else value
        return find_part(self.group, str(kind), self.builtin)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        absent = type(None) in get_args(source)
        return core_schema.no_info_plain_validator_function(
            self.validate_optional if absent else self.validate,
            serialization=core_schema.wrap_serializer_function_ser_schema(dump_part, schema=handler(source)),
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """A table of one of the core's own kinds, a table of somebody else's, or the name of a kind."""
        own = [handler(kind.__pydantic_core_schema__) for kind in self.builtin.values()]
        others = {"type": "object", "required": ["kind"], "properties": {"kind": {"type": "string"}}}
        absent = [{"type": "null"}] if schema.get("function", {}).get("function") == self.validate_optional else []
        return {"anyOf": [*own, others, {"type": "string"}, *absent]}

    def validate_optional(self, value: object) -> Part | None:
        return None if value is None else self.validate(value)

    def validate(self, value: object) -> Part:
        if isinstance(value, Part):
            return value
        value = self.spelled(value)
        table = value if isinstance(value, dict) else {"kind": value}
        return self.class_for(table).model_validate(table)

    def spelled(self, value: object) -> object:
        """The same with a kind of the name `none`, which a command line reads as no value, where there is one."""
        if "none" not in self.builtin:
            return value
        if isinstance(value, dict):
            return {**value, "kind": "none"} if value.get("kind", "") is None else value
        return "none" if value is None else value


def part(group: str, **builtin: type[Part]) -> PartOf:
    """Annotate a field as a part: `AnyNorm = Annotated[Norm, part("llmcore.norm", rmsnorm=RMSNorm)]`.

    Where the type admits None (`Norm | None`), the part may be left out.
    """
    return PartOf(group, builtin)


def find_part(group: str, kind: str, builtin: Mapping[str, type[Part]]) -> type[Part]:
    """The config class of a kind: the core's own, or one that an installed package offers."""
    if kind in builtin:
        return builtin[kind]
    offered = installed(group)
    if kind in offered:
        return cast(type[Part], load_entry(offered[kind]))
    known = [*builtin, *offered]
    near = difflib.get_close_matches(kind, known, 1)
    if near:
        raise ConfigError(
            f"unknown kind {kind!r} — did you mean {near[0]!r}?", hint=f"choose one of {', '.join(known)}"
        )
    raise ExtensionError(
        f"kind {kind!r} is none of {', '.join(known)}, and no installed package offers it in {group!r}",
        hint="install the package that offers it (mixture of experts: packages/llmmoe), or choose another kind",
    )


def installed(group: str) -> dict[str, EntryPoint]:
    """What installed packages offer in one entry-point group, by name."""
    return {entry.name: entry for entry in entry_points(group=group)}


def all_offers() -> list[EntryPoint]:
    """What installed packages offer in all groups of ours."""
    groups = sorted(group for group in entry_points().groups if group.startswith("llm"))
    return [entry for group in groups for entry in entry_points(group=group)]


def load_entry(entry: EntryPoint) -> object:
    """Import what an entry point names; an import that fails names its package."""
    try:
        return entry.load()
    except (ImportError, AttributeError) as error:
        raise ExtensionError(
            f"{entry.group} {entry.name!r} ({entry.value}) cannot be imported: {error}",
            hint="mend that package, or install it again",
        ) from error


def provider(owner: type) -> tuple[str, str] | None:
    """(distribution, version) of the package a class comes from; None for llmcore's own and for loose scripts."""
    top = owner.__module__.partition(".")[0]
    if top == "llmcore":
        return None
    # Editable installs list no modules, but what they offer by entry point names its distribution.
    offering = [entry.dist.name for entry in all_offers() if entry.dist and entry.module.partition(".")[0] == top]
    names = packages_distributions().get(top, offering)
    return (names[0], version(names[0])) if names else None


def dump_part(value: Part | None, _handler: SerializerFunctionWrapHandler) -> dict[str, Any] | None:
    """All fields of the part's own class; pydantic alone would drop those of a subclass."""
    return None if value is None else value.model_dump(mode="json")


def needs_of(config: Config) -> dict[str, str]:
    """The packages, with versions, that the parts anywhere inside a config come from."""
    needs: dict[str, str] = {}
    for name in type(config).model_fields:
        value = getattr(config, name)
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, Config):
                needs |= needs_of(item)
    origin = provider(type(config)) if isinstance(config, Part) else None
    return needs | ({origin[0]: origin[1]} if origin else {})
