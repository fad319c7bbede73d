"""`llmdata tokenizer | tokens | records`, and their settings."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from llmcore import command
from llmcore.config import load_config
from llmcore.errors import ConfigError
from llmcore.next_command import as_typed
from llmcore.settings_commands import SettingsClass, add_config_commands
from llmdata.artifact import Made
from llmdata.config import RecordsConfig, TokenizerConfig, TokensConfig

app = command.new_app("Text to tokenizers, token shards and records.")

Arguments = Annotated[
    list[str] | None,
    typer.Argument(metavar="PATHS|SETTINGS", help="Inputs; TOML files and key=value settings, applied in order."),
]
OutOption = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Output folder, below runs/ by default.")]
MapOption = Annotated[
    str | None, typer.Option("--map", metavar="OURS=THEIRS,…", help="Where the rows keep what we need.")
]
TokenizerOption = Annotated[
    str | None, typer.Option("--tokenizer", metavar="DIR", help="What llmdata tokenizer made; without it, bytes.")
]
KindOption = Annotated[
    str | None, typer.Option("--kind", metavar="chats|preferences|prompts", help="What a row becomes.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the manifest as JSON on stdout.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]


@app.command()
def tokenizer(
    arguments: Arguments = None,
    out: OutOption = None,
    map_: MapOption = None,
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Learn a byte-pair tokenizer from text (by default, from the standard library of this Python).

    llmdata tokenizer novels/ --out runs/tok vocab_size=4096
    """
    settings, paths = split_arguments(arguments or [])
    config = load_config(TokenizerConfig, settings, options(paths, "inputs.text", map_))
    from llmdata.bpe import make_tokenizer

    target = out or Path("runs") / "tokenizer"
    started_at = time.perf_counter()
    made = make_tokenizer(config, target)
    if json_ or not quiet:
        report(
            made,
            target,
            elapsed=time.perf_counter() - started_at,
            following=f"llmdata tokens --tokenizer {target}",
            json_=json_,
        )


@app.command()
def tokens(
    arguments: Arguments = None,
    out: OutOption = None,
    tokenizer: TokenizerOption = None,
    map_: MapOption = None,
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Encode text as token shards, train and valid (by default, the standard library of this Python).

    llmdata tokens novels/*.txt --tokenizer runs/tok --out runs/data/novels
    """
    settings, paths = split_arguments(arguments or [])
    named = options(paths, "inputs.text", map_)
    if tokenizer is not None:
        named["inputs.tokenizer"] = tokenizer
    config = load_config(TokensConfig, settings, named)
    from llmdata.tokenize import make_tokens

    target = out or Path("runs") / "data" / (Path(paths[0]).stem if paths else "tokens")
    started_at = time.perf_counter()
    made = make_tokens(config, target)
    if json_ or not quiet:
        report(
            made,
            target,
            elapsed=time.perf_counter() - started_at,
            following=f"llmpretrain run --data {target}",
            json_=json_,
        )


@app.command()
def records(
    arguments: Arguments = None,
    out: OutOption = None,
    kind: KindOption = None,
    map_: MapOption = None,
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Convert rows to chats, preferences or prompts (by default, built-in Python expressions).

    llmdata records gsm8k/train.jsonl --kind chats --map prompt=question,completion=answer --out runs/data/gsm8k
    """
    settings, paths = split_arguments(arguments or [])
    named = options(paths, "inputs.records", map_)
    if kind is not None:
        named["rows"] = kind
    config = load_config(RecordsConfig, settings, named)
    from llmdata.convert import make_records

    target = out or Path("runs") / "data" / (Path(paths[0]).stem if paths else config.rows)
    following = {
        "chats": f"llmsft run --base POLICY --data {target}",
        "preferences": f"llmreward run --base POLICY --data {target}",
        "prompts": f"llmrl grpo --policy POLICY --prompts {target}",
    }
    started_at = time.perf_counter()
    made = make_records(config, target)
    if json_ or not quiet:
        report(made, target, elapsed=time.perf_counter() - started_at, following=following[config.rows], json_=json_)


SETTINGS: dict[str, SettingsClass] = {
    "tokenizer": lambda: TokenizerConfig,
    "tokens": lambda: TokensConfig,
    "records": lambda: RecordsConfig,
}
add_config_commands(app, SETTINGS)


def main() -> None:
    """The `llmdata` command."""
    command.main(app)


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """(settings, paths): an argument with `=` or ending in .toml is a setting, any other a path."""
    settings = [a for a in arguments if "=" in a or a.endswith(".toml")]
    return settings, [a for a in arguments if a not in settings]


def options(paths: list[str], key: str, map_: str | None) -> dict[str, object]:
    """Paths and `--map` as settings; no path leaves what a settings file says."""
    named: dict[str, object] = {key: paths} if paths else {}
    if map_ is not None:
        named["map"] = parse_map(map_)
    return named


def parse_map(text: str) -> dict[str, str]:
    """`prompt=question,completion=answer` as a table."""
    pairs = [pair.partition("=") for pair in text.split(",")]
    if not all(ours.strip() and theirs.strip() for ours, _, theirs in pairs):
        raise ConfigError(f"--map {text!r} is not OURS=THEIRS,…", hint="as --map prompt=question,completion=answer")
    return {ours.strip(): theirs.strip() for ours, _, theirs in pairs}


def report(made: Made, out: Path, *, elapsed: float, following: str, json_: bool) -> None:
    """One line of what there is now, and the next command."""
    if json_:
        print(made.manifest.model_dump_json(indent=2))
        return
    counts = ", ".join(f"{name} {count:,}" for name, count in made.manifest.counts.items() if "kind_" not in name)
    state = "is already there" if made.existed else f"made in {elapsed:.1f} s"
    print(f"{made.manifest.kind} {out} {state}: {counts}\nnext: {as_typed(following)}")
