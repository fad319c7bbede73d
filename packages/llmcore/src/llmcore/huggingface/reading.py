"""`llmcore import hf`: a Hugging Face folder becomes a checkpoint of ours, without transformers."""

from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import ValidationError

from llmcore.checkpoint import assign, save_model
from llmcore.errors import ArtifactError, ConfigError
from llmcore.extensions import needs_of
from llmcore.huggingface.family import Family, find_family
from llmcore.huggingface.keys import read_tensors
from llmcore.huggingface.settings import Settings, read_settings
from llmcore.huggingface.tensors import INDEX, TensorFiles, weight_files
from llmcore.huggingface.vocabulary import GENERATION_CONFIG, TEMPLATE, TOKENIZER_CONFIG, read_tokenizer
from llmcore.manifest import FileEntry, Manifest, file_entry, verify_artifact, write_manifest
from llmcore.model.config import ModelConfig
from llmcore.model.size import count_parameters
from llmcore.model.transformer import Transformer
from llmcore.storage import commit_directory
from llmcore.tokenizer import TOKENIZER_FILE, Tokenizer

CONFIG = "config.json"
SMALL_FILES = (
    CONFIG,
    GENERATION_CONFIG,
    TOKENIZER_FILE,
    TOKENIZER_CONFIG,
    "special_tokens_map.json",
    TEMPLATE,
    "chat_template.json",
    INDEX,
)
EXPORTED = "huggingface"
"""The manifest kind of a folder that `llmcore export hf` wrote."""


class Imported(NamedTuple):
    """A Hugging Face folder as what it is here."""

    family: Family
    model: Transformer
    tokenizer: Tokenizer


def import_hf(source: Path, out: Path, *, chat: str | None = None, context: int | None = None) -> Manifest:
    """Write the model in the Hugging Face folder `source` as a policy or reward checkpoint to `out`."""
    imported = read_hf(source, chat=chat, context=context)
    model, tokenizer = imported.model, imported.tokenizer
    with commit_directory(out) as folder:
        return write_manifest(
            folder,
            kind="policy" if model.config.head == "lm" else "reward",
            made_by="llmcore import hf",
            config={"model_type": imported.family.model_type, "chat": tokenizer.special.chat},
            parents={"source": describe_source(source)},
            needs=needs_of(model.config),
            counts={"parameters": count_parameters(model)},
            files=save_model(folder, model, tokenizer),
        )


def read_hf(source: Path, *, chat: str | None = None, context: int | None = None) -> Imported:
    """The model and tokenizer in a Hugging Face folder; every tensor of it is used, or the folder is refused."""
    if not source.is_dir():
        raise ArtifactError(
            f"{str(source)!r} is no folder", hint="give a folder with config.json, tokenizer.json and safetensors files"
        )
    if not (source / CONFIG).exists():
        raise ArtifactError(
            f"{source} is no Hugging Face folder: it has no {CONFIG}", hint="give a folder that save_pretrained wrote"
        )
    hf = read_settings(source / CONFIG)
    hf.only("quantization_config", None)
    family = find_family(hf.text("model_type"))
    config = with_context(read_architecture(hf, family), context)
    tokenizer = read_tokenizer(source, hf, chat=chat)
    assert config.vocab_size is not None
    if tokenizer.vocab_size > config.vocab_size:
        raise ArtifactError(
            f"{source}: the tokenizer has {tokenizer.vocab_size} tokens, the model {config.vocab_size}",
            hint="import the tokenizer that the model was trained with",
        )
    return Imported(family, read_model(source, family, config), tokenizer)


def read_architecture(hf: Settings, family: Family) -> ModelConfig:
    """Our architecture of a config.json, with the head that its class has."""
    try:
        config = family.read(hf)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in problem["loc"])
        reason = f"{where}: {problem['msg']}" if where else problem["msg"]
        raise ArtifactError(
            f"{hf.path} is no {family.name} that can be built here: {reason}",
            hint="import a model with settings that are supported: docs/leave-with-your-model.md lists them",
        ) from None
    names = hf.values.get("architectures") or [""]
    if "SequenceClassification" not in str(names[0]):
        return config
    labels = hf.table("id2label").values
    count = hf.size("num_labels", len(labels) or 2)
    if count != 1:
        raise ArtifactError(
            f"{hf.path}: a classifier of {count} labels; a reward model has one", hint="import one with num_labels 1"
        )
    return config.model_copy(update={"head": "scalar"})


def with_context(config: ModelConfig, context: int | None) -> ModelConfig:
    """The same for shorter sequences, which take less memory."""
    if context is None:
        return config
    if not 1 <= context <= config.context:
        raise ConfigError(
            f"--context {context!r} is not between 1 and the model's {config.context}",
            hint=f"give a number from 1 to {config.context}, or leave --context out",
        )
    return config.model_copy(update={"context": context})


def read_model(source: Path, family: Family, config: ModelConfig) -> Transformer:
    """The weights, float32, in a model of this architecture."""
    files = TensorFiles(source, prefix=family.prefix)

    def unused(name: str) -> bool:
        tied = name == "lm_head.weight" and (config.tie_embeddings or config.head == "scalar")
        return tied or family.ignored(name)

    tensors = read_tensors(family.all_rules(config), files, ignored=unused, where=str(source))
    if "positions.weight" in tensors:
        tensors["positions.weight"] = tensors["positions.weight"][: config.context].contiguous()
    with torch.device("meta"):
        model = config.build()
    assign(model, tensors, source)
    return model.eval()


def describe_source(source: Path) -> Manifest:
    """What was imported, as a parent: an export of ours with its history, or files by size and hash."""
    if (source / "manifest.json").exists():
        manifest = verify_artifact(source)
        if manifest.kind == EXPORTED:
            return manifest
    files: dict[str, FileEntry] = {}
    for name in [*SMALL_FILES, *weight_files(source)]:
        if (source / name).exists():
            files[name] = file_entry(source / name)
    return Manifest(kind="file", made_by="", files=files)
