"""What a dump keeps of micro-batches, and that a replay has them again."""

import json
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from llmcore.errors import ArtifactError
from llmcore.train.trees import Trees, put_together, taken_apart


class Inner(NamedTuple):
    places: Tensor
    width: int


class Outer(NamedTuple):
    ids: Tensor
    inner: Inner
    others: tuple[Inner, ...]
    absent: Tensor | None
    share: float | None
    figures: dict[str, tuple[float, int]]


def batch(number: int) -> Outer:
    inner = Inner(torch.arange(6).view(2, 3).T, 7)
    return Outer(torch.tensor([number]), inner, (inner, inner), None, 0.1, {"kl": (1 / 3, 4), "nan": (0.0, 0)})


def written(*batches: object) -> Trees:
    trees, tensors = taken_apart(batches)
    return Trees(json.loads(json.dumps(trees)), tensors)


def test_tensors_numbers_and_what_is_absent_come_back_in_their_classes() -> None:
    trees = written(batch(3), batch(4))
    assert set(trees.tensors) == {
        f"{n}/{name}" for n in (0, 1) for name in ("ids", "inner.places", "others.0.places", "others.1.places")
    }
    found = put_together(trees, Outer)
    assert repr(found) == repr([batch(3), batch(4)])
    assert isinstance(found[0].others[1], Inner)


def test_a_tensor_alone_and_a_dict_of_tensors_are_batches_too() -> None:
    [alone, table] = put_together(written(torch.ones(2), {"x": torch.zeros(3)}), None)
    assert alone.equal(torch.ones(2)) and table["x"].equal(torch.zeros(3))


def test_a_batch_of_another_class_is_refused_by_its_fields() -> None:
    with pytest.raises(ArtifactError, match="hold places, width, which the loss does not take"):
        put_together(written(batch(3).inner), Outer)


def test_what_no_json_can_hold_is_kept_out_and_named() -> None:
    with pytest.raises(ArtifactError, match="hold a Generator, which cannot be read back"):
        put_together(written((torch.ones(1), torch.Generator())), None)
