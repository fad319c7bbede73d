import itertools

import numpy as np
import pytest
import torch

from llmcore.branches import LIMIT, Layout, hidden_states, lay_out, plain_rows, shared_length, takes_branches, visible
from llmcore.model.attention import GroupedQuery
from llmcore.model.config import ModelConfig
from llmcore.model.latent import MultiHeadLatent
from llmcore.model.positions import Learned, NoPositions, Positions, RoPE
from llmcore.model.transformer import Transformer
from llmcore.scoring import layout_scores, layout_token_scores, sequence_scores

ROWS = [
    [*range(20), 30, 31],
    [*range(20), 40],
    [*range(20), 30, 51, 52, 53, 54, 55],
    [7, 8],
    [7, 9, 10, 11, 12, 13, 14],
    [*range(60, 100)],
]
FAMILIES = [(0, 1, 2), (3, 4), (5,)]


def model(attention: object = None, positions: Positions | None = None) -> Transformer:
    config = ModelConfig(
        vocab_size=120,
        width=32,
        depth=2,
        context=64,
        head="scalar",
        attention=attention or GroupedQuery(heads=2),
        positions=positions or RoPE(),
        initial_std=0.3,
    )
    return config.build(seed=2)


def padded(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, rows))
    return torch.tensor([row + [0] * (longest - len(row)) for row in rows]), torch.tensor([len(row) for row in rows])


def laid_out(**settings: bool) -> Layout:
    return lay_out(ROWS, FAMILIES, pad_id=119, **{"share": True, **settings})


ATTENTIONS = {
    "causal": GroupedQuery(heads=2),
    "encoder": GroupedQuery(heads=2, causal=False),
    "window": GroupedQuery(heads=2, window=5),
    "encoder-window": GroupedQuery(heads=2, causal=False, window=5),
}
POSITIONS = (RoPE(), Learned(), NoPositions())
CASES = {
    **{f"{name} {p.kind}": (attention, p) for (name, attention), p in itertools.product(ATTENTIONS.items(), POSITIONS)},
    "mla rope": (MultiHeadLatent(heads=2), RoPE()),  # latent attention takes no other positions
}


@pytest.mark.parametrize(("attention", "positions"), CASES.values(), ids=CASES)
def test_scores_and_gradients_of_a_layout_are_those_of_plain_rows(attention: object, positions: Positions) -> None:
    net = model(attention, positions)
    layout = laid_out(share=net.config.attention.sight().causal)
    found = []
    for scores in (layout_scores(net, layout), sequence_scores(net, *padded(ROWS))):
        net.zero_grad()
        (scores * torch.arange(1.0, 7.0)).sum().backward()
        found.append((scores.detach(), torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])))
    assert found[0][0].std() > 0.01
    assert torch.allclose(found[0][0], found[1][0], atol=1e-5)
    assert torch.allclose(found[0][1], found[1][1], atol=1e-4 * float(found[1][1].abs().max()))


def test_scores_at_every_token_are_those_of_plain_rows() -> None:
    net = model()
    every = layout_token_scores(net, laid_out())
    for row, scores in zip(ROWS, every, strict=True):
        alone = net(torch.tensor([row]))[0, :, 0]
        assert torch.allclose(scores[: len(row)], alone, atol=1e-5)


def test_a_layout_of_plain_rows_is_dropped_out_as_plain_rows_are() -> None:
    net = model()
    net.config = net.config.model_copy(update={"dropout": 0.5})  # of embeddings alone: the blocks have theirs
    net.train()
    row = list(range(24))
    layout = lay_out([row], [[0]], pad_id=119, share=False)
    torch.manual_seed(0)
    dropped = hidden_states(net, layout)
    torch.manual_seed(0)
    assert torch.allclose(dropped, net.hidden(torch.tensor([row])), atol=1e-5)
    assert not torch.allclose(dropped, net.eval().hidden(torch.tensor([row])), atol=1e-2)


def test_a_shared_beginning_stands_once_and_small_savings_are_left() -> None:
    layout = laid_out()
    assert int((layout.trees > 0).sum()) == 20 + 2 + 1 + 6 + 2 + 7 + 40  # [7] alone is not worth a tree
    ids, inside = plain_rows(layout)
    assert [row[here].tolist() for row, here in zip(ids, inside, strict=True)] == ROWS
    assert layout.ids.shape == (2, 40)


def test_an_encoder_shares_nothing() -> None:
    layout = laid_out(share=False)
    assert int((layout.trees > 0).sum()) == sum(map(len, ROWS))


def test_large_families_are_divided() -> None:
    rows = [[*range(100), *[n] * 90] for n in range(12)]
    layout = lay_out(rows, [range(12)], pad_id=0, share=True)
    assert layout.ids.shape[1] <= LIMIT
    assert 12 * 90 + 100 < int((layout.trees > 0).sum()) < 12 * 190


def test_what_rows_share_never_holds_the_last_token_of_one() -> None:
    assert shared_length([[1, 2, 3], [1, 2, 3, 4], [1, 2, 5]]) == 2
    assert shared_length([[1, 2], [1, 2]]) == 1
    assert shared_length([[1], [2]]) == 0
    rows = [list(row) for row in itertools.product((1, 2), repeat=3)]
    assert shared_length(rows) == 0 and shared_length(rows[:2]) == 2


def test_any_rows_are_found_again_and_see_only_themselves() -> None:
    random = np.random.default_rng(0)
    for _ in range(25):
        rows: list[list[int]] = []
        families: list[range] = []
        for _ in range(random.integers(1, 6)):
            trunk = random.integers(0, 4, random.integers(0, 30)).tolist()
            count = int(random.integers(1, 5))
            rows += [[*trunk, *random.integers(0, 4, random.integers(1, 20)).tolist()] for _ in range(count)]
            families.append(range(len(rows) - count, len(rows)))
        for share in (True, False):
            layout = lay_out(rows, families, pad_id=99, share=share)
            ids, inside = plain_rows(layout)
            assert [row[here].tolist() for row, here in zip(ids, inside, strict=True)] == rows
            assert (layout.ids == 99).sum() == (layout.trees == 0).sum()
            seen = visible(layout, causal=share)[:, 0]  # (R, S, S)
            columns = layout.ids.shape[1]
            for row, places in zip(rows, layout.places, strict=True):
                for t in range(len(row)):
                    r, column = divmod(int(places[t]), columns)
                    before = sorted(int(place) for place in places[: t + 1 if share else len(row)])
                    assert (seen[r, column].nonzero().flatten() + r * columns).tolist() == before
                    assert int(layout.positions[r, column]) == t


def test_windows_latent_attention_and_other_backends_read_plain_rows() -> None:
    assert takes_branches(model()) and takes_branches(model(GroupedQuery(heads=2, causal=False)))
    assert not takes_branches(model(GroupedQuery(heads=2, window=9)))
    assert not takes_branches(model(MultiHeadLatent(heads=2)))
