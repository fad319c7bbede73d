"""What every command-line program here shares: exit codes, one-sentence errors, paths, inputs.

Exit codes: 0 ok; 1 unexpected (traceback in the run's log, or with LLM_DEBUG=1); 2 anything the user can mend;
130 and 143 by signal. Results go to stdout, progress and errors to stderr.
"""

import contextlib
import inspect
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, NoReturn, cast

import typer

from llmcore.config import Config, load_config
from llmcore.errors import ConfigError, ExtensionError, LLMError
from llmcore.extensions import installed, load_entry
from llmcore.process import prepare_process
from llmcore.storage import disk_error
from llmcore.train.distributed import LostContactError, place_from_environment

PATIENCE = 5.0
"""Seconds in which torchrun notices a process that failed, and ends the others."""

NOTHING_MADE: ContextVar[bool] = ContextVar("nothing_made", default=False)
"""Whether a command runs that writes nothing, for whose sake no built-in data are made."""

MAKING = {
    "tokens": "llmdata tokens --out runs/data/tokens",
    "chats": "llmdata records --kind chats --out runs/data/chats",
    "preferences": "llmdata records --kind preferences --out runs/data/preferences",
    "prompts": "llmdata records --kind prompts --out runs/data/prompts",
}
"""How each built-in artifact is made by hand."""

Settings = Annotated[
    list[str] | None,
    typer.Argument(metavar="SETTINGS", help="TOML files and key=value settings, applied in order."),
]
OutOption = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="Output folder; runs/<stage>-<settings file> by default.")
]
ResumeOption = Annotated[
    str, typer.Option("--resume", metavar="auto|never|STEP", help="auto: start, or go on where it stopped.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON on stdout: metrics lines, then the manifest.")]
ResultJsonOption = Annotated[bool, typer.Option("--json", help="The result as JSON on stdout.")]
DeviceOption = Annotated[
    str, typer.Option("--device", metavar="auto|cpu|cuda[:N]|mps", help="auto: CUDA, then Apple's MPS, then the CPU.")
]
DtypeOption = Annotated[
    str, typer.Option("--dtype", metavar="auto|fp32|bf16", help="Precision of the activations; weights stay fp32.")
]
TasksOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--tasks",
        metavar="PATH",
        help="Score by log-likelihood: BLiMP pairs, LAMBADA, multiple choice; a file, or a folder of sub-tasks; "
        "may be given again. Without --data nothing else is measured.",
    ),
]
TaskCountOption = Annotated[
    int | None, typer.Option("--task-count", min=1, help="Score this many items of each task, drawn with a fixed seed.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]


def new_app(help_text: str) -> typer.Typer:
    """A typer app with our habits: help when nothing is given, no locals in tracebacks."""
    return typer.Typer(
        help=help_text,
        no_args_is_help=True,
        add_completion=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def main(app: typer.Typer) -> NoReturn:
    """Run an app and exit: what a user can mend is one sentence and code 2."""
    prepare_process()
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGTERM, terminate)
    try:
        app()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except KeyboardInterrupt:
        code = 130
    except LLMError as error:
        let_the_cause_speak_first(error)
        code = fail(str(error))
    except MemoryError:
        code = fail("not enough memory", "lower train.micro_batch, model.width or model.context")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = 0
    except OSError as error:
        code = fail(str(disk_error(Path(str(error.filename or "output")), error)))
    except Exception as error:  # the command's main: the one place where anything may arrive
        let_the_cause_speak_first(error)
        code = unexpected(error)
    sys.exit(flush(code))


def flush(code: int) -> int:
    """Write out what was printed; output that cannot be written is an error, a reader that left is none."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return code if isinstance(error, BrokenPipeError) else fail(str(disk_error(Path("standard output"), error)))
    return code


def let_the_cause_speak_first(error: Exception) -> None:
    """Of several processes that fail together one shall say why: wait until torchrun ends those that only follow.

    The first process speaks for all who meet the same mistake; one that lost another leaves the word to that one.
    """
    place = place_from_environment(strict=False)
    if place.size > 1 and (place.rank > 0 or isinstance(error, LostContactError)):
        time.sleep(PATIENCE)
        print(f"process {place.rank} of {place.size}:", file=sys.stderr)


def fail(message: str, fix: str = "") -> int:
    """Print a user's mistake and return its exit code."""
    if os.environ.get("LLM_DEBUG"):
        traceback.print_exc()
    print(f"error: {message}" + (f"\n  fix: {fix}" if fix else ""), file=sys.stderr)
    return 2


def unexpected(error: Exception) -> int:
    """A defect of ours, or torch out of memory (which the user can mend)."""
    if type(error).__name__ == "OutOfMemoryError" or "not enough memory" in str(error):
        return fail(
            f"not enough memory: {str(error).splitlines()[0]}",
            "lower train.micro_batch, model.width or model.context",
        )
    traceback.print_exc()
    print(
        f"error: unexpected {type(error).__name__}: {error}\n  this is a defect: please report it",
        file=sys.stderr,
    )
    return 1


def terminate(_number: int, _frame: object) -> NoReturn:
    """SIGTERM outside a training loop: leave at once with the code that says so."""
    raise SystemExit(143)


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """(settings, paths): an argument with `=` or ending in .toml is a setting, any other a path."""
    settings = [a for a in arguments if "=" in a or a.endswith(".toml")]
    return settings, [a for a in arguments if a not in settings]


def default_out(stage: str, settings: Sequence[str]) -> Path:
    """`runs/<stage>-<config stem>`: the same command finds its own folder again."""
    stems = [Path(setting).stem for setting in settings if "=" not in setting]
    if not stems:
        return Path("runs") / stage
    return Path("runs") / (stems[-1] if stems[-1].startswith(f"{stage}-") else f"{stage}-{stems[-1]}")


def as_typed(words: str) -> str:
    """A command line to copy: through `uv run` where this one was given so."""
    return f"uv run {words}" if "UV_RUN_RECURSION_DEPTH" in os.environ else words


def builtin_data(name: str) -> Path:
    """The built-in artifact `name` below runs/data, made once by the installed llmdata."""
    out = Path("runs") / "data" / name
    if (out / "manifest.json").exists():
        return out
    if NOTHING_MADE.get():
        raise ConfigError(
            f"no {name} were given, the built-in ones are not made yet, and a plan makes nothing",
            hint=f"name them (--data or --prompts), or make them: {MAKING[name]}",
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
    make = cast(Callable[[Path], Path], load_entry(offered[name]))
    return make(out)


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


def required(value: str | None, option: str, what: str) -> Path:
    """An input that must be given."""
    if not value:
        raise ConfigError(f"{option} is missing: it names {what}", hint=f"add {option} FOLDER")
    return Path(value)


def given(**options: object) -> dict[str, object]:
    """The named options that were given, as dotted keys: `given(inputs__base=base)` -> {"inputs.base": base}."""
    return {name.replace("__", "."): str(value) for name, value in options.items() if value is not None}


def add_config_commands(app: typer.Typer, settings_class: Callable[[], type[Config]]) -> None:
    """Add `config show | init | schema`; the class is asked for late, because importing it may import torch."""
    commands = new_app("The settings of this stage: what they are now, a commented file, a JSON schema.")

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

    app.add_typer(commands, name="config")


def add_plan_command(app: typer.Typer, *runs: Callable[..., None]) -> None:
    """Add `plan`: what a command that trains would do; with several such commands, `plan NAME` for each."""
    if len(runs) == 1:
        app.command(name="plan")(planned(runs[0]))
        return
    plans = new_app("What a run would do: size, cost, memory, time. Writes nothing.")
    for run in runs:
        plans.command(name=run.__name__)(planned(run))
    app.add_typer(plans, name="plan")


def planned(run: Callable[..., None]) -> Callable[..., None]:
    """The same command with the same options, which ends before the first step and says what it would have done."""
    signature = inspect.signature(run)
    kept = [option for name, option in signature.parameters.items() if name not in ("resume", "quiet")]

    def plan(**options: object) -> None:
        from llmcore.train.plan import Plan

        json = bool(options.pop("json", False))
        chosen = NOTHING_MADE.set(True)
        try:
            run(**options, json=False, quiet=True, resume=Plan(json=json))
        finally:
            NOTHING_MADE.reset(chosen)

    plan.__doc__ = "What it would do: size, cost, memory, time, from one real micro-batch in memory. Writes nothing."
    plan.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
    plan.__annotations__ = {option.name: option.annotation for option in kept}
    return plan


def template(config: Config, section: str = "") -> list[str]:
    """A settings file with each field's help as a comment; unset (None) fields stand commented out."""
    lines: list[str] = [f"[{section}]"] if section else []
    tables: list[tuple[str, Config]] = []
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, Config):
            tables.append((f"{section}.{name}" if section else name, value))
            continue
        lines += [f"# {field.description}"] if field.description else []
        shown = json.dumps(list(value) if isinstance(value, tuple) else value, default=kind_of)
        lines.append(f"# {name} =" if value is None else f"{name} = {shown}")
    for inner_section, inner in tables:
        lines += ["", *template(inner, inner_section)]
    return lines


def kind_of(value: object) -> str:
    """What stands for a part in a list of parts: its kind."""
    return str(getattr(value, "kind", value))
