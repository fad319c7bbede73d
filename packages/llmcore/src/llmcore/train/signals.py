"""SIGINT and SIGTERM end a run between two steps, resumably; a second SIGINT ends it at once."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any


class Stopped(SystemExit):
    """A run that ended early and can go on; the exit code is 0 (as asked for), 130 (SIGINT) or 143 (SIGTERM)."""


class Interruption(BaseException):
    """A signal inside a stretch that may be given up: see `StopRequest.may_break`."""


class StopRequest:
    """Catches the signals while a `with` block runs, and remembers the first."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.breakable = False
        self.former: dict[int, Any] = {}

    @property
    def code(self) -> int | None:
        """The exit code that the caught signal asks for; None if there was none."""
        return None if self.number is None else 128 + self.number

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.former[number] = signal.signal(number, self.catch)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.former.items():
            signal.signal(number, handler)
        self.former.clear()

    def catch(self, number: int, _frame: FrameType | None) -> None:
        """Note the signal; a second SIGINT, or a signal during a breakable stretch, raises."""
        if self.number is not None and number == signal.SIGINT:
            raise Stopped(128 + number)
        self.number = number
        if self.breakable:
            raise Interruption

    @contextlib.contextmanager
    def may_break(self) -> Iterator[None]:
        """A stretch without lasting effects, such as an evaluation: a signal ends it with `Interruption`."""
        if self.number is not None:
            raise Interruption
        self.breakable = True
        try:
            yield
        finally:
            self.breakable = False
