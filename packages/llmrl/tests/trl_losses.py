"""What TRL's GRPOTrainer makes of given log-probabilities: run by an interpreter that has TRL, JSON in and out.

The method that computes the loss is TRL's own; only the model's forward is replaced, by the numbers given.
"""

import json
import sys
from collections import defaultdict
from types import SimpleNamespace

import torch
from trl import GRPOTrainer


def main() -> None:
    """Read cases from standard input, write each one's loss, gradient and metrics."""
    print(json.dumps([answer(case) for case in json.load(sys.stdin)]))


def answer(case: dict) -> dict:  # type: ignore[type-arg]
    """The loss of one case, its gradient with respect to the log-probabilities, and what TRL logs."""
    tensors = {name: torch.tensor(value, dtype=torch.float64) for name, value in case["tensors"].items()}
    logprobs = tensors["logprobs"].requires_grad_()
    mask = tensors["mask"].long()
    entropies = tensors.get("entropies", torch.zeros_like(logprobs))
    trainer = GRPOTrainer.__new__(GRPOTrainer)
    trainer.__dict__.update(
        args=SimpleNamespace(delta=case.get("delta"), use_bias_correction_kl=False, steps_per_generation=1),
        accelerator=SimpleNamespace(num_processes=1, sync_gradients=True, gather=lambda x: x, reduce=lambda x, **_: x),
        model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=1,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm=False,
        aux_loss_enabled=False,
        entropy_coef=case.get("entropy_coef", 0.0),
        use_adaptive_entropy=False,
        _entropy_bonus_enabled=case.get("entropy_coef", 0.0) != 0.0,
        _metrics={"train": defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda *_, **__: (logprobs, entropies, None),
        **case["settings"],
    )
    inputs = {
        "prompt_ids": torch.zeros(len(mask), 1, dtype=torch.long),
        "prompt_mask": torch.ones(len(mask), 1, dtype=torch.long),
        "completion_ids": torch.zeros_like(mask),
        "completion_mask": mask,
        "advantages": tensors["advantages"],
        "old_per_token_logps": tensors.get("old"),
        "ref_per_token_logps": tensors.get("reference"),
        "num_items_in_batch": mask.sum(),
    }
    loss = trainer._compute_loss(None, inputs)
    (gradient,) = torch.autograd.grad(loss, logprobs)
    metrics = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    return {"loss": loss.item(), "gradient": gradient.tolist(), "metrics": metrics}


if __name__ == "__main__":
    main()
