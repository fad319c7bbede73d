"""A Python program in a process of its own, with limits: did it run to its end?

On Linux (x86-64 and arm64) the kernel refuses the process everything but computing, reading files, and ending: no
network, no writing, no other process, no signal to others (seccomp, set by `llmrl.rewards.jail`). Everywhere on POSIX
its processor time, memory and open files are limited, it sees no environment, nothing it prints is kept, and when its
time is up it is killed with its whole session; an audit hook refuses to open anything outside the standard library.

**What this does not stop.** The audit hook is Python: a program that finds a way around it can read what this user can
read (but send it nowhere). A program can cheat its own tests, with an object that equals everything, or by looking in
the frames below it for the token that says "passed". Without seccomp (macOS) limits and hook are all there is: good
against mistakes, not against intent. For code of a model that is not trusted at all, use a virtual machine.
"""

import contextlib
import os
import secrets
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from llmcore.errors import ConfigError

JAIL = Path(__file__).with_name("jail.py")
REPORT_BYTES = 400
"""What is read of the program's report: a token, or why it failed."""
START_SECONDS = 2.0
"""For the interpreter to start, on a busy machine."""


class Limits(NamedTuple):
    """What a program may use."""

    seconds: float = 4.0
    """Wall-clock time."""
    cpu_seconds: int = 2
    """Processor time."""
    memory_mib: int = 256
    """Address space."""


class Outcome(NamedTuple):
    """How a program ended."""

    passed: bool
    """It ran to its end."""
    reason: str = ""
    """If not, why: an exception's name, `timeout`, or `killed`."""


def check_sandbox() -> None:
    """Refuse where a process cannot be limited."""
    if os.name != "posix":
        raise ConfigError(
            f"programs are run with POSIX limits, which {sys.platform!r} has not",
            hint="use Linux or macOS (or WSL) for the reward passes_tests",
        )


def run_program(program: str, limits: Limits = Limits()) -> Outcome:  # noqa: B008
    """Run a program to its end or its limits; no process of it is left."""
    token = secrets.token_hex(16)
    report, writing = os.pipe()
    try:
        process = start(limits, writing)
        try:
            with contextlib.suppress(BrokenPipeError), process.stdin as program_file:  # type: ignore[union-attr]
                program_file.write(f"{token}\n{program}".encode("utf-8", "replace"))
            said = read_report(report, START_SECONDS + limits.seconds)
        finally:
            kill_session(process)
    finally:
        os.close(report)
    if said == token.encode():
        return Outcome(True)
    if said is None or process.returncode == -signal.SIGXCPU:
        return Outcome(False, "timeout")
    return Outcome(False, said.decode("utf-8", "replace") or "killed")


def start(limits: Limits, writing: int) -> "subprocess.Popen[bytes]":
    """The jail, waiting for its program; the descriptor `writing` is handed over."""
    numbers = (writing, limits.cpu_seconds, limits.memory_mib)
    try:
        return subprocess.Popen(
            [sys.executable, "-P", "-s", "-S", "-B", str(JAIL), *map(str, numbers)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(writing,),
            cwd="/",
            env={"PYTHONHASHSEED": "0"},  # the same program always does the same
            start_new_session=True,
        )
    finally:
        os.close(writing)


def read_report(report: int, seconds: float) -> bytes | None:
    """What the process says before it ends, at most REPORT_BYTES; None if it takes longer than this."""
    ends_at = time.monotonic() + seconds
    said = b""
    while len(said) < REPORT_BYTES:
        ready, _, _ = select.select([report], [], [], max(0.0, ends_at - time.monotonic()))
        if not ready:
            return None
        piece = os.read(report, REPORT_BYTES)
        if not piece:
            break
        said += piece
    return said


def kill_session(process: "subprocess.Popen[bytes]") -> None:
    """End a process with all it started; it is not yet waited for, so that its number is still its own."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
