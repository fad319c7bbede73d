"""`config show | init | schema`: the settings of a command as they are now, as a commented file, as a JSON schema."""

import json
from collections.abc import Callable, Mapping

import typer

from llmcore.command import new_app
from llmcore.config import Config, load_config
from llmcore.options import Settings

SettingsClass = Callable[[], type[Config]]
"""Asked for late, because importing the settings of a stage may import torch."""


def add_config_commands(app: typer.Typer, settings_class: SettingsClass | Mapping[str, SettingsClass]) -> None:
    """Add `config show | init | schema`; of several commands with their own settings, `config NAME show | …` each."""
    if not isinstance(settings_class, Mapping):
        app.add_typer(config_commands(settings_class, "this stage"), name="config")
        return
    groups = new_app("The settings of each command.")
    for name, each in settings_class.items():
        groups.add_typer(config_commands(each, name), name=name)
    app.add_typer(groups, name="config")


def config_commands(settings_class: SettingsClass, name: str) -> typer.Typer:
    commands = new_app(f"The settings of {name}: what they are now, a commented file, a JSON schema.")

    @commands.command()
    def show(settings: Settings = None) -> None:
        """Print the resolved settings as JSON."""
        print(load_config(settings_class(), settings or []).model_dump_json(indent=2))

    @commands.command()
    def init() -> None:
        """Print a TOML file of every setting with its default and its help."""
        print("\n".join(template(settings_class()())))

    @commands.command()
    def schema() -> None:
        """Print the JSON schema of the settings, for editors."""
        print(json.dumps(settings_class().model_json_schema(), indent=2))

    return commands


def template(config: Config, section: str = "") -> list[str]:
    """A settings file with each field's help as a comment; unset (None) fields stand commented out."""
    lines: list[str] = [f"[{section}]"] if section else []
    tables: list[tuple[str, Config]] = []
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, Config):
            tables.append((f"{section}.{name}" if section else name, value))
            continue
        lines += [f"# {line}" for line in (field.description or "").splitlines()]
        shown = json.dumps(list(value) if isinstance(value, tuple) else value, default=kind_of)
        lines.append(f"# {name} =" if value is None else f"{name} = {shown}")
    for inner_section, inner in tables:
        lines += ["", *template(inner, inner_section)]
    return lines


def kind_of(value: object) -> str:
    """What stands for a part in a list of parts: its kind."""
    return str(getattr(value, "kind", value))
