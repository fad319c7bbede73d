"""What runs inside the sandbox: a process gives up its rights, and then runs the program on its standard input.

Run as a script, with nothing but the standard library: `python -S jail.py REPORT CPU_SECONDS MEMORY_MIB`. The first
line of the input is the token that goes to the descriptor REPORT if the program comes to its end.
"""

import ctypes
import os
import platform
import resource
import struct
import sys

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
"""None of these bits may be set in the flags of a file that is opened."""

# What a Python program needs that computes, imports and ends, in the order of the names; everything else is refused.
# read write close fstat newfstatat stat lstat statx lseek pread64 mmap mprotect munmap mremap brk madvise rt_sigaction
# rt_sigprocmask rt_sigreturn sigaltstack ioctl fcntl access faccessat faccessat2 readlink readlinkat getcwd getdents64
# getpid gettid getppid getuid geteuid getgid getegid uname sysinfo times getrusage futex sched_yield sched_getaffinity
# nanosleep clock_nanosleep clock_gettime clock_getres gettimeofday time getrandom poll ppoll rseq set_robust_list exit
# exit_group
ALLOWED = {
    "x86_64": (
        0, 1, 3, 5, 262, 4, 6, 332, 8, 17, 9, 10, 11, 25, 12, 28, 13, 14, 15, 131, 16, 72, 21, 269, 439, 89, 267, 79,
        217, 39, 186, 110, 102, 107, 104, 108, 63, 99, 100, 98, 202, 24, 204, 35, 230, 228, 229, 96, 201, 318, 7, 271,
        334, 273, 60, 231,
    ),
    "aarch64": (
        63, 64, 57, 80, 79, 291, 62, 67, 222, 226, 215, 216, 214, 233, 134, 135, 139, 132, 29, 25, 48, 439, 78, 17, 61,
        172, 178, 173, 174, 175, 176, 177, 160, 179, 153, 165, 98, 124, 123, 101, 115, 113, 114, 169, 278, 73, 293, 99,
        93, 94,
    ),
}  # fmt: skip
OPENAT = {"x86_64": 257, "aarch64": 56}
ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
REFUSED_EVENTS = (
    "ctypes.", "ftplib.", "http.", "imaplib.", "mmap.", "os.", "pathlib.", "pty.", "resource.", "shutil.", "signal.",
    "smtplib.", "socket.", "sqlite3.", "ssl.", "subprocess.", "syslog.", "tempfile.", "urllib.", "webbrowser.",
)  # fmt: skip
"""Of what Python tells its audit hooks; `open` and `os.listdir` are looked at more closely."""


def main() -> None:
    """Give up, run, report."""
    report, cpu_seconds, memory_mib = (int(word) for word in sys.argv[1:4])
    token, _, program = sys.stdin.buffer.read().partition(b"\n")
    limit(cpu_seconds, memory_mib)
    if sys.platform == "linux" and platform.machine() in ALLOWED:
        allow_little(platform.machine())
    sys.addaudithook(refuse_outside(sys.path))
    del sys.modules["ctypes"], sys.modules["resource"]
    sys.argv[1:] = []
    try:
        exec(compile(program, "<program>", "exec"), {"__name__": "__main__"})
    except BaseException as error:
        os.write(report, f"{type(error).__name__}: {error}"[:200].encode("utf-8", "replace"))
        os._exit(1)
    os.write(report, token)
    os._exit(0)


def limit(cpu_seconds: int, memory_mib: int) -> None:
    """Limits that cannot be raised again."""
    wanted = {
        resource.RLIMIT_AS: memory_mib << 20,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: 32,
        resource.RLIMIT_NPROC: 0,
    }
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 1))  # a signal with a name, then SIGKILL
    for kind, value in wanted.items():
        highest = resource.getrlimit(kind)[1]
        value = value if highest == resource.RLIM_INFINITY else min(value, highest)
        try:
            resource.setrlimit(kind, (value, value))
        except (OSError, ValueError):  # macOS knows no limit of the address space
            continue


def allow_little(machine: str) -> None:
    """Have the kernel refuse every system call that is not in `ALLOWED`, and every opening of a file for writing."""

    def instruction(code: int, value: int, jump_true: int = 0, jump_false: int = 0) -> bytes:
        return struct.pack("HBBI", code, jump_true, jump_false, value)

    load, equal, any_bit, give = 0x20, 0x15, 0x45, 0x06
    kill, refuse, allow = 0x80000000, 0x00050000 | 1, 0x7FFF0000  # refuse: EPERM
    program = [
        instruction(load, 4),
        instruction(equal, ARCHITECTURE[machine], 1, 0),
        instruction(give, kill),
        instruction(load, 0),  # the number of the call
        instruction(equal, OPENAT[machine], 0, 4),
        instruction(load, 32),  # the flags of openat
        instruction(any_bit, WRITING, 0, 1),
        instruction(give, refuse),
        instruction(give, allow),
    ]
    numbers = ALLOWED[machine]
    for place, number in enumerate(numbers):
        program.append(instruction(equal, number, len(numbers) - place, 0))
    program += [instruction(give, refuse), instruction(give, allow)]
    code = ctypes.create_string_buffer(b"".join(program))
    filter_ = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.byref(filter_)):  # NO_NEW_PRIVS, SECCOMP_MODE_FILTER
        os._exit(3)  # a kernel without it: nothing runs half protected


def refuse_outside(roots: list[str]):  # type: ignore[no-untyped-def]
    """An audit hook that lets the standard library be read and imported, and nothing else be touched."""
    inside = tuple(roots)

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event in ("open", "os.listdir", "os.scandir"):
            path = arguments[0]
            text = os.fsdecode(path) if isinstance(path, str | bytes) else ""
            if text.startswith(inside) and ".." not in text:
                return
            raise PermissionError(f"{text!r} is outside the sandbox")
        if event.startswith(REFUSED_EVENTS):
            raise PermissionError(f"{event} is not for programs in the sandbox")

    return hook


if __name__ == "__main__":
    main()
