"""The output folder of a run: what it goes on from, and the artifact it becomes.

out/
├── manifest.json …   the artifact, when the run is finished
└── run/              private to the run
    ├── run.json      what must agree before it goes on
    ├── metrics.jsonl
    ├── tensorboard/
    ├── checkpoints/  step-00000400/ …, each resumable
    ├── nan-dump/     the step that ended it, if one did
    └── defects.log   tracebacks of errors that were not the user's, if there were any
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import TypeVar

from torch import nn

from llmcore.config import Config
from llmcore.errors import ConfigError
from llmcore.manifest import NAME as MANIFEST
from llmcore.manifest import Manifest, read_manifest
from llmcore.storage import lock_directory, remove_durably, remove_leftovers, write_durably
from llmcore.tokenizer import Tokenizer
from llmcore.train import identity
from llmcore.train.artifact import Ending, write_artifact
from llmcore.train.config import TrainConfig
from llmcore.train.describe import end_figures, end_places
from llmcore.train.device import Placement, resolve
from llmcore.train.identity import Identity, check_same_run, identity_of, read_identity
from llmcore.train.parallel import engine_of
from llmcore.train.rehearsal import Rehearsal
from llmcore.train.resuming import check_ours, check_resume, load_verified, unfinished_name
from llmcore.train.retention import snapshot_paths, step_name
from llmcore.train.samples import Prompting
from llmcore.train.session import Session
from llmcore.train.snapshot import Snapshot, load_snapshot
from llmcore.train.view import choose_view

M = TypeVar("M", bound=nn.Module)


class Run:
    """A folder that one process at a time trains in, and that the same command goes on in."""

    def __init__(
        self,
        out: Path | str,
        *,
        made_by: str,
        config: Config,
        parents: Mapping[str, Manifest] | None = None,
        tokenizer: Tokenizer | None = None,
        resume: str | Rehearsal = "auto",
        quiet: bool = False,
        json: bool = False,
        facts: Mapping[str, str] | None = None,
        next_commands: Sequence[str] = (),
        prompting: Prompting | None = None,
    ) -> None:
        """Take the folder `out`, new or of this same run; `facts` join the start panel, `next_commands` the end.

        `prompting` is how samples are asked for during the run, of models that say something. A rehearsal in place of
        `resume` is played instead of training, and leaves the folder alone.
        """
        self.out, self.made_by, self.config = Path(out), made_by, config
        self.parents, self.tokenizer = dict(parents or {}), tokenizer
        self.facts, self.next_commands = dict(facts or {}), tuple(next_commands)
        self.folder = self.out / "run"
        self.snapshots = self.folder / "checkpoints"
        self.metrics_path = self.folder / "metrics.jsonl"
        self.identity_path = self.folder / identity.NAME
        self.prompting = prompting
        self.engine = engine_of(train := train_settings(config), resolve(train.device, train.dtype).device)
        self.json = json and self.engine.ranks.main
        self.view = choose_view(quiet=quiet or not self.engine.ranks.main)
        self.environment: dict[str, str] = {}
        self.ending = Ending()
        self.held = contextlib.ExitStack()
        self.held.callback(self.engine.ranks.leave)
        self.complete: Manifest | None = None
        self.died: str | None = None
        self.unfinished: list[str] = []
        self.rehearsal = None if isinstance(resume, str) else resume
        self.resume = check_resume(resume) if isinstance(resume, str) else "auto"
        try:
            self.check_same_command()
            self.take()
        except BaseException:
            self.close()
            raise

    def take(self) -> None:
        """Hold the folder, on rank 0, and clear away what a killed process left there; all ranks know what it holds."""
        ranks = self.engine.ranks
        if ranks.main:
            check_ours(self.out, self.folder)
            self.identity = self.agree()  # before the lock, so that a refusal leaves another run's folder as it is
            if self.rehearsal is not None:
                self.folder = Path(self.held.enter_context(TemporaryDirectory()))
                return
            self.died = self.held.enter_context(lock_directory(self.folder))
            self.identity = self.agree()
            left = [name for folder in (self.out, self.folder, self.snapshots) for name in remove_leftovers(folder)]
            self.unfinished = [whole for name in left if (whole := unfinished_name(name))]
            self.complete = self.finished()
        self.identity = Identity.model_validate_json(ranks.first(ranks.main and self.identity.model_dump_json()))
        self.complete = self.from_main(self.complete)

    def check_same_command(self) -> None:
        """Refuse ranks that were started with different settings or inputs, or to do anything but train."""
        if self.rehearsal is not None and self.engine.ranks.size > 1:
            raise ConfigError("this command works with one process", hint="give it without torchrun")
        wanted = identity_of(made_by=self.made_by, config=self.config, parents=self.parents).model_dump_json()
        for rank, other in enumerate(everyone := self.engine.ranks.gather(wanted)):
            if other != everyone[0]:
                raise ConfigError(
                    f"process {rank} was started with other settings or inputs than process 0",
                    hint="give every process the same command, and every machine the same files",
                )

    def from_main(self, manifest: Manifest | None) -> Manifest | None:
        """Rank 0's manifest, on every rank."""
        if self.engine.ranks.size == 1:
            return manifest
        text = self.engine.ranks.first(manifest and manifest.model_dump_json())
        return None if text is None else Manifest.model_validate_json(text)

    def agree(self) -> Identity:
        """The identity of this run, compared with what the folder holds."""
        wanted = identity_of(made_by=self.made_by, config=self.config, parents=self.parents)
        steps = snapshot_paths(self.snapshots)
        started = bool(steps) or (self.out / MANIFEST).exists()
        started |= self.rehearsal is not None and self.identity_path.exists()
        if self.resume == "never" and started:
            raise ConfigError(f"{self.out} holds a run already", hint="choose another --out, or --resume auto")
        if not started:
            return wanted
        found = read_identity(self.identity_path)
        check_same_run(self.out, found=found, wanted=wanted, config=self.config)
        return wanted.model_copy(
            update={"device": found.device, "dtype": found.dtype, "environment": found.environment}
        )

    def finished(self) -> Manifest | None:
        """The manifest of the artifact, if the run is finished; a step to go back to makes it unfinished again."""
        if not (self.out / MANIFEST).exists():
            return None
        if self.resume.isdecimal():
            self.load_verified()
            remove_durably(self.out / MANIFEST)
            return None
        return read_manifest(self.out)

    def session(self, model: M, config: TrainConfig) -> Session[M]:
        """Start or go on: used by `fit`."""
        try:
            return Session(self, model, config)
        except BaseException:
            self.close()
            raise

    def resolve(self, config: TrainConfig) -> Placement:
        """Device and dtype: what `auto` meant when the run started, or means now."""
        device = self.identity.device if config.device == "auto" and self.identity.device else config.device
        dtype = self.identity.dtype if config.dtype == "auto" and self.identity.dtype else config.dtype
        placement = resolve(device, dtype)
        if (device, dtype) == (config.device, config.dtype):
            return placement
        return placement._replace(reason=placement.reason.replace("as set", "as the run started"))

    def load(self) -> Snapshot | None:
        """The snapshot to go on from: rank 0 chooses and verifies it."""
        snapshot = self.load_verified() if self.engine.ranks.main else None
        step = self.engine.ranks.first(snapshot and snapshot.progress.step)
        if step is None or snapshot is not None:
            return snapshot
        return load_snapshot(self.snapshot_path(step), verify=False, lazily=self.engine.sharded)

    def load_verified(self) -> Snapshot | None:
        """The snapshot to go on from, whose hashes are right."""
        return load_verified(self.out, self.snapshots, resume=self.resume, lazily=self.engine.sharded)

    def begin(self, environment: Mapping[str, str]) -> None:
        """Note what this run is, before its first step."""
        for name, value in self.identity.environment.items():
            if environment.get(name, value) != value:
                self.view.say(
                    f"warning: {name} is {environment[name]!r}, the run started with {value!r}: bits may differ"
                )
        self.environment = dict(environment)
        update = {
            "device": self.identity.device or environment["device"],
            "dtype": self.identity.dtype or environment["dtype"],
            "environment": dict(self.identity.environment or environment),
        }
        self.identity = self.identity.model_copy(update=update)
        if self.engine.ranks.main:
            write_durably(self.identity_path, self.identity.model_dump_json(indent=1).encode())

    def snapshot_path(self, step: int) -> Path:
        return self.snapshots / step_name(step)

    def finish(
        self,
        model: nn.Module,
        *,
        kind: str = "policy",
        metrics: Mapping[str, float] | None = None,
        counts: Mapping[str, int] | None = None,
        extra_files: Mapping[str, bytes] | None = None,
        base: tuple[str, Path] | None = None,
    ) -> Manifest:
        """Write the artifact: the model, its tokenizer, `extra_files`, and the manifest last.

        Of a model with adapters they alone are written, as an artifact of kind "adapter": `base` is then the parent's
        role and folder of the model below (`llmcore.adapters`). A finished run is left as it is.
        """
        if self.complete is None:
            with self.engine.whole(model, device="cpu", main_only=True) as whole:
                if self.engine.ranks.main:
                    self.complete = write_artifact(
                        self,
                        whole,
                        kind=kind,
                        metrics=metrics or {},
                        counts=counts or {},
                        extra_files=extra_files or {},
                        base=base,
                    )
            self.complete = self.from_main(self.complete)
            assert self.complete is not None
            self.view.end(
                end_figures(self.complete, self.ending),
                end_places(self.out, self.metrics_path, self.next_commands),
            )
        else:
            self.view.say(f"{self.out} is complete already: nothing to do")
        if self.json:
            print(self.complete.model_dump_json(), flush=True)
        self.close()
        return self.complete

    def close(self) -> None:
        """Let go of the folder."""
        self.held.close()

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def train_settings(config: Config) -> TrainConfig:
    """The `[train]` table of a stage's settings, or these settings themselves."""
    train = config if isinstance(config, TrainConfig) else getattr(config, "train", None)
    return train if isinstance(train, TrainConfig) else TrainConfig()
