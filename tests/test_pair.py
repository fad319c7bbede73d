"""The tool that compares two commands: in turn, by ratios, and in one sentence where that cannot be."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def pair(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / "pair.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def side(name: str, log: Path, *values: float, other: float = 0.0) -> str:
    """A command whose n-th run prints the n-th value, and which notes in a file that it ran."""
    code = (
        f"import json; log = open({str(log)!r}, 'a+'); log.write({name!r}); log.flush(); log.seek(0); "
        f"value = {list(values)}[log.read().count({name!r}) - 1]; "
        f"print('a warning'); print(json.dumps(dict(metric='speed', speed=value, cost=1 / value, other_cpu={other})))"
    )
    return shlex.join([sys.executable, "-c", code])


def test_sides_are_run_in_turn_and_compared_by_the_median_of_ratios(tmp_path: Path) -> None:
    log = tmp_path / "log"
    done = pair(side("A", log, 4.0, 6.0, 30.0), side("B", log, 2.0, 2.0, 3.0, other=0.3), "--rounds", "3")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert log.read_text() == "ABBAAB"
    assert (found["ratio"], found["range"], found["key"]) == (3.0, [2.0, 10.0], "speed")
    assert found["a"]["values"] == [4.0, 6.0, 30.0] and found["other_cpu_max"] == 0.3


def test_another_figure_can_be_compared(tmp_path: Path) -> None:
    done = pair(side("A", tmp_path / "log", 4.0), side("B", tmp_path / "log", 2.0), "--rounds", "1", "--key", "cost")
    assert json.loads(done.stdout)["ratio"] == 0.5


def test_what_cannot_be_compared_is_one_sentence(tmp_path: Path) -> None:
    good = side("A", tmp_path / "log", *[1.0] * 20)
    for bad, told in ((f"{sys.executable} -c 'exit(3)'", "code 3"), (f"{sys.executable} -c 'print(1)'", "no JSON"),
                      ("no-such-command", "cannot be run")):  # fmt: skip
        done = pair(good, bad)
        assert done.returncode == 1 and told in done.stderr and "Traceback" not in done.stderr
    assert "give --key" in pair(good, good, "--key", "size").stderr
    assert pair(good, good, "--rounds", "0").returncode == 2
