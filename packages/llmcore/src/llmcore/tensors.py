"""Tensors on disk: a safetensors file, written durably, and mapped rather than read."""

import hashlib
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from llmcore.errors import ArtifactError
from llmcore.manifest import damaged
from llmcore.storage import TEMPORARY, disk_error, sha256_file, sync_folder, sync_tree

HASH_BYTES = 1 << 20
OS_ERROR = re.compile(r"os error (\d+)")
"""How safetensors, which is written in Rust, ends its sentence about a disk that refused."""


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write one safetensors file durably: temporary name, fsync, mode by the umask, rename."""
    scratch = path.with_name(f"{TEMPORARY}{path.name}")
    try:
        scratch.mkdir(exist_ok=True)
        write_safetensors(scratch / path.name, tensors, metadata)
        sync_tree(scratch)
        (scratch / path.name).replace(path)
        scratch.rmdir()
        sync_folder(path.parent)
    except OSError as error:
        shutil.rmtree(scratch, ignore_errors=True)
        raise disk_error(path, error) from error


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write one safetensors file in place, not durably; a disk that refuses it is an OSError, as elsewhere."""
    try:
        save_file(dict(tensors), path, metadata={"format": "pt", **(metadata or {})})
    except SafetensorError as error:
        number = OS_ERROR.search(str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def load_tensors(path: Path, *, sha256: str | None = None) -> dict[str, Tensor]:
    """All tensors of a safetensors file, mapped; with `sha256`, only of a file that has this hash.

    The hash is taken over the mapped tensors themselves: what is verified is what is used, and memory holds it once.
    """
    try:
        with safe_open(path, framework="pt") as file:
            names = file.offset_keys()
            tensors = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError, ValueError) as error:
        if sha256 is not None and sha256_file(path) != sha256:
            raise damaged(path) from None
        raise ArtifactError(
            f"{path} is not a readable safetensors file: {error}",
            hint="restore it from a copy, or make the artifact again",
        ) from None
    if sha256 is not None and sha256_of(path, tensors) != sha256:
        raise damaged(path)
    return tensors


def sha256_of(path: Path, tensors: dict[str, Tensor]) -> str:
    """The hash of a safetensors file from its mapped tensors, given in the order of their offsets.

    Such a file is 8 bytes of the header's length, the header, and the tensors' bytes without a gap, which `safe_open`
    has checked.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        length = file.read(8)
        digest.update(length + file.read(int.from_bytes(length, "little")))
    for tensor in tensors.values():
        content = tensor.reshape(-1).view(torch.uint8).numpy().data
        for start in range(0, len(content), HASH_BYTES):
            digest.update(content[start : start + HASH_BYTES])
    return digest.hexdigest()


def all_finite(tensor: Tensor) -> bool:
    """Whether no number is infinite or NaN: its extremes say so, without a copy of the tensor."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    least, largest = torch.aminmax(tensor)
    return bool(least.isfinite() & largest.isfinite())
