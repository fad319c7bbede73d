"""Independent implementations as oracles: scripts run by an interpreter that has them.

    LLM_PEERS_PYTHON=/path/to/an/environment/with/trl/and/peft/bin/python pytest …

They are not in our own environment, because they bring what the project does without; without the variable these tests
are skipped.
"""

import os
import subprocess
from pathlib import Path

import pytest

PYTHON = os.environ.get("LLM_PEERS_PYTHON", "")
needs_peers = pytest.mark.skipif(not PYTHON, reason="set LLM_PEERS_PYTHON to an interpreter that has trl and peft")


def ask(script: Path, *words: str | Path, said: str = "") -> str:
    """What a script prints, given some words and a text on its standard input; offline, in a plain environment."""
    environment = {"PATH": os.environ["PATH"], "HF_HUB_OFFLINE": "1", "HOME": os.environ.get("HOME", "/")}
    line = [PYTHON, str(script), *map(str, words)]
    done = subprocess.run(line, input=said, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "missing" not in done.stderr.lower(), done.stderr[-2000:]
    return done.stdout
