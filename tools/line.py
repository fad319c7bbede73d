"""Runs a line of commands once: what is complete, and made from the same inputs, is left alone.

A command is known by its words, the text of its settings and the ids of its input artifacts. What it made, how long it
took (over all its starts) and its largest memory are kept in `report.json`, written after every command.
"""

import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from llmcore.errors import ArtifactError
from llmcore.manifest import file_entry, read_manifest
from llmcore.storage import sha256_file, write_durably

ROOT = Path(__file__).resolve().parent.parent
"""The repository, where everything runs."""
SCHEMA_VERSION = 1
REPORT = "report.json"

console = Console(stderr=True, highlight=False)


class Job(NamedTuple):
    """One command: what it reads and what it makes."""

    name: str
    words: tuple[str, ...]
    out: Path
    """An artifact's folder, or the .json file that takes what the command prints."""
    inputs: tuple[Path, ...] = ()
    """Artifacts that it reads."""
    files: tuple[Path, ...] = ()
    """Files that it reads: its settings."""
    always: bool = False
    """Ask the command itself whether there is anything to do: its inputs are no artifacts."""

    @property
    def prints(self) -> bool:
        """Whether what it makes is what it prints."""
        return self.out.suffix == ".json"


def job(name: str, words: str, *more: object, out: Path, reads: Sequence[Path] = (), files: Sequence[Path] = (),
        always: bool = False) -> Job:  # fmt: skip
    """A command and what it reads and makes."""
    return Job(name, (*words.split(), *map(str, more)), out, tuple(reads), tuple(files), always)


class Step(NamedTuple):
    """Commands under one heading."""

    name: str
    title: str
    jobs: tuple[Job, ...]
    together: bool = False
    """Run them side by side, each with its share of the cores."""


class StepError(Exception):
    """A command of the line failed or was interrupted."""

    def __init__(self, job: Job, code: int) -> None:
        super().__init__(f"{job.name} ended with code {code}")
        self.job, self.code = job, code


def explain(error: StepError) -> int:
    """Say in one sentence what happened to the line; the command itself has said why."""
    again = "give the same command again to go on"
    if error.code in (130, 143):
        print(f"\nstopped during {error.job.name}: {again}", file=sys.stderr)
    else:
        command = " ".join(error.job.words[:2])
        print(
            f"\nerror: {command} ended with code {error.code}: mend what it says above, then {again}", file=sys.stderr
        )
    return error.code


class Line:
    """The commands that were run in a folder, and what is known of each: `report.json`."""

    def __init__(self, out: Path, **about: Any) -> None:
        self.path = out / REPORT
        fresh = {"schema_version": SCHEMA_VERSION, "steps": {}, "jobs": {}}
        self.record: dict[str, Any] = {**(read_record(out) if self.path.exists() else fresh), **about}

    def save(self) -> None:
        """Write the record."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(self.path, (json.dumps(self.record, indent=1, ensure_ascii=False) + "\n").encode())

    def run(self, steps: Sequence[Step], *, keep_going: bool) -> int:
        """Every step in order; the exit code of the first failure, which ends the line unless it keeps going."""
        failed = 0
        for number, step in enumerate(steps, 1):
            heading = f"step {number}/{len(steps)} · {step.title}"
            todo = [job for job in step.jobs if not self.is_complete(job)]
            if not todo:
                console.print(f"[dim]{heading} · complete[/dim]")
                continue
            console.rule(f"[bold]{heading}[/bold]", align="left", style="cyan")
            started_at = time.perf_counter()
            try:
                for job, code in self.run_jobs(todo, together=step.together):
                    if code and (not keep_going or code in (130, 143)):
                        raise StepError(job, code)
                    failed = failed or code
            finally:
                entry = self.record["steps"].setdefault(step.name, {"title": step.title, "seconds": 0.0})
                entry["seconds"] = round(entry["seconds"] + time.perf_counter() - started_at, 2)
                self.save()
        return failed

    def run_jobs(self, jobs: Sequence[Job], *, together: bool) -> Iterator[tuple[Job, int]]:
        """(job, exit code) as they end; side by side, as many at a time as there are cores."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        lanes = min(len(jobs), cores) if together else 1
        waiting, running = list(jobs), list[Child]()
        try:
            while waiting or running:
                while waiting and len(running) < lanes:
                    running.append(Child(waiting.pop(0), threads=cores // lanes if lanes > 1 else None))
                for child in [child for child in running if child.has_ended()]:
                    running.remove(child)
                    self.note(child)
                    yield child.job, child.code
                time.sleep(0.02)
        except KeyboardInterrupt:  # the terminal told the commands too: they save what they can go on from
            for child in running:
                child.end()
            raise StepError(running[0].job if running else jobs[-1], 130) from None
        finally:
            for child in running:
                child.end(tell=True)
                self.note(child)

    def note(self, child: "Child") -> None:
        """Add a command's time, memory and outcome to the record."""
        job, entry = child.job, self.record["jobs"].setdefault(child.job.name, {"seconds": 0.0, "peak_bytes": 0})
        entry |= {
            "command": " ".join(quote(word) for word in job.words),
            "out": str(job.out),
            "seconds": round(entry["seconds"] + child.seconds, 2),
            "peak_bytes": max(entry["peak_bytes"], child.peak_bytes),
            "code": child.code,
            "key": key_of(job) if child.code == 0 else "",
            "made": made_by(job) if child.code == 0 else "",
        }
        self.save()

    def is_complete(self, job: Job) -> bool:
        """Whether the job has made, from the same inputs, what lies there now."""
        entry = self.record["jobs"].get(job.name)
        if entry is None or entry["code"] or job.always:
            return False
        try:
            return bool(entry["key"] == key_of(job) and entry["made"] == made_by(job))
        except (ArtifactError, OSError):
            return False


class Child:
    """A running command; the terminal is its own, so that its live view is seen."""

    def __init__(self, job: Job, *, threads: int | None) -> None:
        self.job, self.code, self.seconds, self.peak_bytes = job, -1, 0.0, 0
        job.out.parent.mkdir(parents=True, exist_ok=True)
        self.partial = job.out.with_suffix(".partial")
        environment = dict(os.environ) | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
        self.started_at = time.perf_counter()
        with self.partial.open("wb") if job.prints else open(os.devnull) as printed:  # noqa: PTH123
            stdout = printed if job.prints else None
            self.process = subprocess.Popen([program(job.words[0]), *job.words[1:]], stdout=stdout, env=environment)

    def has_ended(self, *, wait: bool = False) -> bool:
        """Whether the command has ended; then its code, time and memory are known, and what it printed is in place."""
        pid, status, usage = os.wait4(self.process.pid, 0 if wait else os.WNOHANG)
        if pid == 0:
            return False
        code = os.waitstatus_to_exitcode(status)
        self.process.returncode = code
        self.code = code if code >= 0 else 128 - code
        self.seconds = time.perf_counter() - self.started_at
        self.peak_bytes = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        if self.job.prints and self.code == 0:
            self.partial.replace(self.job.out)
        elif self.job.prints:
            self.partial.unlink(missing_ok=True)
        return True

    def end(self, *, tell: bool = False) -> None:
        """Wait until the command has ended; a running one may be told to save and stop."""
        if self.code == -1:
            if tell:
                os.kill(self.process.pid, signal.SIGTERM)
            self.has_ended(wait=True)


def program(name: str) -> str:
    """The full path of one of our commands, installed beside this Python."""
    return shutil.which(name, path=sysconfig.get_path("scripts")) or name


def key_of(job: Job) -> str:
    """What a command's result is a function of: its words, its settings, its inputs and this Python."""
    parts = [platform.python_version(), *job.words, *(sha256_file(path) for path in job.files)]
    parts += [read_manifest(path).id for path in job.inputs]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def made_by(job: Job) -> str:
    """The identity of what a command made, read without a look at the weights."""
    return file_entry(job.out).sha256 if job.prints else read_manifest(job.out).id


def read_record(out: Path) -> dict[str, Any]:
    """`report.json` of a folder."""
    path = out / REPORT
    try:
        record = json.loads(path.read_bytes())
        found = record["schema_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path} is no report: {error}", hint="remove it: every result lies beside it") from None
    if found != SCHEMA_VERSION:
        raise ArtifactError(f"{path} has schema version {found!r}, not {SCHEMA_VERSION}", hint="choose another --out")
    return dict(record)


def quote(word: str) -> str:
    return f"'{word}'" if " " in word or "*" in word else word


def from_root(given: str | Path) -> Path:
    """A path as seen from the root of the repository."""
    path = Path(given).absolute()
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
