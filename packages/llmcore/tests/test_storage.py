import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from llmcore.errors import ArtifactError, LLMError
from llmcore.storage import (
    check_free_space,
    commit_directory,
    lock_directory,
    read_regular,
    remove_durably,
    remove_leftovers,
    write_durably,
)


def test_write_replaces_whole_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_durably(path, b"one")
    write_durably(path, b"two")
    assert path.read_bytes() == b"two" and [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_modes_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_durably(tmp_path / "a", b"x")
        with commit_directory(tmp_path / "d") as folder:
            (folder / "b").write_bytes(b"x")
            (folder / "b").chmod(0o600)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "d" / "b").stat().st_mode) == 0o640


def test_directory_appears_only_when_complete(tmp_path: Path) -> None:
    out = tmp_path / "artifact"
    with pytest.raises(ZeroDivisionError), commit_directory(out) as folder:
        (folder / "half").write_bytes(b"x")
        _ = 1 / 0
    assert not out.exists() and not list(tmp_path.iterdir())
    with commit_directory(out) as folder:
        (folder / "whole").write_bytes(b"x")
        assert not out.exists()
    assert (out / "whole").read_bytes() == b"x"


def test_existing_folder_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(ArtifactError, match="exists already"), commit_directory(tmp_path):
        pass
    assert (tmp_path / "mine").read_text() == "precious"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_is_one_sentence_and_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    write_durably(path, b"old")
    temporary = tmp_path / f".tmp-a-{os.getpid()}"
    temporary.symlink_to("/dev/full")
    with pytest.raises(LLMError, match="the disk is full"):
        write_durably(path, b"new")
    assert path.read_bytes() == b"old" and not temporary.is_symlink()


def test_removed_and_leftover_names_are_gone(tmp_path: Path) -> None:
    doomed = tmp_path / "step-1"
    doomed.mkdir()
    (doomed / "x").write_text("x")
    (tmp_path / ".tmp-step-2-77").mkdir()
    remove_durably(doomed)
    assert remove_leftovers(tmp_path) == [".tmp-step-2-77"] and not list(tmp_path.iterdir())


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    (tmp_path / "big").write_bytes(b"x" * 11)
    for path, sentence in [(fifo, "not a regular file"), (tmp_path, "not a regular file"),
                           (tmp_path / "dangling", "no such file"), (tmp_path / "big", "more than")]:  # fmt: skip
        with pytest.raises(ArtifactError, match=sentence):
            read_regular(path, limit=10)


def test_second_process_is_told_who_holds_the_folder(tmp_path: Path) -> None:
    attempt = f"from pathlib import Path\nfrom llmcore.storage import lock_directory\n\
with lock_directory(Path({str(tmp_path)!r})): pass"
    with lock_directory(tmp_path):
        held = subprocess.run([sys.executable, "-c", attempt], capture_output=True, text=True, check=False)
    free = subprocess.run([sys.executable, "-c", attempt], capture_output=True, text=True, check=False)
    assert held.returncode == 1 and f"process {os.getpid()} on" in held.stderr
    assert free.returncode == 0


def test_free_space_is_checked_before_the_write(tmp_path: Path) -> None:
    check_free_space(tmp_path, 1)
    with pytest.raises(LLMError, match="are free"):
        check_free_space(tmp_path, 1 << 60)
