"""A batch script for SLURM that starts one run on several machines with torchrun; printed, for a person to look at."""

import importlib.util
import shlex
from collections.abc import Sequence

from llmcore.errors import ConfigError
from llmcore.next_command import as_typed

SCRIPT = """\
#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node={gpus}
#SBATCH --cpus-per-task={cpus}
#SBATCH --time={time}
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=TERM@{notice}
{extra}
# {notice} s before the time is up every process gets SIGTERM: the run finishes its step, saves and leaves, for which
# torchrun gives it 30 s. Submitted again, or requeued, the same command goes on from there. The output folder must be
# on a disk that all machines see.
set -euo pipefail
export OMP_NUM_THREADS={threads}
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

srun --kill-on-bad-exit=1 {torchrun} \\
    --nnodes={nodes} --nproc-per-node={gpus} --max-restarts={restarts} \\
    --rdzv-backend=c10d --rdzv-endpoint="$head:{port}" --rdzv-id="$SLURM_JOB_ID" \\
    -m {command}
"""


def slurm_script(
    words: Sequence[str],
    *,
    nodes: int,
    gpus: int,
    cpus: int,
    time: str,
    notice: int = 120,
    restarts: int = 3,
    port: int = 29500,
    options: Sequence[str] = (),
) -> str:
    """The sbatch file that runs a training command, `words`, on `nodes` machines with `gpus` processes each.

    `options` are further lines for sbatch, as `--partition=long`. Raises ConfigError where torchrun could not start
    the command, or the processes would not know how to share it.
    """
    if not words:
        raise ConfigError("there is nothing to launch", hint="give the command after --: -- llmpretrain run cfg.toml")
    if words[0] == "uv" or importlib.util.find_spec(words[0]) is None:
        raise ConfigError(
            f"{words[0]!r} is no Python module that torchrun could start with -m",
            hint="begin with llmpretrain, llmsft, llmreward or llmrl",
        )
    if nodes * gpus > 1 and not any("parallel" in word or word.endswith(".toml") for word in words):
        raise ConfigError(
            f"{nodes * gpus} processes, and nothing says how they share the work",
            hint="add train.parallel=ddp, or train.parallel=fsdp",
        )
    return SCRIPT.format(
        name="-".join(words[:2]),
        nodes=nodes,
        gpus=gpus,
        cpus=cpus,
        threads=max(1, cpus // gpus),
        time=time,
        notice=notice,
        restarts=restarts,
        port=port,
        extra="".join(f"#SBATCH {option}\n" for option in options),
        torchrun=as_typed("torchrun"),
        command=shlex.join(words),
    )
