"""A clock that is wrong, for programs whose results must not depend on it."""


def shifted(seconds: float, *, rate: float = 1.0) -> str:
    """The first lines of a program that thinks it is so many seconds later, and that durations pass at such a rate."""
    return f"""
import datetime, time

now, ticks = time.time, time.perf_counter
time.time = lambda: now() + {seconds}
time.time_ns = lambda: int(time.time() * 1e9)
time.perf_counter = lambda: ticks() * {rate}


class Shifted(datetime.datetime):
    @classmethod
    def now(cls, zone=None):
        return cls.fromtimestamp(time.time(), zone)


datetime.datetime = Shifted
"""
