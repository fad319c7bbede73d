"""What a model here and the same one in transformers must agree on, whichever package brings its family."""

from pathlib import Path
from typing import Any

import torch

from llmcore.checkpoint import load_checkpoint
from llmcore.generate.engine import generate
from llmcore.generate.sampling import Sampling
from llmcore.huggingface.reading import import_hf
from llmcore.huggingface.writing import export_hf
from llmcore.model.transformer import Transformer

VOCABULARY = 300
PROMPT = 9
PADDED = 5
"""Tokens at the end of the second row that are padding to a reward model."""


def some_ids(context: int) -> torch.Tensor:
    """(2, context), without the control tokens."""
    return torch.randint(3, VOCABULARY, (2, context), generator=torch.Generator().manual_seed(5))


def greedy(reference: Any, prompt: torch.Tensor, count: int) -> list[list[int]]:
    """Continue by the likeliest token, each from a whole forward of theirs."""
    ids = prompt
    for _ in range(count):
        ids = torch.cat([ids, reference(ids).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    return [list(row) for row in ids[:, prompt.shape[1] :].tolist()]


def same_function(model: Transformer, reference: Any) -> None:
    """Logits within 1e-4; greedy continuations from our cache, to the end of the context, those of their forwards."""
    ids, count = some_ids(model.config.context), model.config.context - PROMPT
    with torch.no_grad():
        assert (model(ids) - reference(ids).logits).abs().max() < 1e-4
        wanted = greedy(reference, ids[:, :PROMPT], count)
    settings = Sampling(max_new_tokens=count, temperature=0.0)
    found = generate(model, ids[:, :PROMPT].tolist(), settings, stop_ids=[])
    assert [list(row[0].ids) for row in found] == wanted


def same_rewards_here(reference: Any, theirs: Path, ours: Path) -> None:
    """Their reward model, imported from `theirs` to `ours`, scores the last token as it did."""
    assert import_hf(theirs, ours).kind == "reward"
    model = load_checkpoint(ours, expect="reward").model
    ids = some_ids(model.config.context)
    with torch.no_grad():
        assert (model(ids)[:, -1] - reference(ids).logits).abs().max() < 1e-4


def same_rewards_there(model: Transformer, ours: Path, theirs: Path) -> None:
    """Our reward model, exported from `ours` to `theirs`, scores the last token before the padding as it did."""
    import transformers

    export_hf(ours, theirs, check=True)
    reference = transformers.AutoModelForSequenceClassification.from_pretrained(theirs).eval()
    ids = some_ids(model.config.context)
    ids[1, -PADDED:] = reference.config.pad_token_id
    with torch.no_grad():
        rewards = model(ids)[..., 0]
        wanted = torch.stack([rewards[0, -1], rewards[1, -PADDED - 1]])
        assert (wanted - reference(ids).logits[:, 0]).abs().max() < 1e-4
