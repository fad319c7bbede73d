"""An end at any file operation, power failures, disks that refuse: nothing announced is lost, and no bit changes."""

import contextlib
import errno
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from conftest import QUICK, TINY, Line
from disks import small_disk_at
from faults import Disk
from forked import run
from llmcore.command import main
from llmcore.losses import Batch, next_token_loss
from llmcore.manifest import verify_artifact
from llmcore.model.config import ModelConfig
from llmcore.storage import check_free_space
from llmcore.tokenizer import Tokenizer
from llmcore.train import snapshot
from llmcore.train.config import TrainConfig
from llmcore.train.loop import fit
from llmcore.train.run import Run
from llmcore.train.signals import Stopped

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
STEPS = 5
TRAIN = TrainConfig(
    steps=STEPS, batch=2, device="cpu", dtype="fp32", log_every=1, save_every=1, eval_every=2, keep=2, watch=()
)
RESULTS = ("model.safetensors", f"run/checkpoints/step-{STEPS:08d}/optimizer.safetensors")
REFUSALS = {
    errno.EIO: "input/output error",
    errno.ENOSPC: "full",
    errno.EDQUOT: "quota",
    errno.EROFS: "read-only",
    errno.EACCES: "permission",
}


pytestmark = pytest.mark.usefixtures("one_thread")


class Rows:
    """A source with a memory, so that all five files of a checkpoint are there."""

    def __init__(self) -> None:
        self.total = torch.zeros(3)

    def steps_from(self, start: int, state: snapshot.SourceState | None) -> Iterator[list[Batch]]:
        if state is not None:
            self.total = state.tensors["total"].clone()
        for step in range(start, STEPS):
            ids = torch.randint(0, 256, (2, 16), generator=torch.Generator().manual_seed(step))
            self.total += ids[0, :3]
            ids[0, 0] = int(self.total.sum()) % 256
            yield [Batch(ids, torch.ones_like(ids, dtype=torch.bool), None)]

    def state(self) -> snapshot.SourceState:
        return snapshot.SourceState({"total": self.total}, {"rows": 2})


def train(out: Path, *, stop_after: int | None = None) -> None:
    """What a stage does, whole; it saves every step."""
    config = TRAIN.model_copy(update={"stop_after": stop_after})
    tree = {"vocab_size": 260, "width": 16, "depth": 1, "context": 32}
    model = ModelConfig.model_validate({**tree, "attention": {"heads": 2, "kv_heads": 1}}).build(seed=0)
    with Run(out, made_by="test", config=config, tokenizer=Tokenizer.byte_level()) as job:
        fit(model, Rows(), next_token_loss, config, job, evaluate=lambda _: {"loss": 1.0})
        job.finish(model)


def in_child(work: Callable[[], None], told: Path) -> int:
    """Exit status of a forked process that runs `work` as a command, its stderr in `told`."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            os.dup2(os.open(told, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
            sys.stderr = open(2, "w", closefd=False, buffering=1)  # noqa: SIM115
            main(work)  # type: ignore[arg-type]
        except SystemExit as stop:
            code = int(stop.code or 0)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def announced(told: Path) -> int:
    """The last step that was said to be saved."""
    return max((int(step) for step in re.findall(r"saved step (\d+)", told.read_text())), default=0)


def check_kept(out: Path, step: int) -> None:
    """Every visible checkpoint is whole, and one of them is of `step` or later."""
    folders = list((out / "run/checkpoints").glob("step-*"))
    assert max((int(path.name[5:]) for path in folders), default=0) >= step
    for path in folders:
        verify_artifact(path, expect="snapshot")


def check_same(out: Path, whole: Path) -> None:
    for name in RESULTS:
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
    assert lines(out) == lines(whole)
    assert not list(out.rglob(".tmp-*"))


def lines(out: Path) -> list[str]:
    """The figures of every step, without those of the clock."""
    rows = (out / "run/metrics.jsonl").read_text().splitlines()
    return [re.sub(r', "(tokens_per_s|seconds)": [\d.e+-]+', "", row) for row in rows]


class Scene:
    """A whole run, one stopped after two steps, and the file operations that going on from there takes."""

    def __init__(self, root: Path) -> None:
        self.root, self.whole, self.stopped, self.out = root, root / "whole", root / "stopped", root / "out"
        self.told = root / "told"
        train(self.whole)
        with pytest.raises(Stopped):
            train(self.stopped, stop_after=2)
        self.operations = self.count()

    def count(self) -> list[str]:
        """The names of all file operations, from the first of the start to the last of the artifact."""
        shutil.copytree(self.stopped, self.out)
        listed = self.root / "operations"

        def counting() -> None:
            disk = Disk(self.out).install()
            train(self.out)
            with disk.real["file"](listed, "w") as file:
                file.write("\n".join(disk.names))

        assert in_child(counting, self.told) == 0, self.told.read_text()
        check_same(self.out, self.whole)
        return listed.read_text().splitlines()

    def attempt(self, number: int, act: Callable[[Disk], None]) -> int:
        """The exit status of a start that meets `act` after its operation `number`."""
        shutil.rmtree(self.out)
        shutil.copytree(self.stopped, self.out)

        def acting() -> None:
            Disk(self.out, last=number, act=act).install()
            train(self.out)

        status = in_child(acting, self.told)
        check_kept(self.out, announced(self.told))
        return status

    def go_on(self) -> None:
        """The same command again."""
        train(self.out)
        check_same(self.out, self.whole)


@pytest.fixture
def scene() -> Iterator[Scene]:
    """In memory where that is possible: the thousands of fsyncs are then free."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as root:
        yield Scene(Path(root))


def check_ends(scene: Scene, numbers: list[int], act: Callable[[Disk, random.Random], None], *, status: int) -> None:
    for number in numbers:
        found = scene.attempt(number, lambda disk, number=number: act(disk, random.Random(number)))  # type: ignore[misc]
        told = f"after {number}: {scene.operations[number - 1]}\n{scene.told.read_text()}"
        assert found == status and "Traceback" not in told, told
        try:
            scene.go_on()
        except Exception as error:
            raise AssertionError(told) from error


def refuse(disk: Disk, chance: random.Random) -> None:
    disk.refuse(chance.choice(list(REFUSALS)))


ENDS: dict[str, tuple[Callable[[Disk, random.Random], None], int]] = {
    "kill -9": (lambda disk, _: disk.kill(), -9),
    "a power failure": (Disk.cut_power, -9),
    "a disk that refuses": (refuse, 2),
}


def test_a_save_syncs_each_file_then_its_folder_then_renames(scene: Scene) -> None:
    told = [re.sub(r"-\d+(?=/|$)", "", name) for name in scene.operations if ".tmp-step-00000003" in name]
    place = "/run/checkpoints/.tmp-step-00000003"
    files = {"model.safetensors", "optimizer.safetensors", "source.safetensors", "state.json", "manifest.json"}
    assert {f"fsync {place}/{name}" for name in files} < set(told)
    assert told[-2:] == [f"fsync {place}", f"rename {place}"]
    following = scene.operations[scene.operations.index(next(n for n in scene.operations if "rename" in n)) :]
    assert following[1] == "fsync /run/checkpoints"


@pytest.mark.parametrize("end", ENDS)
def test_an_end_at_some_file_operations_of_a_run_loses_nothing(end: str, scene: Scene) -> None:
    act, status = ENDS[end]
    numbers = random.Random(end).sample(range(1, len(scene.operations)), 5)
    check_ends(scene, numbers, act, status=status)


@pytest.mark.slow
@pytest.mark.parametrize("end", ENDS)
def test_an_end_at_any_file_operation_of_a_run_loses_nothing(end: str, scene: Scene) -> None:
    act, status = ENDS[end]
    check_ends(scene, list(range(1, len(scene.operations))), act, status=status)


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(5))
def test_power_failures_of_many_kinds_lose_nothing(seed: int, scene: Scene) -> None:
    chance = random.Random(seed)
    check_ends(
        scene,
        list(range(1, len(scene.operations))),
        lambda disk, _: disk.cut_power(random.Random(chance.random())),
        status=-9,
    )


# Real file systems that are full, read-only or frozen


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 3 MB."""
    with small_disk_at(tmp_path / "disk", "3m") as folder:
        yield folder


def remount(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(disk)], check=True)


def fill(disk: Path, *, leave: int) -> None:
    """Take all room but so many bytes: what is said to be free is not exact."""
    descriptor = os.open(disk / "filler", os.O_WRONLY | os.O_CREAT)
    with contextlib.suppress(OSError):
        while True:
            os.write(descriptor, bytes(4096))
    os.ftruncate(descriptor, max(0, os.fstat(descriptor).st_size - leave))
    os.close(descriptor)


def test_a_disk_that_another_program_fills_during_a_save_is_one_message(tmp_path: Path, small_disk: Path) -> None:
    """The room is there when it is looked for, and gone when it is used: in any of the files of a checkpoint."""
    train(tmp_path / "whole")
    chance, out, told = random.Random(0), small_disk / "out", tmp_path / "told"
    named = set()
    for leave in [0, *(chance.randrange(0, 160_000) for _ in range(6))]:
        calls = 0

        def look_then_fill(folder: Path, needed: int, leave: int = leave) -> None:
            nonlocal calls
            check_free_space(folder, needed)
            calls += 1
            if calls == 2:
                fill(small_disk, leave=leave)

        def work() -> None:
            snapshot.check_free_space = look_then_fill
            train(out)

        code = in_child(work, told)
        message = told.read_text()
        assert "Traceback" not in message, message
        check_kept(out, announced(told))
        (small_disk / "filler").unlink(missing_ok=True)
        if code != 0:
            assert code == 2 and re.search(r"out\S* could not be written: the disk is full|are free", message), message
            named |= set(re.findall(r"disk/out/(\S+) could not be written", message))
        train(out)
        check_same(out, tmp_path / "whole")
        shutil.rmtree(out)
    assert any("step-" in name for name in named), named


def test_a_disk_that_becomes_read_only_is_one_message_and_the_run_goes_on_later(
    line: Line, tmp_path: Path, small_disk: Path
) -> None:
    out = small_disk / "out"
    words = ["llmpretrain", "run", "--data", line.tokens, "--out", out, *TINY, *QUICK]
    assert run(*words, "train.stop_after=2", cwd=tmp_path).code == 0
    remount(small_disk, "ro")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for read_only in (words, [*words[: -1 - len(QUICK) - len(TINY)], small_disk / "new", *TINY, *QUICK]):
        result = run(*read_only, cwd=tmp_path)
        assert result.code == 2 and "Traceback" not in result.err, result.err
        assert "read-only" in result.err and "disk/" in result.err, result.err
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    remount(small_disk, "rw")
    assert run(*words, cwd=tmp_path).code == 0
    ours, theirs = verify_artifact(out), verify_artifact(line.base)
    assert ours.files == theirs.files


def test_a_folder_that_is_frozen_during_a_run_is_one_message(line: Line, tmp_path: Path) -> None:
    """`chattr +i`, since to root a mode without w means nothing."""
    out = tmp_path / "out"
    folder = out / "run/checkpoints"
    words = ["llmpretrain", "run", "--data", line.tokens, "--out", out, *TINY, *QUICK, "train.save_every=1"]
    assert run(*words, "train.stop_after=2", cwd=tmp_path).code == 0
    if subprocess.run(["chattr", "+i", str(folder)], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to make a folder immutable (chattr +i)")
    try:
        result = run(*words, cwd=tmp_path)
    finally:
        subprocess.run(["chattr", "-i", str(folder)], check=True)
    assert result.code == 2 and "Traceback" not in result.err, result.err
    assert "step-00000003 could not be written: Operation not permitted" in result.err, result.err
    assert "saved step" not in result.err
    check_kept(out, 2)
    assert run(*words, cwd=tmp_path).code == 0
    assert verify_artifact(out).files == verify_artifact(line.base).files


def test_a_power_failure_in_the_samples_costs_only_the_damaged_lines(line: Line, tmp_path: Path) -> None:
    words = ["llmpretrain", "run", "--data", line.tokens, "--out", tmp_path / "out", *TINY, *QUICK]
    words += ["train.sample_every=1", "train.sample_tokens=4"]
    assert run(*words, "train.stop_after=4", cwd=tmp_path).code == 0
    path = tmp_path / "out/run/samples.jsonl"
    good = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*good[:2], b"\0" * 40 + b"\n", b'{"step": 3, "pro\xff\n', *good[2:]]) + b'{"st')
    result = run(*words, cwd=tmp_path)
    assert result.code == 0, result.err
    again = path.read_bytes().splitlines(keepends=True)
    assert again[: len(good)] == good and len(again) > len(good)
