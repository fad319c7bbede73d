"""Micro-batches as trees: their tensors apart, by name, and all else as JSON; a dump writes them, a replay reads them.

{"tensor": "0/layout.ids"}     a tensor, in the safetensors file beside the JSON
{"fields": {"ids": …}}         a named tuple, whose class the loss names where it says what it takes
{"table": {"reward": …}}       a dict
[…]                            a tuple or a list, read as a tuple
7, 0.5, "a", true, null        itself
{"strange": "Generator"}       anything else, which no replay can read
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, get_args, get_type_hints

from pydantic import JsonValue
from torch import Tensor

from llmcore.errors import ArtifactError

INSTEAD = "replay the step from its checkpoints instead: --step N"


class Trees(NamedTuple):
    """What is written of some micro-batches."""

    trees: list[JsonValue]
    tensors: dict[str, Tensor]


def taken_apart(batches: Sequence[object]) -> Trees:
    """Every micro-batch as a tree; tensor `<micro-batch>/<field>` is in memory of its own on the CPU."""
    tensors: dict[str, Tensor] = {}
    return Trees([tree_of(batch, (str(index),), tensors) for index, batch in enumerate(batches)], tensors)


def tree_of(value: object, path: tuple[str, ...], tensors: dict[str, Tensor]) -> JsonValue:
    """One value as a tree; its tensors are put into `tensors`, named after where they stand."""
    if isinstance(value, Tensor):
        name = f"{path[0]}/{'.'.join(path[1:]) or 'batch'}"
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if hasattr(value, "_asdict"):
        return {"fields": {name: tree_of(item, (*path, name), tensors) for name, item in value._asdict().items()}}
    if isinstance(value, Mapping):
        return {"table": {str(name): tree_of(item, (*path, str(name)), tensors) for name, item in value.items()}}
    if isinstance(value, tuple | list):
        return [tree_of(item, (*path, str(place)), tensors) for place, item in enumerate(value)]
    return {"strange": type(value).__name__}


def put_together(trees: Trees, kind: object) -> list[Any]:
    """The micro-batches again; `kind` is what the loss says it takes. Raises ArtifactError if that is another."""
    return [grown(tree, kind, trees.tensors) for tree in trees.trees]


def grown(tree: JsonValue, kind: object, tensors: Mapping[str, Tensor]) -> Any:
    """One value; `kind` is its type hint, or that of what it is inside of."""
    if isinstance(tree, list):
        return tuple(grown(item, kind, tensors) for item in tree)
    if not isinstance(tree, dict):
        return tree
    [(what, inner)] = tree.items()
    if what == "tensor":
        return tensors[str(inner)]
    if what == "strange":
        raise ArtifactError(f"the dump's batches hold a {inner}, which cannot be read back", hint=INSTEAD)
    assert isinstance(inner, dict), tree
    if what == "table":
        return {name: grown(item, kind, tensors) for name, item in inner.items()}
    found = named_tuple(kind)
    if found is None or set(found._fields) != inner.keys():
        raise ArtifactError(f"the dump's batches hold {', '.join(inner)}, which the loss does not take", hint=INSTEAD)
    hints = get_type_hints(found)
    return found(**{name: grown(item, hints[name], tensors) for name, item in inner.items()})


def named_tuple(kind: object) -> Any:
    """The class of named tuples in a type hint (`Layout | None`, `list[Layout]`), if there is one."""
    if hasattr(kind, "_fields"):
        return kind
    return next((found for inner in get_args(kind) if (found := named_tuple(inner)) is not None), None)
