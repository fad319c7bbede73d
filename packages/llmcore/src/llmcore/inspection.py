"""What an artifact is, for machines as a dict and for people as a table: kind, figures, architecture, costs."""

import json
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, cast

from rich.table import Table

from llmcore.manifest import Manifest, check_needs

if TYPE_CHECKING:
    from torch import nn

Blocks = Mapping[str, Mapping[str, int]]
Rows = Iterator[tuple[str, str]]


def describe(folder: Path, manifest: Manifest) -> dict[str, object]:
    """The facts about an artifact, of a model its architecture and costs too."""
    facts: dict[str, object] = {
        "kind": manifest.kind,
        "id": manifest.id,
        "made by": manifest.made_by,
        "made at": manifest.made_at,
        "command": manifest.command,
        "parents": {role: f"{parent.kind} {parent.id}" for role, parent in manifest.parents.items()},
        "needs": manifest.needs,
        "metrics": manifest.metrics,
        "counts": manifest.counts,
        "files": {name: f"{entry.bytes:,} bytes" for name, entry in manifest.files.items()},
    }
    if "adapter.json" in manifest.files:
        facts |= json.loads((folder / "adapter.json").read_text())
    if "model.json" in manifest.files:
        check_needs(manifest, folder)
        facts |= describe_model(folder)
    return {name: fact for name, fact in facts.items() if fact not in ("", {}, None)}


def describe_model(folder: Path) -> dict[str, object]:
    """Architecture, parameters by module, and what a token costs."""
    import torch

    from llmcore.checkpoint import ARCHITECTURE, read_architecture
    from llmcore.model import size

    config = read_architecture(folder / ARCHITECTURE)
    model = size.skeleton(config)
    training = size.flops_per_token(model)
    facts: dict[str, object] = {
        "architecture": config.model_dump(mode="json"),
        "parameters": size.count_parameters(model),
        "parameters by module": size.parameters_by_module(model),
        "parameters of a block": block_parameters(model.blocks),
        f"FLOPs per token at {config.context} tokens": {"forward": training // 3, "training": training},
    }
    if config.attention.sight().causal:
        facts["KV cache bytes per token"] = {
            "fp32": size.cache_bytes_per_token(config),
            "bf16": size.cache_bytes_per_token(config, torch.bfloat16),
            "tokens kept at most": size.cache_tokens(config),
        }
    return facts


def block_parameters(blocks: "nn.ModuleList") -> dict[str, dict[str, int]]:
    """For each run of equal blocks, as `0-3`, the weights of each of its modules."""
    counts = [
        {name: sum(weight.numel() for weight in part.parameters()) for name, part in block.named_children()}
        for block in blocks
    ]
    found, start = {}, 0
    for same, members in groupby(counts):
        end = start + len(list(members)) - 1
        found[f"{start}" if start == end else f"{start}-{end}"] = same
        start = end + 1
    return found


def as_table(facts: Mapping[str, object]) -> Table:
    """The facts for a terminal: a section for each nested one, a part of the architecture in one line."""
    table = Table(box=None, show_header=False, pad_edge=False)
    blocks = facts.get("parameters of a block")
    for name, fact in facts.items():
        if fact is blocks:
            continue
        if not isinstance(fact, dict):
            table.add_row(f"[bold]{name}[/bold]", readable(fact))
            continue
        table.add_row(f"[bold]{name}[/bold]", "")
        grouped = name == "parameters by module" and isinstance(blocks, dict)
        for inner, text in module_rows(fact, cast(Blocks, blocks)) if grouped else plain_rows(fact):
            table.add_row(f"  {inner}", text)
    return table


def plain_rows(facts: Mapping[str, object]) -> Rows:
    for name, fact in facts.items():
        yield name, part_line(fact) if isinstance(fact, dict) else readable(fact)


def module_rows(modules: Mapping[str, int], blocks: Blocks) -> Rows:
    """Blocks that are equal in one line, with what each of their parts has."""
    yield from ((name, f"{count:,}") for name, count in modules.items() if not name.startswith("blocks."))
    for numbers, parts in blocks.items():
        each = " each" if "-" in numbers else ""
        yield f"blocks.{numbers}", f"{sum(parts.values()):,}{each}"
        for name, count in parts.items():
            yield f"  {name}", f"{count:,}"


def part_line(part: Mapping[str, object]) -> str:
    """`{"kind": "gqa", "heads": 4, "causal": true, "window": null}` -> `gqa · heads 4 · causal`; not what is off."""
    words = [str(part["kind"])] if "kind" in part else []
    for name, value in part.items():
        if name == "kind" or value is None or value is False or value == 0:
            continue
        if isinstance(value, dict):
            inner = part_line(value)
            words += [f"{name} {inner}" if " · " not in inner else f"{name} ({inner})"] if inner != "none" else []
        else:
            words.append(name if value is True else f"{name} {readable(value)}")
    return " · ".join(words)


def readable(value: object) -> str:
    """Numbers with separators or four digits; anything nested as JSON."""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 10_000 else f"{value:,.0f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return json.dumps(value) if isinstance(value, dict | list) else str(value)
