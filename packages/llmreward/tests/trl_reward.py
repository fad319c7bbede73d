"""What TRL's RewardTrainer makes of some pairs: run by `test_oracles.py` with an interpreter that has TRL.

Reads cases as JSON from standard input, and prints one line of JSON: loss, rewards and gradients of each, in float64.
"""

import json
import sys
import tempfile

import torch
import transformers
from datasets import Dataset
from trl import RewardConfig, RewardTrainer


def answer(case: dict, scratch: str) -> dict:
    """Loss, rewards and two gradients of one batch of tokenized pairs."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(case["folder"], dtype=torch.float64)
    tokenizer = transformers.AutoTokenizer.from_pretrained(case["folder"])
    settings = RewardConfig(
        output_dir=scratch,
        use_cpu=True,
        bf16=False,
        report_to=[],
        disable_tqdm=True,
        max_length=None,
        gradient_checkpointing=False,
        center_rewards_coefficient=case["centering"],
    )
    rows = Dataset.from_list(case["pairs"])
    trainer = RewardTrainer(model=model, args=settings, train_dataset=rows, processing_class=tokenizer)
    model.train()
    batch = trainer.data_collator(case["pairs"])
    loss, outputs = trainer.compute_loss(model, batch, return_outputs=True)
    loss.backward()
    return {
        "loss": loss.item(),
        "rewards": outputs.logits.squeeze(-1).tolist(),
        "head": model.score.weight.grad.tolist(),
        "embedding": model.get_input_embeddings().weight.grad.tolist(),
    }


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps([answer(case, folder) for case in json.load(sys.stdin)]))
