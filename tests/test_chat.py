"""`llmcore chat` in a terminal of its own: answers that are stopped in the middle, and the end of the input."""

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import Line


@pytest.mark.slow
def test_an_answer_is_stopped_in_the_middle_and_the_chat_goes_on(line: Line, tmp_path: Path) -> None:
    """An endless model never stops by itself: only Ctrl-C ends its answers, and each time the chat waits for more.

    It does so even where Ctrl-C was ignored when the program began, as in a background job of a shell.
    """
    policy = endless(line, tmp_path)
    ours, theirs = pty.openpty()
    words = [sys.executable, "-m", "llmcore", "chat", str(policy), "--max-new-tokens", "1000000", "stop=[]"]
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    child = subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    signal.signal(signal.SIGINT, before)
    os.close(theirs)
    heard = ""
    try:
        for turn in range(2):
            heard = wait_for(ours, "you", heard)
            os.write(ours, b"hi\n")
            heard = wait_for(ours, "model", heard)
            time.sleep(0.5)
            child.send_signal(signal.SIGINT)
            heard = wait_for(ours, "(stopped)", heard)
            assert child.poll() is None, f"the chat ended in turn {turn}"
        wait_for(ours, "you", heard)
        os.write(ours, b"\x04")
        assert child.wait(20) == 0
    finally:
        child.kill()
        child.wait()
        os.close(ours)


def endless(line: Line, folder: Path) -> Path:
    """A policy with a window, whose stop tokens are never the best, as an artifact."""
    import torch

    from llmcore.checkpoint import save_model
    from llmcore.manifest import write_manifest
    from llmcore.model.config import ModelConfig
    from llmcore.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(line.sft)
    shape = {"width": 16, "depth": 1, "context": 64, "tie_embeddings": False, "attention": {"heads": 1, "kv_heads": 1}}
    shape["attention"]["window"] = 16  # type: ignore[index]
    model = ModelConfig.model_validate(shape).with_vocabulary(tokenizer.vocab_size).build(seed=0)
    with torch.no_grad():
        model.head_weight().mul_(0)
        model.head_weight()[list(range(97, 110))] = torch.randn(13, 16) * 5
    files = save_model(folder, model, tokenizer)
    write_manifest(folder, kind="policy", made_by="test", config={}, files=files)
    return folder


def wait_for(terminal: int, text: str, heard: str) -> str:
    """Read until `text` came; what came after it."""
    deadline = time.monotonic() + 60
    while text not in heard:
        assert time.monotonic() < deadline, f"{text!r} did not come, only {heard[-300:]!r}"
        heard += os.read(terminal, 4096).decode("utf-8", "replace")
    return heard.partition(text)[2]
