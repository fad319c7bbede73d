"""An adapter on disk: its weights alone, and which model they stand on.

    adapter/
    ├── manifest.json          written last; the whole manifest of the model below is among its parents
    ├── adapter.json           the settings, and which parent is that model
    └── adapter.safetensors    the adapters' weights

`load_checkpoint` gives the model below with the adapter merged into its weights, so that an adapter serves wherever a
policy does. The model is looked for where it was, seen from the adapter's folder; another one is refused.
"""

import os
from pathlib import Path

from pydantic import Field
from torch import Tensor, nn

from llmcore.checkpoint import Checkpoint, load_checkpoint, save_model
from llmcore.config import Config, read_saved
from llmcore.errors import ArtifactError
from llmcore.extensions import needs_of
from llmcore.lora import AnyAdapter
from llmcore.manifest import NAME as MANIFEST
from llmcore.manifest import Manifest, check_needs, read_manifest, verify_artifact, write_manifest
from llmcore.model.adapters import adapted, adapter_tensors, add_adapters, merge_adapters
from llmcore.storage import commit_directory, write_durably
from llmcore.tensors import load_tensors, save_tensors

KIND = "adapter"
SETTINGS = "adapter.json"
WEIGHTS = "adapter.safetensors"


class AdapterFile(Config):
    """`adapter.json`."""

    schema_version: int = Field(1, ge=1, le=1)
    """The version of this format."""
    parent: str
    """The role of the model below among the manifest's parents."""
    adapter: AnyAdapter
    """What the adapters are."""


def save_adapter(folder: Path, model: nn.Module, *, parent: str) -> list[str]:
    """Write the adapters of a model durably into `folder`; the names written, for the manifest."""
    first = next(iter(adapted(model).values())).adapter
    assert first is not None
    settings = AdapterFile(parent=parent, adapter=first.settings)
    write_durably(folder / SETTINGS, settings.model_dump_json(indent=1).encode())
    save_tensors(folder / WEIGHTS, adapter_tensors(model))
    return [SETTINGS, WEIGHTS]


def load_adapter(folder: Path, *, base: Path | None = None, merge: bool = True) -> Checkpoint:
    """The model below an adapter with it, merged or beside the weights; `base` says where that model is now."""
    manifest = verify_artifact(folder, expect=KIND)
    check_needs(manifest, folder)
    settings = read_settings(folder / SETTINGS)
    below = load_base(folder, manifest, parent=settings.parent, base=base)
    add_adapters(below.model, settings.adapter, seed=0)
    assign_adapters(below.model, folder / WEIGHTS)
    if merge:
        merge_adapters(below.model)
    return Checkpoint(below.model.eval(), below.tokenizer, manifest)


def merge_to(out: Path, folder: Path, *, made_by: str, base: Path | None = None) -> Manifest:
    """Write the adapter in `folder`, merged, as a policy to the new folder `out`."""
    merged = load_adapter(folder, base=base)
    with commit_directory(out) as scratch:
        return write_manifest(
            scratch,
            kind="policy",
            made_by=made_by,
            config={},
            parents={KIND: merged.manifest},
            needs=needs_of(merged.model.config),
            files=save_model(scratch, merged.model, merged.tokenizer),
        )


def check_adapter(folder: Path) -> None:
    """Raise ArtifactError for settings or weights that cannot be; the model below is not needed."""
    read_settings(folder / SETTINGS)
    check_finite(folder / WEIGHTS, load_tensors(folder / WEIGHTS))


def load_base(folder: Path, manifest: Manifest, *, parent: str, base: Path | None) -> Checkpoint:
    """The model that an adapter stands on, and no other."""
    if parent not in manifest.parents:
        raise ArtifactError(
            f"{folder / SETTINGS} stands on its parent {parent!r}, and its manifest names "
            f"{', '.join(manifest.parents) or 'none'}",
            hint="restore it from a copy, or make the adapter again",
        )
    wanted = manifest.parents[parent].id
    place = base or Path(os.path.normpath(folder / manifest.places.get(parent, "")))
    advice = f"give the model with the id {wanted} as --base, or merge the adapter where that model is"
    if base is None and not (place / MANIFEST).exists():
        raise ArtifactError(f"{folder} stands on a model that is not where it was, in {str(place)!r}", hint=advice)
    found = read_manifest(place)
    if found.id != wanted:
        raise ArtifactError(
            f"{folder} stands on another model than {place}: that is {found.kind} {found.id}, not {wanted}",
            hint=advice,
        )
    return load_checkpoint(place)


def read_settings(path: Path) -> AdapterFile:
    """The settings of an adapter."""
    return read_saved(AdapterFile, path, what="an adapter's settings")


def assign_adapters(model: nn.Module, path: Path) -> None:
    """Give a model's adapters exactly the weights of a file."""
    wanted, found = adapter_tensors(model), load_tensors(path)
    if wanted.keys() != found.keys() or any(wanted[name].shape != found[name].shape for name in wanted):
        raise ArtifactError(
            f"{path} does not fit its settings: missing {sorted(wanted.keys() - found.keys())[:3]}, "
            f"unexpected {sorted(found.keys() - wanted.keys())[:3]}, or of other sizes",
            hint="restore it from a copy, or make the artifact again",
        )
    check_finite(path, found)
    model.load_state_dict(found, strict=False)


def check_finite(path: Path, tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise ArtifactError(
                f"{path}: {name} holds values that are not finite",
                hint="take an earlier checkpoint, or train again with a lower train.lr",
            )
