"""Figures say what their names say: extremes of all parts, shares of what counts, rewards without the KL."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from llmcore.config import load_config
from llmcore.losses import Loss
from llmcore.model.config import ModelConfig
from llmcore.records import Message, Prompt
from llmcore.tokenizer import Tokenizer
from llmcore.train.tally import Tally
from llmrl.config import GRPOConfig, GRPOSettings
from llmrl.experience import as_metrics
from llmrl.grpo import GRPO
from llmrl.metrics import Figures, clip_metrics, critic_metrics, kl_metrics, ratio_metrics
from llmrl.prompts import Prompts
from llmrl.rewards.reward import Sample
from llmrl.rewards.sums import Rewards, Term

TOKENIZER = Tokenizer.byte_level()


def values_of(*parts: Figures) -> dict[str, float]:
    """The figures of a step whose micro-batches have these."""
    tally = Tally()
    for part in parts:
        tally.add(Loss(torch.zeros(()), 1, part), None, None)
    return tally.figures()


def some_ratios() -> tuple[Tensor, Tensor, Tensor]:
    """Ratios, advantages and mask (B, T-1) of four completions, of which the last does not count."""
    generator = torch.Generator().manual_seed(0)
    ratio = (0.5 * torch.randn(4, 6, generator=generator)).exp()
    mask = torch.arange(6) < torch.tensor([6, 2, 4, 0])[:, None]
    return ratio, torch.randn(4, 1, generator=generator).expand(4, 6), mask


@pytest.mark.parametrize("settings", [GRPOSettings(), GRPOSettings(delta=1.4), GRPOSettings(loss_type="cispo")])
def test_figures_of_an_update_do_not_depend_on_its_micro_batches(settings: GRPOSettings) -> None:
    ratio, advantages, mask = some_ratios()

    def figures(rows: slice) -> Figures:
        chosen = ratio[rows], advantages[rows], mask[rows]
        return {
            **ratio_metrics(ratio[rows], mask[rows]),
            **clip_metrics(*chosen, settings),
            **kl_metrics(ratio[rows].log(), torch.zeros_like(ratio[rows]), mask[rows]),
        }

    whole = values_of(figures(slice(0, 4)))
    assert whole["ratio/max_gap"] == pytest.approx(float((ratio - 1)[mask].abs().max()))
    for parts in ((slice(0, 1), slice(1, 4)), (slice(3, 4), slice(0, 3)), (slice(0, 2), slice(2, 3), slice(3, 4))):
        assert values_of(*(figures(part) for part in parts)) == pytest.approx(whole, rel=1e-4, abs=1e-5)


def test_a_completion_that_does_not_count_is_in_no_figure() -> None:
    ratio, advantages, mask = some_ratios()
    for settings in (GRPOSettings(), GRPOSettings(loss_type="cispo")):
        with_it = clip_metrics(ratio, advantages, mask, settings)
        assert with_it == clip_metrics(ratio[:3], advantages[:3], mask[:3], settings)
    below = torch.full_like(ratio, 0.1)
    assert clip_metrics(below, -torch.ones_like(ratio), mask, GRPOSettings())["clip_ratio/low_min"] == (1.0, "min")
    found = kl_metrics(ratio.log(), torch.zeros_like(ratio), mask)["objective/kl"]
    assert found == (pytest.approx(float(ratio.log()[mask].sum()), rel=1e-5), 3)


def test_cispo_clips_nothing_and_says_how_many_weights_it_caps() -> None:
    ratio = torch.tensor([[0.5, 1.0, 1.3, 1.3]])
    advantages = torch.tensor([[-1.0, 1.0, 1.0, -1.0]])
    mask = torch.ones(1, 4, dtype=torch.bool)
    assert clip_metrics(ratio, advantages, mask, GRPOSettings(loss_type="cispo")) == {"cispo_clip_ratio": (2.0, 4)}
    figures = clip_metrics(ratio, advantages, mask, GRPOSettings())
    assert figures["clip_ratio/low_mean"] == figures["clip_ratio/high_mean"] == (1.0, 4)


def test_figures_of_a_rollout_come_back_from_the_state_of_a_run() -> None:
    random = torch.randn(3, 2, 4)
    figures = critic_metrics(*random, torch.ones(2, 4, dtype=torch.bool))
    assert figures["critic/values/max"][1] == "max"
    assert as_metrics({name: list(figure) for name, figure in figures.items()}) == figures


def test_the_reward_is_told_apart_from_the_kl_that_is_taken_from_it() -> None:
    """With equal rewards no group has a spread, though the KL of each completion is another."""
    policy, reference = (
        ModelConfig(vocab_size=TOKENIZER.vocab_size, width=16, depth=1, context=64).build(seed=seed) for seed in (0, 1)
    )

    def alike(samples: Sequence[Sample]) -> list[float]:
        return [1.0] * len(samples)

    settings = ["train.batch=8", "grpo.num_generations=4", "grpo.kl_in_reward=true", "grpo.beta=0.5"]
    maker = GRPO(
        policy,
        prompts=Prompts([Prompt(prompt=(Message(role="user", content="?"),))], TOKENIZER, longest=40),
        rewards=Rewards([Term("alike", 1.0, alike)]),
        tokenizer=TOKENIZER,
        config=load_config(GRPOConfig, [*settings, "rollout.max_completion_length=6"]),
        reference=reference.requires_grad_(False),
    )
    experience = maker.experience(0, step=0)
    assert experience.advantages.abs().max() > 0.1
    assert experience.metrics["reward_std"] == (0.0, 2)
    assert experience.metrics["frac_reward_zero_std"] == (2.0, 2)
