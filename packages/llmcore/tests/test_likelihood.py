"""Log-likelihoods against enumeration, a loop, and transformers."""

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from llmcore.checkpoint import save_model
from llmcore.errors import ConfigError
from llmcore.evaluate.likelihood import Likelihood, likelihoods
from llmcore.evaluate.options import Scored, text_rows
from llmcore.evaluate.tasks import Item, Option
from llmcore.generate.engine import generate
from llmcore.generate.sampling import Sampling
from llmcore.huggingface.writing import export_hf
from llmcore.manifest import write_manifest
from llmcore.model.config import ModelConfig
from llmcore.model.transformer import Transformer
from llmcore.tokenizer import Tokenizer


def tiny(vocab_size: int = 7, **settings: Any) -> Transformer:
    model = ModelConfig.model_validate(
        {"vocab_size": vocab_size, "width": 32, "depth": 2, "context": 24, **settings}
    ).build(seed=0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3.0)  # far from uniform
    return model.eval()


def alone(model: Transformer, row: Scored) -> Likelihood:
    """One token after another, each from a forward of its own."""
    total, greedy = 0.0, True
    for place in range(row.start, len(row.ids)):
        scores = model(torch.tensor([row.ids[:place]]))[0, -1].double()
        total += float(scores.log_softmax(-1)[row.ids[place]])
        greedy &= int(scores.argmax()) == row.ids[place]
    return Likelihood(total, len(row.ids) - row.start, greedy)


def random_families() -> list[list[Scored]]:
    """Families with and without a shared beginning, of one row and of many, long and short."""
    random = torch.Generator().manual_seed(0)

    def ids(count: int) -> list[int]:
        return torch.randint(0, 7, (count,), generator=random).tolist()

    families = [[Scored(ids(length), 1)] for length in (2, 9, 25)]
    for shared, tails in ((1, (3, 5)), (12, (1, 1, 1, 1)), (8, (2, 7, 16)), (20, (5, 1))):
        context = ids(shared)
        families.append([Scored(context + ids(tail), shared) for tail in tails])
    families.append([Scored(ids(6), 3), Scored(ids(11), 2)])
    return families


@torch.no_grad()
def test_the_likelihoods_of_all_continuations_add_up_to_one_and_the_greedy_one_is_found() -> None:
    model = tiny()
    context = [1, 5, 2, 2]
    family = [Scored([*context, *tail], 4) for tail in itertools.product(range(7), repeat=3)]
    [found] = likelihoods(model, [family], pad_id=0)
    assert math.fsum(math.exp(one.total) for one in found) == pytest.approx(1.0, abs=1e-5)
    [[said]] = generate(model, [context], Sampling(max_new_tokens=3, temperature=0.0), stop_ids=())
    assert [row.ids[4:] for row, one in zip(family, found, strict=True) if one.greedy] == [said.ids]


def test_a_uniform_model_gives_each_token_the_same() -> None:
    model = tiny()
    torch.nn.init.zeros_(model.embedding.weight)
    [[found]] = likelihoods(model, [[Scored([3, 1, 4, 1, 5], 2)]], pad_id=0)
    assert found.total == pytest.approx(-3 * math.log(7)) and found.tokens == 3


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"positions": {"kind": "learned"}},
        {"attention": {"window": 4}},  # cannot take any mask: reads plain rows
        {"attention": {"backend": {"kind": "manual"}}},
    ],
    ids=["default", "learned", "window", "manual"],
)
@torch.no_grad()
def test_a_row_in_company_is_the_row_alone(settings: dict[str, Any]) -> None:
    model, families = tiny(**settings), random_families()
    done: list[int] = []
    found = likelihoods(model, families, pad_id=0, tell=done.append)
    assert sum(done) == len(families)
    for family, ours in zip(families, found, strict=True):
        for row, one in zip(family, ours, strict=True):
            wanted = alone(model, row)
            assert one.total == pytest.approx(wanted.total, abs=1e-4)
            assert (one.tokens, one.greedy) == (wanted.tokens, wanted.greedy)


def test_families_without_rows_stay_empty_and_order_is_kept() -> None:
    families = random_families()
    found = likelihoods(tiny(), [[], *families, []], pad_id=0)
    assert [len(one) for one in found] == [0, *map(len, families), 0]


def test_what_has_no_next_token_is_refused() -> None:
    for settings in ({"head": "scalar"}, {"attention": {"causal": False}}):
        with pytest.raises(ConfigError, match="give a policy"):
            likelihoods(tiny(**settings), [[Scored([1, 2], 1)]], pad_id=0)


def test_texts_have_the_likelihood_that_transformers_gives_them(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    words = "the king and the queen of the kingdom saw a stone by the sea. "
    tokenizer = Tokenizer.train_bpe([words * 5], 300)
    model = tiny(vocab_size=300, context=32)
    (tmp_path / "ours").mkdir()
    files = save_model(tmp_path / "ours", model, tokenizer)
    write_manifest(tmp_path / "ours", kind="policy", made_by="test", config={}, files=files)
    export_hf(tmp_path / "ours", tmp_path / "theirs")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "theirs", dtype=torch.float64).eval()
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "theirs")
    options = (
        Option("the king and the ", "queen"),
        Option("the king and the ", "kingdom of stone"),
        Option("", "the queen saw"),
    )
    items = [Item(options[:2], 0), Item(options[2:], 0)]
    found = likelihoods(
        model, [row.options for row in text_rows(items, tokenizer, context=32)], pad_id=tokenizer.pad_id
    )
    for option, one in zip(options, itertools.chain(*found), strict=True):
        whole = [their_tokenizer.bos_token_id, *their_tokenizer("".join(option), add_special_tokens=False).input_ids]
        before = 1 + len(their_tokenizer(option.context.rstrip(), add_special_tokens=False).input_ids)
        with torch.no_grad():
            logprobs = theirs(torch.tensor([whole])).logits[0].log_softmax(-1)
        wanted = sum(float(logprobs[place - 1, whole[place]]) for place in range(before, len(whole)))
        assert one.total == pytest.approx(wanted, abs=1e-4) and one.tokens == len(whole) - before
