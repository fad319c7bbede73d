"""Run the project's commands in children forked from a process that has torch loaded: 0.1 s each instead of 3."""

import contextlib
import importlib
import multiprocessing
import os
import socket
import sys
import tempfile
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import NamedTuple

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        "llmcore.train.loop",
        "llmcore.train.run",
        "llmcore.train.fsdp",
        "llmcore.train.ddp",
        "llmcore.checkpoint",
        "llmcore.generate.engine",
        "tokenizers",
        "rich",
    ]
)


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


def run(*words: str | Path, cwd: Path, limit: float = 120, site: Path | None = None) -> Done:
    """Run a command line, `run("llmsft", "run", "--base", base, cwd=folder)`, to its end; `site` as in `start`."""
    child = start(*words, cwd=cwd, site=site)
    child.process.join(limit)
    if child.process.is_alive():
        child.process.kill()
        raise TimeoutError(f"{words} did not end within {limit} s")
    return child.result()


class Child(NamedTuple):
    """A command that runs."""

    process: ForkServerProcess
    output: Path
    words: list[str]

    def result(self) -> Done:
        """Code and output; a child killed by signal n has code -n."""
        self.process.join()
        code = self.process.exitcode
        assert code is not None
        return Done(code, (self.output / "out").read_text(), (self.output / "err").read_text())

    def kill_when(self, ready: "ReadyTest", *, limit: float = 60) -> bool:
        """kill -9 once `ready()` holds; False if it ended before."""
        deadline = time.monotonic() + limit
        while self.process.is_alive() and not ready():
            assert time.monotonic() < deadline, f"{self.words}: nothing to kill within {limit} s"
            time.sleep(0.002)
        killed = self.process.is_alive()
        self.process.kill()
        self.process.join()
        return killed


class ReadyTest:
    """Something to wait for: a file that matches a pattern."""

    def __init__(self, folder: Path, pattern: str) -> None:
        self.folder, self.pattern = folder, pattern

    def __call__(self) -> bool:
        return any(self.folder.glob(self.pattern))


def run_ranks(*words: str | Path, cwd: Path, size: int = 2, limit: float = 120) -> list[Done]:
    """Run a command line in several processes of one run, to its end: what `torchrun --nproc-per-node` does."""
    children = start_ranks(*words, cwd=cwd, size=size)
    deadline = time.monotonic() + limit
    for child in children:
        child.process.join(max(0.0, deadline - time.monotonic()))
    if any(child.process.is_alive() for child in children):
        for child in children:
            child.process.kill()
        raise TimeoutError(f"{words} did not end within {limit} s")
    return [child.result() for child in children]


def start_ranks(*words: str | Path, cwd: Path, size: int = 2) -> list[Child]:
    """Start a command line in several processes of one run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    places = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]
    return [start(*words, cwd=cwd, environment=shared | place) for place in places]


def start(*words: str | Path, cwd: Path, site: Path | None = None, environment: dict[str, str] | None = None) -> Child:
    """Start a command line in a child of the fork server; `site` holds further installed packages (see outside.py)."""
    output = Path(tempfile.mkdtemp(dir=cwd, prefix=".output-"))
    for name in ("out", "err"):
        (output / name).touch()
    line = [str(word) for word in words]
    process = SERVER.Process(target=enter, args=(line, str(cwd), str(output), site, environment or {}))
    process.start()
    return Child(process, output, line)


def enter(words: list[str], cwd: str, output: str, site: Path | None, environment: dict[str, str]) -> None:
    """The child: a fresh command with its own standard streams."""
    os.chdir(cwd)
    if site is not None:
        sys.path.append(str(site))
    for number, name in ((1, "out"), (2, "err")):
        descriptor = os.open(f"{output}/{name}", os.O_WRONLY | os.O_CREAT)
        os.dup2(descriptor, number)
    sys.stdout = open(1, "w", closefd=False, buffering=1)  # noqa: SIM115
    sys.stderr = open(2, "w", closefd=False, buffering=1)  # noqa: SIM115
    sys.argv = words
    os.environ |= {"COLUMNS": "200", "OMP_NUM_THREADS": "1", **environment}
    importlib.import_module("torch").set_num_threads(1)
    with contextlib.suppress(BrokenPipeError):
        importlib.import_module(f"{words[0]}.cli").main()
