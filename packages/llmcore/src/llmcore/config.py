"""Settings: TOML files and dotted overrides, one list applied in order, into a frozen model.

    load_config(PretrainConfig, ["configs/pretrain/tiny.toml", "train.lr=2e-4", "model.depth=6"])

An argument without `=` is a file. Setting `kind` to another value drops what was set for the old kind, because
the new part has settings of its own. Every mistake is reported at once, with its file and line.
"""

import difflib
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from llmcore.errors import ArtifactError, ConfigError, ExtensionError
from llmcore.storage import read_regular


class Config(BaseModel):
    """A frozen set of settings that refuses unknown keys; the docstring below a field is its help."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )

    @model_validator(mode="before")
    @classmethod
    def keep_defaults(cls, tree: object) -> object:
        """A table given in part keeps, for the rest, what this class's own default for the field says."""
        if not isinstance(tree, dict):
            return tree
        defaults = {name: field.default for name, field in cls.model_fields.items()}
        return {name: below(defaults.get(name), value) for name, value in tree.items()}


def below(default: object, value: object) -> object:
    """A table laid over the settings that a default config was made with; a part of another kind starts anew."""
    if not isinstance(value, dict) or not isinstance(default, Config):
        return value
    kind = getattr(default, "kind", None)
    if value.get("kind", kind) != kind:
        return value
    own = {name: getattr(default, name) for name in default.model_fields_set}
    named = {} if kind is None else {"kind": kind}
    return named | own | {name: below(own.get(name), inner) for name, inner in value.items()}


C = TypeVar("C", bound=Config)
Tree = dict[str, Any]
KeyPath = tuple[str, ...]


def load_config(kind: type[C], settings: Sequence[str], options: Mapping[str, object] | None = None) -> C:
    """Apply TOML files, `key=value` settings, then named options (dotted key to value), and validate."""
    tree: Tree = {}
    origin: dict[KeyPath, str] = {}
    for setting in settings:
        for path, value, where in read_setting(setting):
            place(tree, origin, path, value, where)
    for dotted, value in (options or {}).items():
        place(tree, origin, tuple(dotted.split(".")), value, f"--{dotted.split('.')[-1]}")
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("\n".join(explain(error, kind, tree, origin))) from None
    except (ConfigError, ExtensionError) as error:
        raise type(error)(f"{place_of_kind(error.message, tree, origin)}{error.message}", hint=error.hint) from None


def read_setting(setting: str) -> Iterator[tuple[KeyPath, object, str]]:
    """Yield (path, value, where it stands) for each leaf of one file or one `key=value`."""
    key, equals, value = setting.partition("=")
    if equals:
        yield tuple(key.strip().split(".")), parse_value(value.strip()), setting
        return
    text = read_toml_text(Path(setting))
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            f"{setting}: not valid TOML: {error}",
            hint="mend that line; config init prints a settings file to begin from",
        ) from None
    for path, leaf in leaves(tree):
        yield path, leaf, f"{setting}:{line_of(text, path)}"


def read_toml_text(path: Path) -> str:
    if not path.exists():
        raise ConfigError(f"{str(path)!r}: no such settings file", hint="give a .toml file, or settings as key=value")
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no regular file"
        raise ConfigError(
            f"{str(path)!r} is {what}, not a settings file", hint="name inputs by their options: see --help"
        )
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}", hint="save the file as UTF-8") from None


def parse_value(text: str) -> object:
    """A TOML value where it is one, else the text itself; `none` is None."""
    words: dict[str, object] = {"none": None, "null": None, "true": True, "false": False}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def leaves(tree: Tree, prefix: KeyPath = ()) -> Iterator[tuple[KeyPath, object]]:
    """Each value of a nested table with its path; `kind` first, so that it clears before the rest is set."""
    for key in sorted(tree, key=lambda name: name != "kind"):
        value = tree[key]
        if isinstance(value, dict) and value:
            yield from leaves(value, (*prefix, key))
        else:
            yield (*prefix, key), value


def place(tree: Tree, origin: dict[KeyPath, str], path: KeyPath, value: object, where: str) -> None:
    """Set one value; a new `kind` drops its former siblings."""
    node = tree
    for depth, key in enumerate(path[:-1]):
        child = node.setdefault(key, {})
        if not isinstance(child, dict):
            dotted = ".".join(path[: depth + 1])
            raise ConfigError(
                f"{where}: {dotted} is the value {child!r}, it has no {path[depth + 1]!r}",
                hint="leave one of the two out",
            )
        node = child
    last = path[-1]
    if last == "kind" and node is not tree and node.get("kind", value) != value:
        node.clear()
    node[last] = value
    origin[path] = where


def explain(error: ValidationError, kind: type[BaseModel], tree: Tree, origin: dict[KeyPath, str]) -> list[str]:
    """One line for each mistake: where, which key, what is wrong, and the nearest known key."""
    lines = []
    for problem in error.errors(include_url=False):
        path = known_path(tree, tuple(str(part) for part in problem["loc"]))
        dotted = ".".join(path) or "settings"
        where = origin.get(path) or next((w for p, w in origin.items() if p[: len(path)] == path), "defaults")
        if problem["type"] == "extra_forbidden":
            near = difflib.get_close_matches(path[-1], fields_at(kind, tree, path[:-1]), 1, cutoff=0.5)
            advice = f" — did you mean {near[0]!r}?" if near else ""
            lines.append(f"{where}: {dotted}: unknown key{advice}")
        elif problem["type"] == "missing":
            lines.append(f"{dotted}: required, but not given")
        else:
            reason = problem["msg"].removeprefix("Value error, ")
            got = "" if isinstance(problem["input"], dict) else f" (got {problem['input']!r})"
            lines.append(f"{where}: {dotted}: {reason}{got}")
    return lines


def place_of_kind(message: str, tree: Tree, origin: dict[KeyPath, str]) -> str:
    """Where the part stands that a message names by its kind: pydantic lets errors of ours pass without a location."""
    for path, where in origin.items():
        node: object = tree
        for key in path:
            node = node.get(key) if isinstance(node, dict) else None
        if isinstance(node, str) and f"kind {node!r}" in message:
            return f"{where}: {'.'.join(path)}: "
    return ""


def read_saved(
    kind: type[C], path: Path, *, what: str, limit: int = 1 << 20, hint: str = "restore it from a copy"
) -> C:
    """A config that one of our artifacts keeps as JSON; `what` it is meant to be, for the message if it is not."""
    try:
        return kind.model_validate(json.loads(read_regular(path, limit=limit)))
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is not {what}: {first_problem(error)}", hint=hint) from None


def first_problem(error: Exception) -> str:
    """On one line, the first thing that pydantic found wrong in a file of ours; of any other error, its words."""
    if not isinstance(error, ValidationError):
        return str(error)
    problem = error.errors(include_url=False)[0]
    return ": ".join(part for part in (".".join(map(str, problem["loc"])), problem["msg"]) if part)


def known_path(tree: Tree, loc: KeyPath) -> KeyPath:
    """The part of pydantic's location that is ours: union tags and class names are not keys of the tree."""
    path: list[str] = []
    node: object = tree
    for part in loc:
        if isinstance(node, dict) and part in node:
            path.append(part)
            node = node[part]
        elif part == loc[-1] and part.isidentifier():
            path.append(part)
    return tuple(path)


def fields_at(kind: type[BaseModel], tree: Tree, path: KeyPath) -> list[str]:
    """The keys that are allowed at a path of the settings."""
    node: object = tree
    model: type[BaseModel] | None = kind
    for key in path:
        node = node.get(key, {}) if isinstance(node, dict) else {}
        model = field_model(model, key, node)
    return list(model.model_fields) if model else []


def field_model(model: type[BaseModel] | None, key: str, value: object) -> type[BaseModel] | None:
    """The config class that the field `key` holds: of a part, the class that its `kind` names."""
    field = model.model_fields.get(key) if model else None
    if field is None:
        return None
    for note in field.metadata:
        choose = getattr(note, "class_for", None)
        if choose is not None:
            return choose(value)  # type: ignore[no-any-return]
    candidates = (field.annotation, *get_args(field.annotation))
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)


def line_of(text: str, path: KeyPath) -> str:
    """The line of a TOML file on which a key stands; of an inline or dotted table, the line that begins it."""
    section: KeyPath = ()
    best = (0, "?")
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if stripped.startswith("["):
            section = split_key(stripped.strip("[] \t").split("]")[0])
            depth = len(section) if path[: len(section)] == section else 0
        else:
            key, equals, _ = stripped.partition("=")
            full = (*section, *split_key(key)) if equals else ()
            depth = len(full) if full and path[: len(full)] == full else 0
        if depth > best[0]:
            best = (depth, str(number))
    return best[1]


def split_key(key: str) -> KeyPath:
    return tuple(part.strip().strip("\"'") for part in key.strip().split("."))
