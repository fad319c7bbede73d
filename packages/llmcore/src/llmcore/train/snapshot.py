"""Resumable checkpoints: `run/checkpoints/step-00000400/` holds all that the next step depends on.

    model.safetensors       every weight and persistent buffer, tied ones once
    optimizer.safetensors   the optimizer's state, named `exp_avg/<parameter>`, and the average `ema/<parameter>`
    source.safetensors      tensors of the data source, if it has any
    state.json              step, counts, and the source's other values
    manifest.json           written last, with the hash of each file

Of a model in parts each rank writes its own, and an index says where they are: see `sharded`. No random state:
randomness is a function of (seed, step).
"""

from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import Field, JsonValue
from torch import Tensor, nn

from llmcore.config import Config, read_saved
from llmcore.errors import ArtifactError, LLMError, TrainingError
from llmcore.manifest import read_manifest, verify_artifact, write_manifest
from llmcore.storage import check_free_space, commit_directory
from llmcore.tensors import all_finite, load_tensors, write_safetensors
from llmcore.train.distributed import ALONE, Ranks
from llmcore.train.retention import step_name
from llmcore.train.sharded import StoredTensors, is_cut, local_part, save_parts
from llmcore.train.source import SourceState

LARGEST_STATE = 64 << 20


class Progress(NamedTuple):
    """How far a run has come."""

    step: int = 0
    """Optimizer steps done."""
    tokens: int = 0
    """Tokens (or, of a batch without ids, items) seen."""
    seconds: float = 0.0
    """Time spent in steps; not part of what is exact."""


class ScaleState(Config):
    """The scale of the loss in float16; see `llmcore.train.precision`."""

    value: float = Field(gt=0)
    """The scale."""
    good_steps: int = Field(ge=0)
    """Steps without an overflow since it last changed."""
    overflows: int = Field(ge=0)
    """Attempts thrown away so far."""


class State(Config):
    """`state.json`: the part of a resumable checkpoint that is no tensor."""

    schema_version: int = Field(1, ge=1, le=1)
    """The version of this format."""
    step: int = Field(ge=0)
    """Optimizer steps done."""
    tokens: int = Field(ge=0)
    """Tokens seen."""
    seconds: float = Field(ge=0)
    """Time spent in steps."""
    source: dict[str, JsonValue] | None = None
    """Values of the data source; none if it has no state."""
    loss_scale: ScaleState | None = None
    """With fp16, the scale of the loss."""


class Snapshot(NamedTuple):
    """A resumable checkpoint in memory."""

    progress: Progress
    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    source: SourceState | None
    loss_scale: ScaleState | None = None


def save_snapshot(folder: Path, snapshot: Snapshot, *, made_by: str, ranks: Ranks = ALONE) -> Path:
    """Commit a snapshot below `folder` under its step; when this returns, it is durable.

    With several `ranks` all call this, with their parts.
    """
    parts: dict[str, Mapping[str, Tensor]] = {"model": snapshot.model, "optimizer": snapshot.optimizer}
    cut = any(is_cut(tensor) for tensor in snapshot.model.values())
    if snapshot.source is not None and snapshot.source.tensors:
        parts["source"] = detached(snapshot.source.tensors)
    check_finite(snapshot.model)
    folder.mkdir(parents=True, exist_ok=True)
    check_free_space(folder, bytes_of(parts))
    path = folder / step_name(snapshot.progress.step)
    with commit_together(path, ranks) as scratch:
        files: list[str] = []
        for name, tensors in parts.items():
            if cut and name != "source":
                files += save_parts(scratch, name, tensors, ranks)
            elif ranks.main:
                write_safetensors(scratch / f"{name}.safetensors", tensors)
                files.append(f"{name}.safetensors")
        if not ranks.main:
            return path
        state = State(
            **snapshot.progress._asdict(),
            source=snapshot.source.values if snapshot.source is not None else None,
            loss_scale=snapshot.loss_scale,
        )
        (scratch / "state.json").write_text(state.model_dump_json(indent=1), encoding="utf-8")
        write_manifest(scratch, kind="snapshot", made_by=made_by, config={}, files=[*files, "state.json"])
    return path


@contextmanager
def commit_together(path: Path, ranks: Ranks) -> Iterator[Path]:
    """`commit_directory` of rank 0, in which all ranks write; at the end of the block it is there for all."""
    if ranks.main:
        with commit_directory(path) as scratch:
            ranks.first(str(scratch))
            yield scratch
    else:
        yield Path(ranks.first())
    ranks.wait()


def load_snapshot(path: Path, *, verify: bool = True, lazily: bool = False) -> Snapshot:
    """Read a snapshot whose every hash is right.

    `verify`: False where another rank did. `lazily`: for a model in parts, of which each rank reads its own.
    """
    files = (verify_artifact if verify else read_manifest)(path, expect="snapshot").files
    lazily = lazily or "model.index.json" in files
    state = read_state(path / "state.json")
    if step_name(state.step) != path.name:
        raise ArtifactError(
            f"{path} holds step {state.step}, which is not its name",
            hint="give the folder its name back, or go on from another with --resume STEP",
        )
    source = None
    if state.source is not None:
        tensors = load_tensors(path / "source.safetensors") if "source.safetensors" in files else {}
        source = SourceState(tensors, state.source)
    return Snapshot(
        Progress(state.step, state.tokens, state.seconds),
        StoredTensors(path, "model") if lazily else load_tensors(path / "model.safetensors"),
        StoredTensors(path, "optimizer") if lazily else load_tensors(path / "optimizer.safetensors"),
        source,
        state.loss_scale,
    )


def latest_intact(paths: dict[int, Path]) -> int | None:
    """The highest step whose snapshot verifies."""
    for step, path in reversed(paths.items()):
        try:
            verify_artifact(path, expect="snapshot")
        except LLMError:
            continue
        return step
    return None


def model_state(model: nn.Module) -> dict[str, Tensor]:
    """Weights and persistent buffers by name; what shares memory (tied weights) appears once, under its first name."""
    seen: set[tuple[int, torch.Size, tuple[int, ...]]] = set()
    unique: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        here = local_part(tensor)
        key = (here.data_ptr(), tensor.shape, tensor.stride())
        if here.numel() and key in seen:
            continue
        seen.add(key)
        unique[name] = tensor
    return detached(unique)


def restore_model(model: nn.Module, tensors: Mapping[str, Tensor], path: Path, ranks: Ranks = ALONE) -> None:
    """Copy a snapshot's weights into the model they were taken from: the same names, shapes and dtypes."""
    wanted = model.state_dict()
    names = model_state(model).keys()
    check_names(path / "model.safetensors", wanted=names, found=tensors.keys())
    with torch.no_grad():
        for name in tensors:
            tensor = stored_like(tensors, name, wanted[name], ranks)
            check_shape(path / "model.safetensors", name, tensor, wanted[name])
            local_part(wanted[name]).copy_(local_part(tensor))


def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's tensors as `key/parameter`; step counts are tensors too."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if value is not None:
                tensors[f"{key}/{name}"] = value if isinstance(value, Tensor) else torch.tensor(value)
    return detached(tensors)


def stored_like(tensors: Mapping[str, Tensor], name: str, wanted: Tensor, ranks: Ranks) -> Tensor:
    """A tensor of a snapshot in the form of `wanted`: whole, or this rank's part of it."""
    return tensors.like(name, wanted, ranks) if isinstance(tensors, StoredTensors) else tensors[name]


def restore_optimizer(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, Tensor],
    path: Path,
    ranks: Ranks = ALONE,
) -> None:
    """Give the optimizer a snapshot's state; torch moves each tensor to where its parameter is."""
    by_name = dict(model.named_parameters())
    saved: dict[str, dict[str, Tensor]] = {}
    for full_name in tensors:
        key, _, name = full_name.partition("/")
        like = by_name.get(name, torch.empty(0))
        saved.setdefault(name, {})[key] = stored_like(tensors, full_name, like, ranks)
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    wanted = {name for name, parameter in by_name.items() if id(parameter) in trained}
    # At step 0, and of parameters that never had a gradient, there is no state.
    check_names(path / "optimizer.safetensors", wanted=wanted & saved.keys(), found=saved.keys())
    packed = optimizer.state_dict()
    names = {id(parameter): name for name, parameter in by_name.items()}
    order = [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
    packed["state"] = {index: saved[name] for index, name in enumerate(order) if name in saved}
    optimizer.load_state_dict(packed)


def detached(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: tensor.detach() if is_cut(tensor) else tensor.detach().cpu().contiguous()
        for name, tensor in tensors.items()
    }


def bytes_of(parts: Mapping[str, Mapping[str, Tensor]]) -> int:
    """What the files of these tensors need on the disk, with some room."""
    tensors = [tensor for part in parts.values() for tensor in part.values()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) + (1 << 20)


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not all_finite(local_part(tensor)):
            raise TrainingError(
                f"{name} holds values that are not finite: nothing was saved",
                hint="lower train.lr and give the command again: it goes on from the last good step",
            )


def check_names(path: Path, *, wanted: Set[str], found: Set[str]) -> None:
    if wanted != found:
        raise ArtifactError(
            f"{path} does not fit the model: missing {sorted(wanted - found)[:3]}, "
            f"unexpected {sorted(found - wanted)[:3]}",
            hint="choose another --out",
        )


def check_shape(path: Path, name: str, found: Tensor, wanted: Tensor) -> None:
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        raise ArtifactError(
            f"{path}: {name} is {found.dtype} {list(found.shape)}, the model has {wanted.dtype} {list(wanted.shape)}",
            hint="choose another --out",
        )


def read_state(path: Path) -> State:
    return read_saved(State, path, what="the state of a run", limit=LARGEST_STATE, hint="")
