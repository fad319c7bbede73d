"""Programs in a process of their own: what they may do, and what they may not."""

import platform
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from llmcore.records import Message, Prompt
from llmrl.rewards.programs import PassesTestsReward, code_of
from llmrl.rewards.reward import Sample
from llmrl.rewards.sandbox import JAIL, Limits, run_program

LIMITS = Limits(seconds=20.0, cpu_seconds=10)
IMPORTS = "import collections, dataclasses, functools, heapq, itertools, json, math, random, re, string, typing"


@pytest.mark.parametrize("program", ["", "x = 1\nassert x == 1", IMPORTS, "print('x' * 10_000_000)"])
def test_a_program_that_comes_to_its_end_passes(program: str) -> None:
    assert run_program(program, LIMITS) == (True, "")


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("assert 1 == 2, 'not so'", "AssertionError: not so"),
        ("x =", "SyntaxError"),
        ("raise SystemExit(0)", "SystemExit"),
        ("import os; os._exit(0)", "killed"),
        ("x = bytearray(1 << 30)", "MemoryError"),
        ("def f(): f()\nf()", "RecursionError"),
        ("import socket; socket.socket()", "PermissionError"),
        ("open('/tmp/written-by-a-program', 'w')", "PermissionError"),
        ("open('/etc/passwd')", "PermissionError"),
        ("import os; os.listdir('/')", "PermissionError"),
        ("import os; os.fork()", "PermissionError"),
        ("import subprocess; subprocess.run(['true'])", "PermissionError"),
        ("import os; os.kill(os.getppid(), 0)", "PermissionError"),
        ("import ctypes", "PermissionError"),
        ("import numpy", "ModuleNotFoundError"),
        ("import os\nfor fd in range(3, 32):\n try: os.write(fd, b'x' * 100_000)\n except OSError: pass", "xxxx"),
    ],
)
def test_a_program_that_fails_or_asks_for_more_does_not(program: str, reason: str) -> None:
    passed, said = run_program(program, LIMITS)
    assert not passed and said.startswith(reason) and len(said) <= 400


def test_time_is_limited_by_the_clock_and_by_the_processor() -> None:
    started_at = time.perf_counter()
    assert run_program("import time; time.sleep(60)", Limits(seconds=0.1)) == (False, "timeout")
    assert run_program("while True: pass", Limits(seconds=60.0, cpu_seconds=1)) == (False, "timeout")
    assert time.perf_counter() - started_at < 30


WITHOUT_THE_HOOK = """
import importlib.util, os, socket, sys
spec = importlib.util.spec_from_file_location("jail", sys.argv[1])
jail = importlib.util.module_from_spec(spec)
spec.loader.exec_module(jail)
jail.allow_little(os.uname().machine)
os.read(os.open(sys.argv[1], os.O_RDONLY), 10)
attempts = {
    "write": lambda: os.open("/tmp/written-by-a-program", os.O_WRONLY | os.O_CREAT),
    "socket": socket.socket,
    "fork": os.fork,
    "exec": lambda: os.execv("/bin/true", ["true"]),
    "kill": lambda: os.kill(os.getpid(), 0),
    "unlink": lambda: os.unlink(sys.argv[1]),
    "chdir": lambda: os.chdir("/"),
    "setsid": os.setsid,
}
for name, attempt in attempts.items():
    try:
        attempt()
    except PermissionError:
        continue
    print(name)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's filter is Linux's")
def test_the_kernel_refuses_even_without_the_audit_hook() -> None:
    if platform.machine() not in ("x86_64", "aarch64"):
        pytest.skip("no table of system calls for this machine")
    done = subprocess.run(
        [sys.executable, "-S", "-c", WITHOUT_THE_HOOK, str(JAIL)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_nothing_is_left_of_a_program() -> None:
    descriptors, children = Path("/proc/self/fd"), Path(f"/proc/self/task/{threading.get_native_id()}/children")
    before = len(list(descriptors.iterdir())), children.read_text()
    for program in ("pass", "import time; time.sleep(60)"):
        run_program(program, Limits(seconds=0.1))
    assert (len(list(descriptors.iterdir())), children.read_text()) == before


def asked(text: str, tests: object, answer: str = "") -> Sample:
    extra = {} if tests is None else {"tests": tests}
    return Sample(Prompt(prompt=(Message(role="user", content="?"),), answer=answer, extra=extra), text)  # type: ignore[arg-type]


def test_code_earns_one_if_it_passes_its_rows_tests() -> None:
    function = PassesTestsReward(seconds=20.0).build()
    right, wrong = "def add(a, b):\n    return a + b", "def add(a, b):\n    return a - b"
    tests = ["assert add(1, 2) == 3", "assert add(0, 0) == 0"]
    samples = [
        asked(right, tests),
        asked(wrong, tests),
        asked(f"Here it is:\n```python\n{right}\n```\nDone.", "\n".join(tests)),
        asked(right, None, answer=tests[0]),
        asked("raise SystemExit", tests),
        asked(right, None),
    ]
    assert function(samples) == [1.0, 0.0, 1.0, 1.0, 0.0, None]


def test_the_code_is_the_last_fenced_block_or_all() -> None:
    assert code_of("x = 1") == "x = 1"
    assert code_of("```python\na\n```\nand\n```\nb\n```") == "b\n"
