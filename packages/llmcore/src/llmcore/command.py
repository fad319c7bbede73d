"""The main of every command-line program here: its exit codes, and what is said of an error.

Exit codes: 0 ok; 1 unexpected (a traceback on stderr; of a run that trains also in OUT/run/defects.log); 2 anything
the user can mend (with LLM_DEBUG=1 also with its traceback); 130 and 143 by signal. Results go to stdout, progress and
errors to stderr.
"""

import contextlib
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import NoReturn

import typer

from llmcore.errors import LLMError
from llmcore.process import prepare_process
from llmcore.storage import disk_error
from llmcore.train.distributed import LostContactError, place_from_environment
from llmcore.train.memory import is_out_of_memory, out_of_memory

PATIENCE = 5.0
"""Seconds in which torchrun notices a process that failed, and ends the others."""


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
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = 0
    except Exception as error:  # the command's main: the one place where anything may arrive
        code = failed(error)
    sys.exit(flush(code))


def failed(error: Exception) -> int:
    """Say what is wrong; the exit code is 2 for what the user can mend, and 1 for a defect of ours."""
    if isinstance(error, OSError) and not is_out_of_memory(error):
        return fail(str(disk_error(Path(str(error.filename or "output")), error)))
    let_the_cause_speak_first(error)
    if isinstance(error, LLMError):
        return fail(str(error))
    if is_out_of_memory(error):
        return fail(str(out_of_memory(error)))
    traceback.print_exception(error)
    print(f"error: unexpected {type(error).__name__}: {error}\n  this is a defect: please report it", file=sys.stderr)
    return 1


def fail(message: str) -> int:
    """Print a user's mistake and return its exit code."""
    if os.environ.get("LLM_DEBUG"):
        traceback.print_exc()
    print(f"error: {message}", file=sys.stderr)
    return 2


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


def terminate(_number: int, _frame: object) -> NoReturn:
    """SIGTERM outside a training loop: leave at once with the code that says so."""
    raise SystemExit(143)
