"""What must not change a reward: company, order, padding on either side, which side of a pair an answer is on."""

from collections.abc import Sequence

import torch
from torch import Tensor

from llmcore.branches import lay_out
from llmcore.model.transformer import Transformer, last_attended, mean_attended
from llmcore.scoring import Scorer, head_scores, layout_scores, score_rows
from llmreward.batches import Group

INVARIANT = ("padding", "left_padding", "order", "pad_id", "training_layout", "swap", "identical")
"""Largest changes of a reward; all are rounding."""
TELLING = ("end_of_turn", "spread")
"""What may well be large: the mean change by an end of turn, and the deviation of the rewards probed."""


def probe(scorer: Scorer, groups: Sequence[Group]) -> dict[str, float]:
    """Score the answers of some groups in ways that must all agree; figures are in units of the normalised reward."""
    rows = [row for group in groups for row in group.rows]
    model, tokenizer, gain = scorer.model, scorer.tokenizer, scorer.scale.gain
    together = scorer.score(rows)

    def change(other: Tensor) -> float:
        return float((together - other).abs().max())

    pads = [score_rows(model, rows, pad_id=pad_id) for pad_id in (0, tokenizer.vocab_size - 1)]
    cut = [row[:-1] if row[-1] in tokenizer.stop_ids and len(row) > 1 else row for row in rows]
    return {
        "padding": change(torch.cat([scorer.score([row]) for row in rows])),
        "left_padding": gain * change_of(left_padded(model, rows, pad_id=tokenizer.pad_id), scorer.raw(rows)),
        "order": change(scorer.score(list(reversed(rows))).flip(0)),
        "pad_id": gain * change_of(*pads),
        "training_layout": gain * change_of(laid_out(model, groups, pad_id=tokenizer.pad_id), scorer.raw(rows)),
        "swap": gain * swapped(scorer, groups),
        "identical": float(scorer.score([rows[0]] * 3).diff().abs().max()),
        "end_of_turn": float((together - scorer.score(cut)).mean()),
        "spread": float(together.std(correction=0)),
    }


def change_of(left: Tensor, right: Tensor) -> float:
    return float((left - right).abs().max())


@torch.no_grad()
def left_padded(model: Transformer, rows: Sequence[Sequence[int]], *, pad_id: int) -> Tensor:
    """Raw scores (N,) of rows that are padded on the left, in one batch."""
    device = next(model.parameters()).device
    longest = max(map(len, rows))
    ids = torch.tensor([[pad_id] * (longest - len(row)) + list(row) for row in rows], device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    attended = torch.arange(longest, device=device) >= longest - lengths.unsqueeze(1)
    hidden = model.hidden(ids, attended=attended)
    pool = last_attended if model.config.attention.sight().causal else mean_attended
    return head_scores(model, pool(hidden, attended)).cpu()


@torch.no_grad()
def laid_out(model: Transformer, groups: Sequence[Group], *, pad_id: int) -> Tensor:
    """Raw scores (N,) as training computes them, each prompt read once."""
    scores = []
    for group in groups:
        share = model.config.attention.sight().causal
        layout = lay_out(group.rows, [range(len(group.rows))], pad_id=pad_id, share=share)
        scores.append(layout_scores(model, type(layout)(*(part.to(model.head_weight().device) for part in layout))))
    return torch.cat(scores).cpu()


def swapped(scorer: Scorer, groups: Sequence[Group]) -> float:
    """Largest |d(a, b) + d(b, a)|, where d is the difference of two answers scored together in that order."""
    largest = 0.0
    for group in groups:
        first, second = group.rows[:2]
        there, back = scorer.raw([first, second]), scorer.raw([second, first])
        largest = max(largest, abs(float(there[0] - there[1] + back[0] - back[1])))
    return largest
