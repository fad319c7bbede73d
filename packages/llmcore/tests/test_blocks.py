"""Blocks computed again in the backward give the same gradient to the bit, and keep less; compiled, to rounding."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llmcore.errors import TrainingError
from llmcore.losses import Batch, next_token_loss
from llmcore.model.config import ModelConfig
from llmcore.model.transformer import Transformer, apply_block, take_aux_losses
from llmcore.train.blocks import Compiled, training_blocks
from llmcore.train.config import TrainConfig


def build(**settings: Any) -> Transformer:
    base: dict[str, Any] = {"vocab_size": 50, "width": 32, "depth": 3, "context": 32, "attention": {"heads": 2}}
    return ModelConfig.model_validate({**base, **settings}).build(seed=0).train()


def rows() -> Batch:
    ids = torch.randint(0, 50, (4, 32), generator=torch.Generator().manual_seed(0))
    return Batch(ids, torch.ones_like(ids, dtype=torch.bool))


def gradients(model: Transformer, batch: Batch) -> dict[str, Tensor]:
    """Of one forward and backward with a fixed seed, auxiliary losses among them."""
    model.zero_grad()
    torch.manual_seed(5)
    loss = next_token_loss(model, batch)
    auxiliary = take_aux_losses(model)
    torch.autograd.backward(loss.total if auxiliary is None else loss.total + auxiliary)
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def silent(_: str) -> None:
    """Nobody listens."""


MODELS: dict[str, dict[str, Any]] = {
    "dense": {},
    "dropout": {"dropout": 0.3, "attention": {"heads": 2, "dropout": 0.3}},
    "window": {"attention": {"heads": 2, "window": 8}},
}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recomputed_blocks_give_the_same_gradient_to_the_bit(kind: str, dtype: torch.dtype) -> None:
    model, batch = build(**MODELS[kind]), rows()
    model.activation_dtype = dtype
    expected = gradients(model, batch)
    with training_blocks(model, TrainConfig(checkpoint_activations=True), say=silent):
        found = gradients(model, batch)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert take_aux_losses(model) is None  # nothing that the second forward reported stays behind
    copy.deepcopy(model)


def test_recomputed_blocks_keep_a_fraction_of_the_bytes() -> None:
    model, batch = build(depth=6), rows()

    def kept() -> int:
        """Bytes that wait for the backward: what enters the blocks and what operations save, without the weights."""
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        alive: list[Tensor] = []

        def keep(tensor: Tensor) -> Tensor:
            alive.append(tensor)
            return tensor

        inner = model.apply_block
        model.apply_block = lambda block, x, around: inner(block, keep(x), around)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model.hidden(batch.ids)
        model.apply_block = inner
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in alive}
        return sum(size for address, size in storages.items() if address not in weights)

    plain = kept()
    with training_blocks(model, TrainConfig(checkpoint_activations=True), say=silent):
        less = kept()
    assert less < 0.2 * plain


def test_evaluation_runs_the_blocks_as_they_are_and_so_does_everything_after() -> None:
    model, batch = build(), rows()
    seen: list[nn.Module] = []

    def watched(block: nn.Module, x: Tensor, around: Any) -> Tensor:
        seen.append(block)
        return apply_block(block, x, around)

    with training_blocks(model, TrainConfig(), say=silent):
        model.apply_block = watched
        with torch.no_grad():
            model(batch.ids)
        model.eval()(batch.ids)
        assert not seen
        model.train()(batch.ids)
        assert seen == list(model.blocks)
    assert model.apply_block is apply_block


@pytest.mark.parametrize("setting", ["compile", "checkpoint_activations"])
def test_a_model_without_blocks_of_ours_is_an_error_not_a_setting_that_does_nothing(setting: str) -> None:
    with (
        pytest.raises(TrainingError, match=f"train.{setting} is set, but Linear has no blocks"),
        training_blocks(nn.Linear(2, 2), TrainConfig.model_validate({setting: True}), say=silent),
    ):
        pass


def test_a_compilation_that_fails_is_one_line_and_training_goes_on() -> None:
    from torch._dynamo.exc import TorchDynamoException

    model, batch = build(), rows()
    expected = gradients(model, batch)
    said: list[str] = []
    with training_blocks(model, TrainConfig(compile=True), say=said.append) as tell:
        assert isinstance(model.apply_block, Compiled)

        def fails(*_: object) -> Tensor:
            raise TorchDynamoException("no working compiler\nand many lines more")

        model.apply_block.compiled = fails
        found = gradients(model, batch)
        tell()
    assert said == ["torch.compile failed, training goes on without it: no working compiler"]
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.slow
@pytest.mark.parametrize("kind", MODELS)
def test_compiled_blocks_equal_eager_ones_to_rounding(kind: str) -> None:
    model, batch = build(**MODELS[kind]), rows()
    names = list(model.state_dict())
    said: list[str] = []
    compare: Callable[[], dict[str, Tensor]] = lambda: gradients(model, batch)  # noqa: E731
    if kind == "dropout":  # inductor draws its own noise: what must agree is that it is drawn, and anew
        with training_blocks(model, TrainConfig(compile=True), say=said.append):
            first = compare()
            torch.manual_seed(6)
        assert all(gradient.isfinite().all() for gradient in first.values())
        return
    expected = compare()
    for config in (TrainConfig(compile=True), TrainConfig(compile=True, checkpoint_activations=True)):
        with training_blocks(model, config, say=said.append) as tell:
            found = compare()
            tell()
            assert list(model.state_dict()) == names
        for name, gradient in expected.items():
            assert (found[name] - gradient).norm() < 1e-4 * gradient.norm(), name
    assert said and "torch.compile:" in said[0] and "failed" not in "".join(said)
