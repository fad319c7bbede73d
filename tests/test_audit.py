"""What commands do behind one's back: no network, no pickle, and no bit that hangs on the process's surroundings."""

import os
import subprocess
import sys
from pathlib import Path

from clock import shifted
from conftest import QUICK, TINY, Line
from llmcore.manifest import verify_artifact

YEAR = 365 * 24 * 3600
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
    words += learned_and_exported()
    done = subprocess.run(
        [sys.executable, "-c", f"WORDS = {words!r}\n{LINE}"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "seen: []" in done.stdout, done.stdout[-2000:]


def learned_and_exported() -> list[list[str]]:
    """The other stages, which go on from what the first ones made, and Hugging Face both ways."""
    rows = ["problems=200", "valid_problems=40"]
    rl = [
        "--policy",
        "sft",
        "--prompts",
        "prompts",
        *QUICK,
        "rollout.max_completion_length=8",
        "rollout.eval_prompts=4",
    ]
    return [
        ["llmpretrain", "run", "--data", "tokens", "--out", "moe", *TINY, *QUICK, "model.feedforward.kind=moe"],
        ["llmmoe", "usage", "moe", "--data", "tokens"],
        ["llmdata", "records", "--kind", "preferences", "--out", "preferences", *rows],
        ["llmdata", "records", "--kind", "prompts", "--out", "prompts", *rows],
        ["llmreward", "run", "--base", "sft", "--data", "preferences", "--out", "reward", *QUICK],
        ["llmreward", "eval", "reward", "--data", "preferences"],
        ["llmrl", "grpo", "--reward", "literal", "--out", "grpo", *rl],
        ["llmrl", "ppo", "--reward", "reward + 0*literal", "--out", "ppo", *rl],
        ["llmrl", "eval", "grpo", "ppo", "--reward", "literal", "--prompts", "prompts", "--count", "4"],
        ["llmcore", "export", "hf", "ppo", "exported", "--check"],
        ["llmcore", "import", "hf", "exported", "--out", "imported"],
    ]


def test_clock_hash_seed_locale_umask_and_working_folder_change_no_bit(line: Line, tmp_path: Path) -> None:
    surroundings = [
        (0o022, {"PYTHONHASHSEED": "1", "LC_ALL": "C", "TZ": "UTC"}, shifted(0)),
        (0o077, {"PYTHONHASHSEED": "77", "LC_ALL": "C.UTF-8", "TZ": "Asia/Tokyo"}, shifted(-20 * YEAR, rate=50)),
    ]
    made = []
    for number, (umask, variables, clock) in enumerate(surroundings):
        folder = tmp_path / str(number)
        folder.mkdir()
        data = os.path.relpath(line.tokens, folder)
        words = ["run", "--data", data, "--out", "out", "--quiet", *TINY, *QUICK, "model.dropout=0.1"]
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                f"{clock}\nimport os; os.umask({umask})\nfrom llmpretrain.cli import main; main()",
                *words,
            ],
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
    assert int(made[0].made_at[:4]) - int(made[1].made_at[:4]) in (19, 20)
