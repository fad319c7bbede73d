"""`llmcore export hf` of an adapter: a folder that PEFT, TRL and vLLM load beside the exported model below it.

A fused matrix of ours has one A for all its parts, where theirs has an adapter for each: q_proj, k_proj and v_proj get
that A and their own rows of B, which is the same update.
"""

import json
from pathlib import Path

import torch
from torch import Tensor

from llmcore.adapters import load_adapter
from llmcore.checkpoint import Checkpoint
from llmcore.errors import ArtifactError, ConfigError
from llmcore.huggingface.card import write_adapter_card
from llmcore.huggingface.family import fitting_family
from llmcore.huggingface.keys import Rule
from llmcore.huggingface.reading import EXPORTED
from llmcore.huggingface.settings import Json, read_json
from llmcore.huggingface.writing import CARD
from llmcore.lora import LoRA
from llmcore.manifest import Manifest, write_manifest
from llmcore.model.adapters import adapted
from llmcore.model.linear import Linear
from llmcore.storage import commit_directory, write_durably
from llmcore.tensors import load_tensors, save_tensors
from llmcore.tokenizer import TOKENIZER_FILE

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
"""What PEFT puts before the model's own names."""


def export_peft(folder: Path, out: Path, *, base: Path | None = None, check: bool = False) -> Manifest:
    """Write the adapter in `folder` as PEFT's files to `out`; `base` says where the model below it is now.

    With `check`, the files are read back before the folder gets its name: as PEFT reads them, they must be the same
    update of the same modules, bit for bit.
    """
    source = load_adapter(folder, base=base, merge=False)
    family = fitting_family(source.model.config, json.loads(source.tokenizer.files()[TOKENIZER_FILE]))
    linears = adapted(source.model)
    rules = {rule.ours.removesuffix(".weight"): rule for rule in family.all_rules(source.model.config)}
    tensors: dict[str, Tensor] = {}
    for name, linear in linears.items():
        tensors |= their_tensors(linear, rules[name])
    table = adapter_table(source, rules=rules)
    with commit_directory(out) as scratch:
        write_durably(scratch / CONFIG, (json.dumps(table, indent=2) + "\n").encode())
        write_durably(scratch / CARD, write_adapter_card(source, family, rank=table["r"]).encode())
        save_tensors(scratch / WEIGHTS, tensors)
        if check:
            check_peft(scratch, linears, rules)
        return write_manifest(
            scratch,
            kind=EXPORTED,
            made_by="llmcore export hf",
            config={
                "model_type": family.model_type,
                "peft_type": "LORA",
                "architecture": family.architecture(source.model.config),
            },
            parents={"adapter": source.manifest},
            files=[CONFIG, CARD, WEIGHTS],
        )


def their_tensors(linear: Linear, rule: Rule) -> dict[str, Tensor]:
    """A and B of each module of theirs that one projection of ours is; B has their rows, whichever way W is stored."""
    update = linear.adapter
    assert update is not None
    b = update.get_parameter("b").detach()
    parts = rule.split(b) if len(rule.theirs) > 1 else [b]
    tensors = {}
    for name, part in zip(rule.theirs, parts, strict=True):
        module = PREFIX + name.removesuffix(".weight")
        tensors[f"{module}.lora_A.weight"] = update.get_parameter("a").detach().clone()
        tensors[f"{module}.lora_B.weight"] = part.contiguous().clone()
    return tensors


def adapter_table(source: Checkpoint, *, rules: dict[str, Rule]) -> Json:
    """adapter_config.json."""
    linears = adapted(source.model)
    settings = lora_of(linears)
    theirs = {name.removesuffix(".weight") for ours in linears for name in rules[ours].theirs}
    everywhere = {name.removesuffix(".weight") for rule in rules.values() for name in rule.theirs}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": settings.rank,
        "lora_alpha": int(settings.alpha) if settings.alpha == int(settings.alpha) else settings.alpha,
        "lora_dropout": settings.dropout,
        "target_modules": module_names(theirs, everywhere),
        "fan_in_fan_out": any(is_transposed(rules[ours]) for ours in linears),
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "modules_to_save": None,
    }


def check_peft(folder: Path, linears: dict[str, Linear], rules: dict[str, Rule]) -> None:
    """Read PEFT's files back: which modules they change, and by which A, B and scale, must be what the adapter does."""
    table, tensors = read_json(folder / CONFIG), load_tensors(folder / WEIGHTS)
    modules = {name.removesuffix(".weight"): ours for ours, rule in rules.items() for name in rule.theirs}
    changed = {name for name in modules if any(f".{name}".endswith(f".{end}") for end in table["target_modules"])}
    differences = sorted(name for name in changed if modules[name] not in linears)
    for ours, linear in linears.items():
        update, rule = linear.adapter, rules[ours]
        assert update is not None
        theirs = [name.removesuffix(".weight") for name in rule.theirs]
        a, b = ([tensors.pop(f"{PREFIX}{name}.lora_{x}.weight") for name in theirs] for x in "AB")
        together = rule.join(b) if len(b) > 1 else b[0]
        same = all(part.equal(update.get_parameter("a")) for part in a) and together.equal(update.get_parameter("b"))
        scaled = table["lora_alpha"] / table["r"] == lora_of(linears).alpha / lora_of(linears).rank
        if not (same and scaled and changed >= set(theirs) and table["fan_in_fan_out"] == is_transposed(rule)):
            differences.append(ours)
    differences += sorted(tensors)
    if differences:
        raise ArtifactError(
            f"the export, read back, differs in {', '.join(differences[:5])}: nothing was written",
            hint="please report this with the adapter's adapter.json",
        )


def lora_of(linears: dict[str, Linear]) -> LoRA:
    """The settings of all adapters."""
    first = next(iter(linears.values())).adapter
    assert first is not None
    if not isinstance(first.settings, LoRA):
        raise ConfigError(
            f"PEFT's files hold LoRA, and this adapter is of kind {first.settings.kind!r}",
            hint="merge it first, and export the policy",
        )
    return first.settings


def module_names(wanted: set[str], everywhere: set[str]) -> list[str]:
    """The shortest ends of names that mean the wanted modules and no others: `q_proj`, or `attn.c_proj`."""
    found = set()
    for name in wanted:
        words = name.split(".")
        for count in range(1, len(words) + 1):
            end = ".".join(words[-count:])
            if all(other in wanted for other in everywhere if f".{other}".endswith(f".{end}")):
                found.add(end)
                break
    return sorted(found)


def is_transposed(rule: Rule) -> bool:
    """Whether their matrix is stored the other way round."""
    return len(rule.theirs) == 1 and rule.split(torch.zeros(2, 3))[0].shape != (2, 3)
