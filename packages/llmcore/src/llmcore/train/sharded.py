"""Tensors of a snapshot in files of several ranks: safetensors, and a JSON index that says where each row is.

    model-00001-of-00002.safetensors     the rows that rank 0 held, of every tensor
    model-00002-of-00002.safetensors     those of rank 1
    model.index.json                     {"tensors": {name: {"shape": …, "dtype": …, "pieces": [[file, row, rows]]}}}

Each rank writes what it holds and reads what it needs, so a run may go on with any number of processes. No pickle.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llmcore.config import Config, read_saved
from llmcore.errors import ArtifactError
from llmcore.storage import sync_tree
from llmcore.tensors import write_safetensors
from llmcore.train.distributed import Ranks

LARGEST_INDEX = 64 << 20


class Stored(Config):
    """Where one tensor is."""

    shape: tuple[int, ...]
    """Of the whole tensor."""
    dtype: str
    """As torch names it."""
    pieces: tuple[tuple[str, int, int], ...]
    """(file, first row, rows), by row; a tensor that is not cut has one piece."""


class Index(Config):
    """`model.index.json`."""

    schema_version: int = Field(1, ge=1, le=1)
    """The version of this format."""
    tensors: dict[str, Stored]
    """Every tensor by name."""


class Piece:
    """The rows of a tensor that this rank holds: of a DTensor its part, of any other all, on rank 0."""

    def __init__(self, tensor: Tensor, ranks: Ranks) -> None:
        self.shape, self.dtype = tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")
        self.cut = is_cut(tensor)
        self.rows = local_rows(tensor, ranks) if self.cut else slice(0, self.shape[0] if self.shape else 0)
        self.tensor = local_part(tensor).detach().cpu().contiguous()
        self.held = self.tensor.numel() > 0 if self.cut else ranks.main

    def entry(self, file: str) -> list[Any]:
        return [list(self.shape), self.dtype, file, self.rows.start, self.rows.stop - self.rows.start]


def save_parts(folder: Path, name: str, tensors: Mapping[str, Tensor], ranks: Ranks) -> list[str]:
    """Write this rank's rows of `tensors` below `folder`; on return all ranks have, and rank 0 wrote the index.

    Gives the names of all files written.
    """
    file = f"{name}-{ranks.rank + 1:05}-of-{ranks.size:05}.safetensors"
    pieces = {key: Piece(tensor, ranks) for key, tensor in tensors.items()}
    held = {key: piece for key, piece in pieces.items() if piece.held}
    mine = folder / f"rank-{ranks.rank}"
    mine.mkdir()
    write_safetensors(mine / file, {key: piece.tensor for key, piece in held.items()})
    sync_tree(mine)
    (mine / file).rename(folder / file)
    mine.rmdir()
    everyone = ranks.gather([file, {key: piece.entry(file) for key, piece in held.items()}])
    index = f"{name}.index.json"
    if ranks.main:
        (folder / index).write_text(index_of(entries for _, entries in everyone).model_dump_json(), encoding="utf-8")
    return [*(file for file, _ in everyone), index]


def index_of(entries: Iterator[Mapping[str, list[Any]]]) -> Index:
    """The index of what all ranks wrote."""
    found: dict[str, Stored] = {}
    for of_rank in entries:
        for name, (shape, dtype, file, start, rows) in of_rank.items():
            before = found[name].pieces if name in found else ()
            found[name] = Stored(shape=tuple(shape), dtype=dtype, pieces=(*before, (file, start, rows)))
    return Index(tensors=found)


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of one part of a snapshot, read when they are asked for; whole, or the rows that a rank needs."""

    def __init__(self, folder: Path, name: str) -> None:
        """`name`: `model` or `optimizer`, in one file or in several."""
        self.folder = folder
        self.index = read_index(folder, name)

    def __getitem__(self, name: str) -> Tensor:
        stored = self.index.tensors[name]
        return self.rows(name, slice(0, stored.shape[0])) if stored.shape else self.read(stored.pieces[0][0], name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.index.tensors)

    def __len__(self) -> int:
        return len(self.index.tensors)

    def like(self, name: str, wanted: Tensor, ranks: Ranks) -> Tensor:
        """The tensor in the form of `wanted`: if that is cut up, the rows that this rank holds of it."""
        stored = self.index.tensors[name]
        if not is_cut(wanted) or stored.shape != tuple(wanted.shape):
            return self[name]
        return like(wanted, self.rows(name, local_rows(wanted, ranks)))

    def rows(self, name: str, wanted: slice) -> Tensor:
        """Some rows of a tensor, from the files that hold them."""
        stored = self.index.tensors[name]
        found = [
            self.read(file, name, slice(max(wanted.start - first, 0), min(wanted.stop - first, count)))
            for file, first, count in stored.pieces
            if first < wanted.stop and wanted.start < first + count
        ]
        if not found:
            return torch.empty(0, *stored.shape[1:], dtype=getattr(torch, stored.dtype))
        tensor = found[0] if len(found) == 1 else torch.cat(found)
        if len(tensor) != wanted.stop - wanted.start or str(tensor.dtype) != f"torch.{stored.dtype}":
            raise ArtifactError(
                f"{self.folder}: {name} is {tensor.dtype} with {len(tensor)} rows, not as in the index",
                hint="restore it from a copy, or make the artifact again",
            )
        return tensor

    def read(self, file: str, name: str, rows: slice | None = None) -> Tensor:
        path = self.folder / file
        try:
            with safe_open(path, framework="pt") as opened:
                tensor: Tensor = opened.get_tensor(name) if rows is None else opened.get_slice(name)[rows]
                return tensor
        except (SafetensorError, OSError, ValueError) as error:
            raise ArtifactError(
                f"{path} is not a readable safetensors file: {error}",
                hint="restore it from a copy, or make the artifact again",
            ) from None


def read_index(folder: Path, name: str) -> Index:
    """Where the tensors are, in files of several ranks or in the single one."""
    path = folder / f"{name}.index.json"
    if not path.exists():
        return single_index(folder / f"{name}.safetensors")
    index = read_saved(Index, path, what="an index of tensors", limit=LARGEST_INDEX, hint="")
    for stored in index.tensors.values():
        for file, _, _ in stored.pieces:
            if Path(file).name != file:
                raise ArtifactError(
                    f"{path} names {file!r}, which is not a file beside it",
                    hint="restore it from a copy, or make the artifact again",
                )
    return index


def single_index(path: Path) -> Index:
    tensors: dict[str, Stored] = {}
    try:
        with safe_open(path, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                piece = opened.get_slice(name)
                shape = tuple(piece.get_shape())
                dtype = str(opened.get_tensor(name).dtype).removeprefix("torch.")
                tensors[name] = Stored(shape=shape, dtype=dtype, pieces=((path.name, 0, shape[0] if shape else 0),))
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtifactError(
            f"{path} is not a readable safetensors file: {error}",
            hint="restore it from a copy, or make the artifact again",
        ) from None
    return Index(tensors=tensors)


def is_cut(tensor: Tensor) -> bool:
    """Whether this rank holds a part only: a DTensor, whose module a process alone does not load."""
    return type(tensor) not in (Tensor, torch.nn.Parameter) and hasattr(tensor, "to_local")


def local_part(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor."""
    return tensor.to_local() if is_cut(tensor) else tensor  # type: ignore[attr-defined]


def local_rows(tensor: Tensor, ranks: Ranks) -> slice:
    """The rows that this rank holds of a tensor: torch gives every rank ⌈rows / ranks⌉, the last ones fewer."""
    count = tensor.shape[0]
    most = -(-count // ranks.size)
    rows = slice(min(ranks.rank * most, count), min((ranks.rank + 1) * most, count))
    assert len(local_part(tensor)) == rows.stop - rows.start, f"{tuple(tensor.shape)} is cut in another way"
    return rows


def like(wanted: Tensor, part: Tensor) -> Tensor:
    """This rank's part as a tensor that is cut up as `wanted` is."""
    from torch.distributed.tensor import DTensor

    assert isinstance(wanted, DTensor)
    return DTensor.from_local(
        part.to(wanted.to_local().device),
        wanted.device_mesh,
        wanted.placements,
        run_check=False,
        shape=wanted.shape,
        stride=wanted.stride(),
    )
