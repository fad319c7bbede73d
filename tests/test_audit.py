"""What commands do behind one's back: no network, no pickle, and no bit that hangs on the process's surroundings."""

import os
import subprocess
import sys
from pathlib import Path

from conftest import QUICK, TINY, Line
from llmcore.manifest import verify_artifact

COMMAND = "import os, sys; os.umask({umask}); from llmpretrain.cli import main; main()"
LINE = """
import sys

seen = []
ASKED = {"socket.connect", "socket.getaddrinfo", "socket.bind", "urllib.Request", "pickle.find_class"}
sys.addaudithook(lambda event, arguments: seen.append((event, str(arguments))) if event in ASKED else None)
import importlib

for words in WORDS:
    sys.argv = words
    try:
        importlib.import_module(f"{words[0]}.cli").main()
    except SystemExit as stop:
        assert not stop.code, (words, stop.code)
print("seen:", seen)
"""


def test_a_line_of_commands_opens_no_connection_and_reads_no_pickle(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    for number in range(20):
        (tmp_path / "text" / f"{number}.py").write_text(f"def f{number}(x):\n    return x + {number}\n" * 20)
    (tmp_path / "chats.jsonl").write_text(
        "".join(f'{{"prompt": "{number} + 1", "completion": "{number + 1}"}}\n' for number in range(60))
    )
    words = [
        ["llmdata", "tokens", "text", "--out", "tokens"],
        ["llmpretrain", "run", "--data", "tokens", "--out", "base", *TINY, *QUICK],
        ["llmsft", "run", "--base", "base", "--data", "chats.jsonl", "--out", "sft", *QUICK],
        ["llmcore", "verify", "base", "sft"],
        ["llmcore", "generate", "sft", "--prompt", "1 + 1", "--max-new-tokens", "8"],
    ]
    done = subprocess.run(
        [sys.executable, "-c", f"WORDS = {words!r}\n{LINE}"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "seen: []" in done.stdout, done.stdout[-2000:]


def test_hash_seed_locale_umask_and_working_folder_change_no_bit(line: Line, tmp_path: Path) -> None:
    surroundings = [
        (0o022, {"PYTHONHASHSEED": "1", "LC_ALL": "C", "TZ": "UTC"}),
        (0o077, {"PYTHONHASHSEED": "77", "LC_ALL": "C.UTF-8", "TZ": "Asia/Tokyo"}),
    ]
    made = []
    for number, (umask, variables) in enumerate(surroundings):
        folder = tmp_path / str(number)
        folder.mkdir()
        data = os.path.relpath(line.tokens, folder)
        words = ["run", "--data", data, "--out", "out", "--quiet", *TINY, *QUICK, "model.dropout=0.1"]
        done = subprocess.run(
            [sys.executable, "-c", COMMAND.format(umask=umask), *words],
            cwd=folder,
            env={**os.environ, **variables, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        made.append(verify_artifact(folder / "out"))
        assert (folder / "out/model.safetensors").stat().st_mode & 0o777 == 0o666 & ~umask
    assert made[0].files == made[1].files and made[0].id == made[1].id
