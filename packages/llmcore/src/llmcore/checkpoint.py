"""A model on disk: architecture, weights, tokenizer, manifest.

    policy/
    ├── manifest.json       written last
    ├── model.json          the architecture (ModelConfig)
    ├── model.safetensors   the weights, master precision
    ├── tokenizer.json      with special_tokens.json
    └── run/                private to the run that made it

Loading builds the model on the meta device and assigns the mapped weights, so memory holds them once. The file's hash
(over the same mapping), the exact set of names, shapes and dtypes, and finiteness are checked before anything is used.
"""

from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from llmcore.config import read_saved
from llmcore.errors import ArtifactError, ConfigError
from llmcore.manifest import Manifest, check_needs, read_manifest, verify_artifact
from llmcore.model.config import ModelConfig
from llmcore.model.linear import initialise
from llmcore.model.transformer import Transformer, build_head
from llmcore.storage import write_durably
from llmcore.tensors import all_finite, load_tensors, save_tensors
from llmcore.tokenizer import Tokenizer

WEIGHTS = "model.safetensors"
ARCHITECTURE = "model.json"


class Checkpoint(NamedTuple):
    """A loaded model with all that belongs to it."""

    model: Transformer
    tokenizer: Tokenizer
    manifest: Manifest


def save_model(folder: Path, model: Transformer, tokenizer: Tokenizer) -> list[str]:
    """Write architecture, weights and tokenizer durably into `folder`; the names written, for the manifest."""
    write_durably(folder / ARCHITECTURE, model.config.model_dump_json(indent=1).encode())
    save_tensors(folder / WEIGHTS, model_tensors(model))
    return [ARCHITECTURE, WEIGHTS, *tokenizer.save(folder)]


def load_checkpoint(
    folder: Path,
    *,
    expect: str | None = "policy",
    head: Literal["scalar"] | None = None,
    device: torch.device | str = "cpu",
    base: Path | None = None,
) -> Checkpoint:
    """Load and verify a model; `head="scalar"` keeps the trunk and starts a fresh scalar head.

    Where a policy is expected, an adapter serves too: it comes merged into the model that it stands on, which is
    where it was, or in `base`.
    Raises ArtifactError for another kind, damage, or any mismatch of names, shapes or dtypes; ExtensionError if a
    package that the model needs is missing.
    """
    if expect in ("policy", None) and read_manifest(folder).kind == "adapter":
        from llmcore.adapters import load_adapter

        return as_wanted(load_adapter(folder, base=base), head=head, device=device, folder=folder)
    if base is not None:
        raise ConfigError(
            f"--base {str(base)!r}: {folder} is no adapter and stands on no other model", hint="leave --base out"
        )
    manifest = verify_artifact(folder, expect=expect, leaving=[WEIGHTS])
    check_needs(manifest, folder)
    if not {ARCHITECTURE, WEIGHTS} <= manifest.files.keys():
        raise ArtifactError(
            f"{folder} holds no model: its manifest says {manifest.kind!r} and names no {ARCHITECTURE} and {WEIGHTS}",
            hint="give the folder that a training command or llmcore import hf wrote",
        )
    config = read_architecture(folder / ARCHITECTURE)
    tensors = load_tensors(folder / WEIGHTS, sha256=manifest.files[WEIGHTS].sha256)
    if head is not None and config.head != head:
        model = with_fresh_head(config, tensors, folder)
    else:
        with torch.device("meta"):
            model = config.build()
        assign(model, tensors, folder / WEIGHTS)
    return Checkpoint(model.to(device).eval(), Tokenizer.load(folder), manifest)


def as_wanted(
    loaded: Checkpoint, *, head: Literal["scalar"] | None, device: torch.device | str, folder: Path
) -> Checkpoint:
    """The same with a fresh head, if one is asked for, on a device."""
    model = loaded.model
    if head is not None and model.config.head != head:
        model = with_fresh_head(model.config, model_tensors(model), folder)
    return loaded._replace(model=model.to(device).eval())


def read_architecture(path: Path) -> ModelConfig:
    """The architecture of a checkpoint."""
    return read_saved(ModelConfig, path, what="a model architecture")


def with_fresh_head(config: ModelConfig, tensors: dict[str, Tensor], folder: Path) -> Transformer:
    """The trunk of a language model below a newly initialised scalar head; only the head is drawn."""
    scalar = config.model_copy(update={"head": "scalar"})
    head = build_head(scalar)
    assert head is not None, "a scalar head has a projection of its own"
    initialise(head, std=scalar.initial_std, depth=scalar.depth)
    with torch.device("meta"):
        model = scalar.build()
    trunk = {name: tensor for name, tensor in tensors.items() if not name.startswith("head.")}
    fresh = {f"head.{name}": tensor for name, tensor in head.state_dict().items()}
    assign(model, trunk | fresh, folder / WEIGHTS)
    return model


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state of a module by name, without tied duplicates; contiguous, on the CPU."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}


def assign(model: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Give a module exactly these tensors: no name missing or extra, every shape and dtype equal, all finite."""
    wanted = model.state_dict()
    missing, extra = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    if missing or extra:
        raise ArtifactError(
            f"{path} does not fit its architecture: missing {missing[:3]}, unexpected {extra[:3]}",
            hint="restore it from a copy, or make the artifact again",
        )
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape or tensor.dtype != wanted[name].dtype:
            raise ArtifactError(
                f"{path}: {name} is {tensor.dtype} {list(tensor.shape)}, "
                f"the architecture wants {wanted[name].dtype} {list(wanted[name].shape)}",
                hint="restore it from a copy, or make the artifact again",
            )
        if not all_finite(tensor):
            raise ArtifactError(
                f"{path}: {name} holds values that are not finite",
                hint="take an earlier checkpoint, or train again with a lower train.lr",
            )
    model.load_state_dict(tensors, assign=True)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
