"""What a run would do: its size, cost, memory and time, from one real micro-batch and one real update in memory.

Nothing is guessed that can be measured. The model is built, a micro-batch is read and learnt from twice (the second
time with the clock), and what backward needs is counted as it is kept. Then all of it is thrown away.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, NoReturn

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from llmcore.head import CHUNK_BYTES
from llmcore.model.attention import Around
from llmcore.model.size import parameters_by_module
from llmcore.model.transformer import ApplyBlock, Transformer, apply_block, take_aux_losses
from llmcore.next_command import as_typed
from llmcore.train.blocks import Recomputed, training_blocks
from llmcore.train.config import TrainConfig
from llmcore.train.describe import describe_model, describe_training
from llmcore.train.device import place
from llmcore.train.ema import Average
from llmcore.train.loop import train_step
from llmcore.train.optim import describe_groups
from llmcore.train.rehearsal import LossFunction
from llmcore.train.retention import snapshot_paths
from llmcore.train.run import Run
from llmcore.train.seeds import step_seed
from llmcore.train.signals import Stopped
from llmcore.train.source import Source
from llmcore.train.tally import tokens_in
from llmcore.train.utilization import matmul_peak, synchronize, training_flops
from llmcore.train.view import amount, duration, number


class Memory(NamedTuple):
    """Bytes held at the worst moment of a step."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    """What the backward of one micro-batch needs, as it was kept."""
    recomputed: int
    """The inside of one block, where blocks are computed again in the backward."""
    scratch: int
    """The scores of one chunk of tokens and what becomes of them, made and dropped inside the loss."""

    @property
    def total(self) -> int:
        """Gradients come as the backward goes on, when the loss has dropped its scores: the larger of both counts."""
        return self.weights + self.optimizer + self.activations + max(self.gradients + self.recomputed, self.scratch)


class Plan:
    """The rehearsal that says what a run would do."""

    def __init__(self, *, json: bool = False) -> None:
        self.json = json

    def play(
        self, run: Run, model: nn.Module, source: Source[Any], loss_fn: LossFunction, config: TrainConfig
    ) -> NoReturn:
        facts = plan_of(run, model, source, loss_fn, config)
        if self.json:
            print(json.dumps(facts))
        else:
            show(run, model, config, facts)
        raise Stopped(0)


def plan_of(
    run: Run, model: nn.Module, source: Source[Any], loss_fn: LossFunction, config: TrainConfig
) -> dict[str, Any]:
    """The figures of a plan, as JSON."""
    placement = run.resolve(config)
    place(model, placement)
    model.train()
    optimizer = config.optimizer.build(model, config.lr)
    started_at = time.perf_counter()
    torch.manual_seed(step_seed(config.seed, 0))
    batches = next(source.steps_from(0, None))
    reading = time.perf_counter() - started_at
    first = batches[:1]

    def update() -> int:
        torch.manual_seed(step_seed(config.seed, 0))
        return train_step(model, optimizer, first, loss_fn, clip=config.clip, device=placement.device).tokens

    eager = config.model_copy(update={"compile": False})
    with training_blocks(model, eager, say=run.view.say), kept_for_backward(model) as kept:
        update()
    Average(optimizer, config.ema).update(0)  # a copy of the weights, where there is one
    synchronize(placement.device)
    started_at = time.perf_counter()
    with training_blocks(model, eager, say=run.view.say):
        update()
    synchronize(placement.device)
    computing = (time.perf_counter() - started_at) * len(batches)
    memory = memory_of(model, optimizer, kept=kept, tokens=tokens_in(first[0], 0))
    tokens = sum(tokens_in(batch, 0) for batch in batches)
    flops = training_flops(model)
    saved = snapshot_paths(run.snapshots)
    return {
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "trained_parameters": sum(weight.numel() for weight in model.parameters() if weight.requires_grad),
        "parameters_by_module": parameters_by_module(model),
        "groups": [row._asdict() for row in describe_groups(model, optimizer)],
        "steps": config.steps,
        "steps_done": max(saved, default=0),
        "micro_batches_per_step": len(batches),
        "rows_per_micro_batch": config.rows,
        "tokens_per_step": tokens,
        "tokens": tokens * config.steps,
        "flops_per_token": flops,
        "flops": None if flops is None else flops * tokens * config.steps,
        "matmul_peak": matmul_peak(placement.device, placement.dtype),
        "seconds_to_read": reading,
        "seconds_per_step": reading + computing,
        "seconds": (reading + computing) * (config.steps - max(saved, default=0)),
        "memory": {**memory._asdict(), "total": memory.total},
        "checkpoint_bytes": memory.weights + memory.optimizer,
        "evaluations": -(-config.steps // config.eval_every),
        "device": placement.reason,
        "parents": {role: parent.id for role, parent in run.parents.items()},
        "next": list(run.next_commands),
    }


class Kept:
    """What the forward keeps for the backward, weights aside, each storage once."""

    def __init__(self, model: nn.Module) -> None:
        self.own = {weight.untyped_storage().data_ptr() for weight in (*model.parameters(), *model.buffers())}
        self.sizes: dict[int, int] = {}
        self.recomputed = 0
        """Bytes inside the largest block that is computed again."""

    @property
    def bytes(self) -> int:
        """Bytes of all of it."""
        return sum(self.sizes.values())

    def keep(self, tensor: Tensor) -> Tensor:
        """Count one tensor."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.own:
            self.sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    def block(self, inner: ApplyBlock, block: nn.Module, x: Tensor, around: Around) -> Tensor:
        """Run a block that keeps only what enters it, after looking at what its inside would keep."""
        inside: dict[int, int] = {}

        def look(tensor: Tensor) -> Tensor:
            inside[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(look, lambda tensor: tensor):
            apply_block(block, x, around)
        take_aux_losses(block)
        entered = self.keep(x).untyped_storage().data_ptr()
        new = sum(size for address, size in inside.items() if address not in self.own and address != entered)
        self.recomputed = max(self.recomputed, new)
        return inner(block, x, around)


@contextmanager
def kept_for_backward(model: nn.Module) -> Iterator[Kept]:
    """Count what a forward inside keeps for its backward."""
    kept = Kept(model)
    recomputing = [m for m in model.modules() if isinstance(m, Transformer) and isinstance(m.apply_block, Recomputed)]
    for transformer in recomputing:
        transformer.apply_block = partial(kept.block, transformer.apply_block)
    with torch.autograd.graph.saved_tensors_hooks(kept.keep, lambda tensor: tensor):
        yield kept


def memory_of(model: nn.Module, optimizer: torch.optim.Optimizer, *, kept: Kept, tokens: int) -> Memory:
    """What a step holds, after one was taken."""
    weights = list(model.parameters())
    state = [value for entry in optimizer.state.values() for value in entry.values() if isinstance(value, Tensor)]
    return Memory(
        weights=bytes_in(weights),
        gradients=bytes_in([weight for weight in weights if weight.requires_grad]),
        optimizer=bytes_in(state),
        activations=kept.bytes,
        recomputed=kept.recomputed,
        scratch=scratch_of_head(model, tokens=tokens) if isinstance(model, Transformer) else 0,
    )


def scratch_of_head(model: Transformer, *, tokens: int) -> int:
    """What the loss holds at most at one time: a chunk's scores, and the head's weight and gradient as they compute."""
    head, size = model.head_weight(), model.activation_dtype.itemsize
    scores = min(CHUNK_BYTES, 4 * len(head) * tokens) * size // 4
    return scores + 2 * size * head.numel()


def bytes_in(tensors: list[Tensor] | list[nn.Parameter]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def show(run: Run, model: nn.Module, config: TrainConfig, facts: dict[str, Any]) -> None:
    """The plan for a person, on standard output."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, words in lines(run, model, config, facts):
        table.add_row(name, words)
    Console(highlight=False, markup=False).print(table)


def lines(run: Run, model: nn.Module, config: TrainConfig, facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    memory = facts["memory"]
    done = facts["steps_done"]
    yield "stage", run.made_by
    yield "folder", f"{run.out} · " + (f"holds this run at step {done}: it would go on" if done else "would be new")
    yield "made from", " · ".join(f"{role} {name}" for role, name in facts["parents"].items()) or "nothing"
    yield from run.facts.items()
    yield "model", describe_model(model)
    for group in facts["groups"]:
        yield (
            "group",
            (
                f"{group['group']}: {amount(group['parameters'])} in {group['tensors']} tensors, "
                f"decay {group['weight_decay']:g}, "
                f"peak rate {group['lr']:g} (as {group['example']})"
            ),
        )
    yield "train", describe_training(config)
    yield (
        "batch",
        (
            f"{facts['micro_batches_per_step']} × {facts['rows_per_micro_batch']} rows a step, "
            f"{facts['tokens_per_step']:,} tokens · {amount(facts['tokens'])} tokens in all"
        ),
    )
    if facts["flops"] is not None:
        yield "cost", f"{amount(facts['flops_per_token'], 'FLOP')} a token, {amount(facts['flops'], 'FLOP')} in all"
    yield (
        "memory",
        f"{amount(memory['total'], 'B')}: "
        + ", ".join(f"{name} {amount(size, 'B')}" for name, size in memory.items() if name != "total" and size),
    )
    yield "device", f"{facts['device']} · {amount(facts['matmul_peak'], 'FLOP/s')} in a matrix product"
    yield (
        "time",
        f"{duration(facts['seconds'])} for {config.steps - done:,} steps at {speed(facts)}, without evaluations",
    )
    yield "disk", f"{amount(facts['checkpoint_bytes'], 'B')} a checkpoint, {config.keep} kept"
    yield "then", as_typed("; ".join(facts["next"])) if facts["next"] else ""


def speed(facts: dict[str, Any]) -> str:
    """Time per step, and the share of the peak it stands for."""
    told = f"{number(1000 * facts['seconds_per_step'])} ms"
    if facts["flops_per_token"] is None:
        return told
    rate = facts["flops_per_token"] * facts["tokens_per_step"] / facts["seconds_per_step"]
    return f"{told} (measured; {rate / facts['matmul_peak']:.0%} of the peak)"
