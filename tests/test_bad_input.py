"""Bad input ends with exit code 2 and one short message; nothing is written or harmed, and there is no traceback."""

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conftest import QUICK, TINY, Line
from disks import small_disk_at
from forked import run
from llmcore.manifest import verify_artifact, write_manifest
from llmcore.tokenizer import SpecialTokens, Tokenizer

Words = list[str | Path]
Case = Callable[[Line, Path], Words]


def settings_file(work: Path, text: str) -> Path:
    path = work / "mine.toml"
    path.write_text(text)
    return path


def pretrain(line: Line, work: Path, *more: str | Path) -> Words:
    return ["llmpretrain", "run", "--data", line.tokens, "--out", work / "out", *TINY, *QUICK, *more]


def typo(line: Line, work: Path) -> Words:
    return pretrain(line, work, settings_file(work, "[train]\nsteps = 3\nleraning_rate = 1\nbtach = 2\n"))


def wrong_type(line: Line, work: Path) -> Words:
    return pretrain(line, work, settings_file(work, '[train]\nsteps = "many"\n'))


def missing_data(line: Line, work: Path) -> Words:
    return ["llmpretrain", "run", "--data", work / "nowhere", "--out", work / "out"]


def missing_text(line: Line, work: Path) -> Words:
    return ["llmdata", "tokens", work / "nowhere", "--out", work / "out"]


def empty_text(line: Line, work: Path) -> Words:
    (work / "empty").mkdir()
    return ["llmdata", "tokens", work / "empty", "--out", work / "out"]


def invalid_utf8(line: Line, work: Path) -> Words:
    (work / "latin.txt").write_bytes("caf\xe9\n".encode("latin-1") * 50)
    return ["llmdata", "tokens", work / "latin.txt", "--out", work / "out"]


def missing_keys(line: Line, work: Path) -> Words:
    rows = ['{"prompt": "1 + 1", "completion": "2"}', '{"prompt": "1 + 2"}']
    (work / "rows.jsonl").write_text("\n".join(rows))
    return ["llmsft", "run", "--base", line.base, "--data", work / "rows.jsonl", "--out", work / "out"]


def policy_as_reward(line: Line, work: Path) -> Words:
    words = ["llmrl", "grpo", "--policy", line.sft, "--reward", line.sft, "--prompts", line.prompts]
    return [*words, "--out", work / "out"]


def reward_as_policy(line: Line, work: Path) -> Words:
    return ["llmsft", "run", "--base", line.reward, "--data", line.chats, "--out", work / "out"]


def other_tokenizer(line: Line, work: Path) -> Words:
    """A reward whose tokenizer has as many tokens, but is another one."""
    folder = work / "reward"
    shutil.copytree(line.reward, folder, ignore=shutil.ignore_patterns("run"))
    tokenizer = Tokenizer.load(folder)
    special = tokenizer.special.model_copy(update={"end_of_turn": "<|im_start|>"})
    (folder / "special_tokens.json").write_text(SpecialTokens.model_validate(special).model_dump_json())
    files = list(json.loads((folder / "manifest.json").read_text())["files"])
    write_manifest(folder, kind="reward", made_by="test", config={}, files=files)
    words = ["llmrl", "grpo", "--policy", line.sft, "--reward", folder, "--prompts", line.prompts]
    return [*words, "--out", work / "out"]


def damaged(line: Line, work: Path, damage: Callable[[bytes], bytes]) -> Words:
    folder = work / "base"
    shutil.copytree(line.base, folder, ignore=shutil.ignore_patterns("run"))
    path = folder / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    return ["llmsft", "run", "--base", folder, "--data", line.chats, "--out", work / "out"]


def truncated(line: Line, work: Path) -> Words:
    return damaged(line, work, lambda data: data[: len(data) // 2])


def bit_flipped(line: Line, work: Path) -> Words:
    return damaged(line, work, lambda data: data[:-99] + bytes([data[-99] ^ 4]) + data[-98:])


def file_missing(line: Line, work: Path) -> Words:
    folder = work / "base"
    shutil.copytree(line.base, folder, ignore=shutil.ignore_patterns("run"))
    (folder / "tokenizer.json").unlink()
    return ["llmsft", "run", "--base", folder, "--data", line.chats, "--out", work / "out"]


def another_run(line: Line, work: Path) -> Words:
    shutil.copytree(line.base, work / "out")
    return pretrain(line, work, "train.lr=0.5")


def foreign_folder(line: Line, work: Path) -> Words:
    (work / "out").mkdir()
    (work / "out" / "thesis.txt").write_text("precious")
    return pretrain(line, work)


def long_prompt(line: Line, work: Path) -> Words:
    return ["llmcore", "generate", line.sft, "--prompt", "x" * 500]


def missing_package(line: Line, work: Path) -> Words:
    return pretrain(line, work, "model.feedforward.kind=capsules")


def needs_missing_package(line: Line, work: Path) -> Words:
    folder = work / "base"
    shutil.copytree(line.base, folder, ignore=shutil.ignore_patterns("run"))
    path = folder / "manifest.json"
    kept = {name: value for name, value in json.loads(path.read_text()).items() if name != "checksum"}
    path.write_text(json.dumps(kept | {"needs": {"llmcapsules": "0.1.0"}}))
    return ["llmcore", "generate", folder, "--prompt", "x"]


def bad_option(line: Line, work: Path) -> Words:
    return ["llmpretrain", "run", "--dta", line.tokens]


def bad_resume(line: Line, work: Path) -> Words:
    return pretrain(line, work, "--resume", "4000")


def idle_reference(line: Line, work: Path) -> Words:
    words = ["llmrl", "grpo", "--policy", line.sft, "--reward", "literal", "--prompts", line.prompts, "grpo.beta=0"]
    return [*words, "--reference", work / "nowhere", "--out", work / "out"]


def not_an_artifact(line: Line, work: Path) -> Words:
    return ["llmcore", "inspect", line.text]


CASES: dict[str, tuple[Case, list[str]]] = {
    "a typo in TOML": (typo, ["mine.toml:4: train.btach", "did you mean 'batch'", "mine.toml:3"]),
    "a wrong type in TOML": (wrong_type, ["mine.toml:2: train.steps", "'many'"]),
    "a missing data path": (missing_data, ["nowhere"]),
    "a missing text path": (missing_text, ["nowhere"]),
    "an empty text folder": (empty_text, ["empty"]),
    "invalid UTF-8": (invalid_utf8, ["latin.txt", "UTF-8"]),
    "a JSONL row with missing keys": (missing_keys, ["rows.jsonl:2"]),
    "a policy as reward": (policy_as_reward, ["holds a policy", "reward is needed"]),
    "a reward as policy": (reward_as_policy, ["holds a reward", "policy is needed"]),
    "another tokenizer": (other_tokenizer, ["tokenizer"]),
    "a truncated model.safetensors": (truncated, ["model.safetensors", "truncated"]),
    "a bit-flipped model.safetensors": (bit_flipped, ["model.safetensors", "SHA-256"]),
    "a manifest without a file it names": (file_missing, ["tokenizer.json"]),
    "an output folder of another run": (another_run, ["train.lr", "0.5"]),
    "an output folder of somebody's": (foreign_folder, ["out"]),
    "a prompt longer than the context": (long_prompt, ["128"]),
    "a missing extension package": (missing_package, ["capsules"]),
    "an artifact of a missing package": (needs_missing_package, ["llmcapsules 0.1.0"]),
    "a typo in an option": (bad_option, ["--dta"]),
    "a step to resume that is not there": (bad_resume, ["4000"]),
    "an option that would do nothing": (idle_reference, ["--reference", "beta"]),
    "a folder that is no artifact": (not_an_artifact, ["manifest.json"]),
}


def contents(root: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file() and ".output-" not in str(p)
    }


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_message_and_harms_nothing(name: str, line: Line, tmp_path: Path) -> None:
    build, wanted = CASES[name]
    words = build(line, tmp_path)
    before = contents(tmp_path)
    result = run(*words, cwd=tmp_path)
    assert result.code == 2, (result.code, result.err)
    assert "Traceback" not in result.err and "Traceback" not in result.out
    assert len([row for row in result.err.splitlines() if row.strip()]) <= 12
    for part in wanted:
        assert part in result.err, result.err
    after = {path: data for path, data in contents(tmp_path).items() if not path.endswith(".lock")}
    assert after == {path: data for path, data in before.items() if not path.endswith(".lock")}
    verify_artifact(line.base)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 300 kB."""
    with small_disk_at(tmp_path / "disk", "300k") as folder:
        yield folder


def test_a_full_disk_is_one_message_and_the_run_goes_on_later(line: Line, tmp_path: Path, small_disk: Path) -> None:
    out = small_disk / "out"
    words = ["llmpretrain", "run", "--data", line.tokens, "--out", out, *TINY, *QUICK]
    result = run(*words, cwd=tmp_path)
    assert result.code == 2 and "Traceback" not in result.err
    assert "full" in result.err or "free" in result.err, result.err
    assert not (out / "manifest.json").exists()
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    assert run(*words, cwd=tmp_path).code == 0
    ours, theirs = verify_artifact(out), verify_artifact(line.base)
    assert ours.files["model.safetensors"] == theirs.files["model.safetensors"]
