"""Completions that go on from one reading of their prompt give the numbers of the plain rows."""

import pytest
import torch
from torch import Tensor

from llmcore.losses import token_logprobs
from llmcore.model.attention import GroupedQuery
from llmcore.model.backends.sdpa import SDPA
from llmcore.model.config import ModelConfig
from llmcore.model.latent import MultiHeadLatent
from llmcore.model.positions import Learned
from llmcore.model.transformer import Transformer
from llmrl.states import sampled_logprobs, sampled_states


def tiny(**settings: object) -> Transformer:
    torch.manual_seed(0)
    model = ModelConfig.model_validate({"vocab_size": 13, "width": 32, "depth": 2, "context": 40, **settings}).build()
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * torch.randn_like(weight)
    return model


def groups(*, prompts: int = 4, samples: int = 5, columns: int = 24, ragged: bool = True) -> tuple[Tensor, Tensor]:
    """Prompts of 2 to 9 tokens, or of 6, with completions of 1 to 12 tokens, padded on the right."""
    generator = torch.Generator().manual_seed(1)

    def draw(low: int, high: int, count: int = 1) -> Tensor:
        return torch.randint(low, high, (count,), generator=generator)

    ids, mask = torch.zeros(prompts * samples, columns, dtype=torch.long), torch.zeros(prompts * samples, columns)
    for p in range(prompts):
        prompt = draw(0, 13, int(draw(2, 10)) if ragged else 6)
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
        {"attention": GroupedQuery(window=4)},
        {"attention": GroupedQuery(window=4, sinks=1)},
        {"attention": GroupedQuery(backend=SDPA())},
        {"attention": MultiHeadLatent()},
        {"embedding_scale": 3.0, "tie_embeddings": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("ragged", [True, False])
def test_states_behind_shared_prompts_have_the_values_and_gradients_of_plain_rows(
    settings: dict[str, object], ragged: bool
) -> None:
    model = tiny(**settings)
    ids, mask = groups(ragged=ragged)
    mask[3] = False  # a completion that does not count
    weights = torch.randn(ids.shape[0], ids.shape[1] - 1, generator=torch.Generator().manual_seed(2))

    found, entropies = sampled_logprobs(model, ids, mask, temperature=0.7, entropy=True)
    wanted = token_logprobs(model, ids, temperature=0.7)
    every = torch.log_softmax(model(ids)[:, :-1] / 0.7, -1)
    wanted_entropies = -(every.exp() * every).sum(-1)
    seen = mask[:, 1:]
    torch.testing.assert_close(found, torch.where(seen, wanted, 0.0), rtol=0, atol=2e-5)
    torch.testing.assert_close(entropies, torch.where(seen, wanted_entropies, 0.0), rtol=0, atol=2e-5)
    ours = torch.autograd.grad((found * weights).sum(), list(model.parameters()))
    plain = torch.autograd.grad(torch.where(seen, wanted * weights, 0.0).sum(), list(model.parameters()))
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-4)


def tokens_read(model: Transformer, ids: Tensor, mask: Tensor) -> int:
    """How many tokens the model's embedding is asked for."""
    asked: list[int] = []
    hook = model.embedding.register_forward_pre_hook(lambda _, inputs: asked.append(inputs[0].numel()))
    sampled_states(model, ids, mask)
    hook.remove()
    return sum(asked)


def test_a_prompt_is_read_once_for_its_completions() -> None:
    ids, mask = groups(prompts=3, samples=6, ragged=False)
    prompts = sum(int(mask[p * 6].long().argmax()) for p in range(3))
    own = int(mask.sum(1).max()) - 1
    assert tokens_read(tiny(), ids, mask) <= prompts + len(ids) * own < ids.numel()


def test_short_completions_are_not_padded_to_the_longest() -> None:
    ids, mask = torch.zeros(32, 120, dtype=torch.long), torch.zeros(32, 120, dtype=torch.bool)
    ids[:, 1:] = torch.randint(0, 13, (32, 119), generator=torch.Generator().manual_seed(0))
    mask[:, 1:4] = True
    mask[:2, 1:] = True
    assert tokens_read(tiny(context=120), ids, mask) <= 1 + 8 * 118 + 24 * 2
    found = sampled_logprobs(model := tiny(context=120), ids, mask)[0]
    plain = torch.where(mask[:, 1:], token_logprobs(model, ids), 0.0)
    torch.testing.assert_close(found, plain, rtol=0, atol=2e-5)


def test_rows_that_share_nothing_and_models_that_report_losses_are_read_in_one_forward() -> None:
    ids, mask = groups(prompts=4, samples=1)
    assert tokens_read(tiny(), ids, mask) == ids.numel()
    ids, mask = groups()
    model = tiny()
    model.blocks[0].feedforward.aux_loss = None  # type: ignore[union-attr, assignment]
    assert tokens_read(model, ids, mask) == ids.numel()


def test_nothing_sampled_gives_zeros_that_hang_on_the_graph() -> None:
    model = tiny()
    ids, mask = groups()
    found = sampled_logprobs(model, ids, torch.zeros_like(mask))[0]
    assert found.abs().max() == 0
    found.sum().backward()
