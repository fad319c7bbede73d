"""Weights of a Hugging Face folder: one safetensors file, or several with an index."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from llmcore.errors import ArtifactError
from llmcore.huggingface.settings import read_json
from llmcore.storage import write_durably
from llmcore.tensors import save_tensors

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9


class TensorFiles:
    """Tensors by name, each read from its file when it is asked for; `prefix` is put before names that lack it."""

    def __init__(self, folder: Path, *, prefix: str = "") -> None:
        self.folder = folder
        self.files = weight_files(folder)
        self.places: dict[str, tuple[Path, str]] = {}
        for file in self.files:
            for name in names_in(folder / file):
                if name in self.places:
                    raise ArtifactError(f"{folder}: {name} stands in two files", hint="restore the folder from a copy")
                self.places[name] = (folder / file, name)
        if prefix and not any(name.startswith(prefix) for name in self.places):
            heads = ("lm_head.", "score.")
            self.places = {n if n.startswith(heads) else prefix + n: place for n, place in self.places.items()}

    def names(self) -> set[str]:
        return set(self.places)

    def read(self, name: str) -> Tensor:
        path, inside = self.places[name]
        with open_file(path) as file:
            tensor: Tensor = file.get_tensor(inside)
            return tensor


def weight_files(folder: Path) -> list[str]:
    """The names of the safetensors files that hold a model."""
    if (folder / INDEX).exists():
        places = read_json(folder / INDEX).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
            raise ArtifactError(f"{folder / INDEX} has no weight_map", hint="restore it from a copy")
        files = sorted(set(places.values()))
        outside = [name for name in files if Path(name).name != name]
        if outside:
            raise ArtifactError(
                f"{folder / INDEX} names {outside[0]!r}, which lies outside the folder",
                hint="download the model again, whole",
            )
        return files
    if (folder / SINGLE).exists():
        return [SINGLE]
    pickles = sorted(path.name for path in folder.glob("*.bin")) + sorted(path.name for path in folder.glob("*.pt"))
    if pickles:
        raise ArtifactError(
            f"{folder} holds its weights as a pickle ({pickles[0]!r}), which could run any code when it is read",
            hint="save the model with transformers' save_pretrained(..., safe_serialization=True), and import that",
        )
    raise ArtifactError(f"{folder} has neither {SINGLE} nor {INDEX}", hint="give a folder that save_pretrained wrote")


def names_in(path: Path) -> list[str]:
    with open_file(path) as file:
        return list(file.keys())


def open_file(path: Path) -> safe_open:
    """A safetensors file; what is wrong with it becomes one sentence."""
    if not path.is_file():
        raise ArtifactError(f"{path} is missing, but the index names it", hint="fetch all files of the model")
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtifactError(
            f"{path} is not a readable safetensors file: {error}", hint="fetch it again: it may be cut short"
        ) from None


def write_weights(folder: Path, tensors: Mapping[str, Tensor], *, shard_bytes: int = SHARD_BYTES) -> list[str]:
    """Write one file, or several of at most `shard_bytes` with their index; the names written."""
    shards = list(deal(tensors, shard_bytes))
    if len(shards) == 1:
        save_tensors(folder / SINGLE, shards[0])
        return [SINGLE]
    names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        save_tensors(folder / name, shard)
    places = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    write_durably(folder / INDEX, (json.dumps(index, indent=2) + "\n").encode())
    return [*names, INDEX]


def deal(tensors: Mapping[str, Tensor], shard_bytes: int) -> Iterator[dict[str, Tensor]]:
    """Groups of tensors of at most `shard_bytes`, in order; a larger tensor stands alone."""
    shard: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if shard and sum(one.nbytes for one in shard.values()) + tensor.nbytes > shard_bytes:
            yield shard
            shard = {}
        shard[name] = tensor
    yield shard
