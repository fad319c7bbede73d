"""What TRL's SFTTrainer makes of given log-probabilities: run by an interpreter that has TRL, JSON in and out.

The method that computes the loss is TRL's own; only the model's forward is replaced, by the numbers given.
"""

import json
import sys
from collections import defaultdict
from types import SimpleNamespace

import torch
from trl import SFTTrainer


def answer(case: dict) -> dict:  # type: ignore[type-arg]
    """The loss of a batch, and its gradient with respect to the log-probabilities."""
    labels = torch.tensor(case["labels"])
    logprobs = torch.tensor(case["logprobs"], dtype=torch.float64).requires_grad_()
    mask = labels[:, 1:] != -100
    trainer = SFTTrainer.__new__(SFTTrainer)
    trainer.__dict__.update(
        args=SimpleNamespace(loss_type=case["loss_type"], average_tokens_across_devices=False, max_length=None),
        accelerator=SimpleNamespace(num_processes=1, parallelism_config=None, gather_for_metrics=lambda x: x),
        model=SimpleNamespace(training=True),
        aux_loss_enabled=False,
        compute_loss_func=None,
        label_smoother=None,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )

    def model(**_: object) -> SimpleNamespace:
        zeros = torch.zeros_like(logprobs)
        return SimpleNamespace(
            log_probs=logprobs.masked_fill(~mask, 0), label_mask=mask, entropy=zeros, is_top1=zeros, aux_loss=None
        )

    inputs = {"labels": labels, "attention_mask": torch.ones_like(labels)}
    loss = trainer.compute_loss(model, inputs)
    (gradient,) = torch.autograd.grad(loss, logprobs)
    return {"loss": loss.item(), "gradient": gradient.tolist()}


if __name__ == "__main__":
    print(json.dumps(answer(json.load(sys.stdin))))
