"""The printed batch script is one that bash reads, and asks torchrun for what was asked."""

import subprocess

import pytest

from llmcore.errors import ConfigError
from llmcore.launch import slurm_script


def script(*words: str, nodes: int = 2, gpus: int = 4) -> str:
    return slurm_script(words, nodes=nodes, gpus=gpus, cpus=32, time="12:00:00", options=["--partition=long"])


def test_the_script_starts_the_command_on_every_gpu() -> None:
    found = script("llmcore", "run", "a file.toml", "train.parallel=fsdp")
    assert "#SBATCH --nodes=2\n" in found and "#SBATCH --partition=long\n" in found
    assert "--nnodes=2 --nproc-per-node=4 --max-restarts=3" in found
    assert "-m llmcore run 'a file.toml' train.parallel=fsdp\n" in found
    assert "OMP_NUM_THREADS=8" in found
    assert subprocess.run(["bash", "-n"], input=found, text=True, check=False).returncode == 0
    lines = found.splitlines()
    last = max(number for number, line in enumerate(lines) if line.startswith("#SBATCH"))
    assert all(line.startswith("#") for line in lines[:last]), "sbatch stops reading its options at the first command"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "nothing to launch"),
        (("no_such_module", "run"), "'no_such_module' is no Python module"),
        (("uv", "run", "llmcore"), "'uv' is no Python module"),
        (("llmcore", "run"), "8 processes, and nothing says how they share"),
    ],
)
def test_what_torchrun_could_not_start_is_refused(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        script(*words)
