"""Completions packed behind their prompt give the numbers of the plain rows."""

import pytest
import torch
from torch import Tensor

from llmcore.losses import token_logprobs
from llmcore.model.attention import GroupedQuery
from llmcore.model.config import ModelConfig
from llmcore.model.positions import Learned
from llmcore.model.transformer import Transformer
from llmrl.states import pack, sampled_logprobs, takes_any_mask


def tiny(**settings: object) -> Transformer:
    torch.manual_seed(0)
    model = ModelConfig.model_validate({"vocab_size": 13, "width": 32, "depth": 2, "context": 40, **settings}).build()
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * torch.randn_like(weight)
    return model


def groups(*, prompts: int = 4, samples: int = 5, columns: int = 24) -> tuple[Tensor, Tensor]:
    """Prompts of 2 to 9 tokens with completions of 1 to 12 tokens, padded on the right."""
    generator = torch.Generator().manual_seed(1)

    def draw(low: int, high: int, count: int = 1) -> Tensor:
        return torch.randint(low, high, (count,), generator=generator)

    ids, mask = torch.zeros(prompts * samples, columns, dtype=torch.long), torch.zeros(prompts * samples, columns)
    for p in range(prompts):
        prompt = draw(0, 13, int(draw(2, 10)))
        for s in range(samples):
            completion = draw(0, 13, int(draw(1, 13)))
            row = torch.cat([prompt, completion])
            ids[p * samples + s, : len(row)] = row
            mask[p * samples + s, len(prompt) : len(row)] = 1
    return ids, mask.bool()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"positions": Learned()},
        {"attention": GroupedQuery(qk_norm="head")},
        {"embedding_scale": 3.0, "tie_embeddings": False},
    ],
)
def test_packed_rows_have_the_values_and_gradients_of_plain_ones(settings: dict[str, object]) -> None:
    model = tiny(**settings)
    ids, mask = groups()
    mask[3] = False  # a completion that does not count
    weights = torch.randn(ids.shape[0], ids.shape[1] - 1, generator=torch.Generator().manual_seed(2))
    assert pack(ids, mask, limit=40) is not None

    found, entropies = sampled_logprobs(model, ids, mask, temperature=0.7, entropy=True)
    wanted, wanted_entropies = token_logprobs(model, ids, temperature=0.7, entropy=True)
    seen = mask[:, 1:]
    torch.testing.assert_close(found, torch.where(seen, wanted, 0.0), rtol=0, atol=2e-5)
    torch.testing.assert_close(entropies, torch.where(seen, wanted_entropies, 0.0), rtol=0, atol=2e-5)
    ours = torch.autograd.grad((found * weights).sum(), list(model.parameters()))
    plain = torch.autograd.grad(torch.where(seen, wanted * weights, 0.0).sum(), list(model.parameters()))
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-4)


def test_a_prompt_is_read_once_for_its_completions() -> None:
    ids, mask = groups(prompts=3, samples=6)
    packed = pack(ids, mask, limit=1000)
    assert packed is not None
    prompts = sum(int(mask[p * 6].long().argmax()) for p in range(3))
    assert int((packed.members >= 0).sum()) == prompts + int(mask.sum()) - len(mask)
    assert int((packed.members == 0).sum()) == prompts
    assert len(packed.sources) == int(mask.sum())


def test_long_groups_take_several_rows_within_the_limit() -> None:
    ids, mask = groups(prompts=2, samples=8)
    packed = pack(ids, mask, limit=24)
    assert packed is not None and packed.ids.shape[1] <= 24 and packed.ids.shape[0] > 2
    model = tiny()
    model.config = model.config.model_copy(update={"context": 24})
    found = sampled_logprobs(model, ids, mask)[0]
    plain = torch.where(mask[:, 1:], token_logprobs(model, ids), 0.0)
    torch.testing.assert_close(found, plain, rtol=0, atol=2e-5)


def test_rows_that_share_nothing_and_models_that_cannot_share_go_the_plain_way() -> None:
    ids, mask = groups(prompts=4, samples=1)
    assert pack(ids, mask, limit=40) is None
    windowed = tiny(attention=GroupedQuery(window=4))
    assert not takes_any_mask(windowed) and takes_any_mask(tiny())
    ids, mask = groups()
    found = sampled_logprobs(windowed, ids, mask)[0]
    torch.testing.assert_close(found, torch.where(mask[:, 1:], token_logprobs(windowed, ids), 0.0), rtol=0, atol=2e-5)


def test_nothing_sampled_gives_zeros_that_hang_on_the_graph() -> None:
    model = tiny()
    ids, mask = groups()
    found = sampled_logprobs(model, ids, torch.zeros_like(mask))[0]
    assert found.abs().max() == 0
    found.sum().backward()
