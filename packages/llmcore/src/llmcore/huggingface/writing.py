"""`llmcore export hf`: a checkpoint of ours becomes a folder that transformers, TRL and vLLM load as their own."""

import json
from pathlib import Path

import torch
from torch import Tensor

from llmcore.checkpoint import Checkpoint, load_checkpoint, model_tensors
from llmcore.errors import ArtifactError
from llmcore.huggingface.card import write_card
from llmcore.huggingface.dialects import write_template
from llmcore.huggingface.family import Family, different, fitting_family
from llmcore.huggingface.keys import write_tensors
from llmcore.huggingface.reading import CONFIG, EXPORTED, read_hf
from llmcore.huggingface.settings import Json
from llmcore.huggingface.tensors import SHARD_BYTES, write_weights
from llmcore.huggingface.vocabulary import GENERATION_CONFIG, TEMPLATE, TOKENIZER_CONFIG
from llmcore.manifest import Manifest, write_manifest
from llmcore.model.transformer import Transformer
from llmcore.storage import commit_directory, write_durably
from llmcore.tokenizer import TOKENIZER_FILE, Tokenizer

CARD = "README.md"


def export_hf(checkpoint: Path, out: Path, *, check: bool = False, shard_bytes: int = SHARD_BYTES) -> Manifest:
    """Write the policy or reward model in `checkpoint` as a Hugging Face folder to `out`.

    With `check`, the folder is read back before it gets its name: weights, logits and tokenizer must be equal, bit for
    bit.
    """
    source = load_checkpoint(checkpoint, expect=None)
    family = fitting_family(source.model.config, json.loads(source.tokenizer.files()[TOKENIZER_FILE]))
    with commit_directory(out) as folder:
        files = write_hf(folder, source, family, shard_bytes=shard_bytes)
        if check:
            check_export(folder, source)
        return write_manifest(
            folder,
            kind=EXPORTED,
            made_by="llmcore export hf",
            config={"model_type": family.model_type, "architecture": family.architecture(source.model.config)},
            parents={source.manifest.kind: source.manifest},
            files=files,
        )


def write_hf(folder: Path, source: Checkpoint, family: Family, *, shard_bytes: int = SHARD_BYTES) -> list[str]:
    """Write every file but the manifest; their names."""
    model, tokenizer = source.model, source.tokenizer
    tables = {
        CONFIG: config_table(model, tokenizer, family),
        GENERATION_CONFIG: generation_table(tokenizer),
        TOKENIZER_CONFIG: tokenizer_table(model, tokenizer),
    }
    texts = {name: json.dumps(table, indent=2, ensure_ascii=False) + "\n" for name, table in tables.items()}
    template = write_template(tokenizer.special)
    if template is not None:
        texts[TEMPLATE] = template
    texts[CARD] = write_card(source, family)
    for name, text in texts.items():
        write_durably(folder / name, text.encode())
    write_durably(folder / TOKENIZER_FILE, tokenizer.files()[TOKENIZER_FILE])
    tensors = write_tensors(family.all_rules(model.config), model_tensors(model))
    return [*texts, TOKENIZER_FILE, *write_weights(folder, tensors, shard_bytes=shard_bytes)]


def config_table(model: Transformer, tokenizer: Tokenizer, family: Family) -> Json:
    """config.json; dtype and rotary positions in the spelling of transformers 4 and of 5."""
    config = model.config
    table: Json = {
        "architectures": [family.architecture(config)],
        "model_type": family.model_type,
        "vocab_size": config.vocab_size,
        **family.write(config),
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.pad_id,
        "torch_dtype": "float32",
        "dtype": "float32",
        "use_cache": True,
    }
    if config.head == "scalar":
        table |= {"num_labels": 1, "id2label": {"0": "reward"}, "label2id": {"reward": 0}, "problem_type": "regression"}
    return table


def generation_table(tokenizer: Tokenizer) -> Json:
    """generation_config.json: where to stop, and nothing that would change how people sample."""
    return {"bos_token_id": tokenizer.bos_id, "eos_token_id": stop_ids(tokenizer), "pad_token_id": tokenizer.pad_id}


def tokenizer_table(model: Transformer, tokenizer: Tokenizer) -> Json:
    """tokenizer_config.json: without the class, transformers builds another tokenizer for some model types."""
    special = tokenizer.special
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": special.bos,
        "eos_token": special.eos,
        "pad_token": special.pad,
        "model_max_length": model.config.context,
        "clean_up_tokenization_spaces": False,
        "padding_side": "right" if model.config.head == "scalar" else "left",
    }


def stop_ids(tokenizer: Tokenizer) -> list[int]:
    """End of turn first, then end of document."""
    return list(dict.fromkeys([tokenizer.end_of_turn_id, tokenizer.eos_id]))


def check_export(folder: Path, source: Checkpoint) -> None:
    """Read an export back with our own importer: everything must be equal, bit for bit."""
    chat = None if (folder / TEMPLATE).exists() else source.tokenizer.special.chat
    back = read_hf(folder, chat=chat)
    differences = list(different(back.family, source.model.config, back.model.config))
    written, wanted = model_tensors(back.model), model_tensors(source.model)
    differences += [name for name, tensor in wanted.items() if not torch.equal(written[name], tensor)]
    if back.tokenizer.files() != source.tokenizer.files():
        differences.append("tokenizer")
    if not differences and not torch.equal(probe(back.model), probe(source.model)):
        differences.append("logits")
    if differences:
        raise ArtifactError(
            f"the export, read back, differs in {', '.join(differences[:5])}: nothing was written",
            hint="please report this with the model's model.json",
        )


@torch.no_grad()
def probe(model: Transformer) -> Tensor:
    """What the model says of tokens from all over its vocabulary: (1, T) -> (1, T, V) or (1, T, 1)."""
    assert model.config.vocab_size is not None
    count = min(model.config.context, 64)
    ids = torch.arange(count).mul(7919).remainder(model.config.vocab_size).unsqueeze(0)
    scores: Tensor = model(ids)
    return scores
