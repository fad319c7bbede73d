"""Our losses are TRL's, in float64 to 1e-8; TRL is asked as tests/peers.py says.

Checked with TRL 1.16, which has no PPO any more: of PPO, the policy loss is GRPO's with one advantage for each token.
"""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llmrl.config import GRPOSettings
from llmrl.grpo import aggregate, kl_losses, probability_ratio, token_losses
from llmrl.metrics import clip_metrics, kl_metrics
from llmrl.ppo import policy_losses
from peers import ask, needs_peers

LONGEST = 9
ROWS = 6
CASES = [
    {"loss_type": loss_type, "level": level, "beta": beta, "epsilon": epsilon, "epsilon_high": high, "once": once}
    for loss_type, level, beta, (epsilon, high), once in itertools.product(
        ("grpo", "bnpo", "dapo", "dr_grpo", "cispo"),
        ("token", "sequence"),
        (0.0, 0.3),
        ((0.2, 0.2), (0.1, 0.28), (3e-4, 4e-4)),
        (False, True),
    )
]
CASES += [case | {"delta": 1.5} for case in CASES if case["loss_type"] == "dapo" and not case["once"]]

pytestmark = needs_peers


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    """Log-probabilities of three policies over completions of 1 to 8 tokens, one of which has no token that counts."""
    random = torch.Generator().manual_seed(0)
    old = -torch.rand(ROWS, LONGEST - 1, generator=random, dtype=torch.float64) * 3
    lengths = torch.tensor([8, 1, 5, 0, 3, 8])
    noise = torch.randn(2, *old.shape, generator=random, dtype=torch.float64)
    return {
        "logprobs": old + 0.3 * noise[0],
        "old": old,
        "reference": old + 0.5 * noise[1],
        "mask": (torch.arange(LONGEST - 1) < lengths[:, None]).double(),
        "advantages": torch.randn(ROWS, generator=random, dtype=torch.float64),
    }


def ask_trl(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """TRL's answers."""
    printed = ask(Path(__file__).with_name("trl_losses.py"), said=json.dumps(cases))
    answers: list[dict[str, Any]] = json.loads(printed.splitlines()[-1])
    return answers


def trl_case(case: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """A case under TRL's names; its cispo caps the ratio at epsilon_high itself, ours at 1 + epsilon_high."""
    high = case["epsilon_high"] + (1 if case["loss_type"] == "cispo" else 0)
    settings = {
        "loss_type": case["loss_type"],
        "importance_sampling_level": case["level"],
        "beta": case["beta"],
        "epsilon_low": case["epsilon"],
        "epsilon_high": high,
        "max_completion_length": LONGEST,
    }
    given = {name: value.tolist() for name, value in tensors.items() if not (name == "old" and case["once"])}
    extras = {name: case[name] for name in ("delta", "entropy_coef") if name in case}
    return {"settings": settings, "tensors": given, **extras}


def test_every_loss_its_gradient_and_its_metrics_are_trls(tensors: dict[str, Tensor]) -> None:
    for case, wanted in zip(CASES, ask_trl([trl_case(case, tensors) for case in CASES]), strict=True):
        settings = GRPOSettings(
            loss_type=case["loss_type"],
            importance_sampling_level=case["level"],
            beta=case["beta"],
            epsilon=case["epsilon"],
            epsilon_high=case["epsilon_high"],
            delta=case.get("delta"),
        )
        mask = tensors["mask"].bool()
        logprobs = tensors["logprobs"].clone().requires_grad_()
        advantages = torch.where(mask, tensors["advantages"][:, None], 0.0)
        old = logprobs.detach() if case["once"] else tensors["old"]
        ratio = probability_ratio(logprobs, old, mask, level=settings.importance_sampling_level)
        losses = token_losses(logprobs, ratio, advantages, settings)
        if settings.beta:
            losses = losses + settings.beta * kl_losses(logprobs, tensors["reference"], mask, estimator="k3")
        total, count = aggregate(losses, mask, settings.loss_type, longest=LONGEST)
        (gradient,) = torch.autograd.grad(total / count, logprobs)
        assert (total / count).item() == pytest.approx(wanted["loss"], abs=1e-8), case
        torch.testing.assert_close(gradient, torch.tensor(wanted["gradient"]).double(), rtol=0, atol=1e-8)
        figures = clip_metrics(ratio.detach(), advantages, mask, settings)
        figures |= kl_metrics(logprobs.detach(), tensors["reference"], mask)
        names = ["kl"] if settings.beta else []
        if settings.loss_type != "cispo" and settings.importance_sampling_level == "token":
            names += [f"clip_ratio/{name}" for name in ("low_mean", "high_mean", "region_mean", "low_min", "high_max")]
        for name in names:
            found, how = figures[name]
            value = found / how if isinstance(how, int) else found
            assert value == pytest.approx(wanted["metrics"][name], abs=1e-6), (case, name)


def test_the_policy_loss_of_ppo_is_that_of_trls_grpo_token_by_token(tensors: dict[str, Tensor]) -> None:
    random = torch.Generator().manual_seed(1)
    mask = tensors["mask"].bool()
    advantages = torch.randn(mask.shape, generator=random, dtype=torch.float64) * mask
    case = {"loss_type": "dapo", "level": "token", "beta": 0.0, "epsilon": 0.2, "epsilon_high": 0.2, "once": False}
    [wanted] = ask_trl([trl_case(case, {**tensors, "advantages": advantages})])
    ratio = torch.where(mask, tensors["logprobs"] - tensors["old"], 0.0).exp()
    losses, _ = policy_losses(ratio, advantages, clip_range=(0.8, 1.2), dual_clip=None)
    assert float(losses[mask].sum() / mask.sum()) == pytest.approx(wanted["loss"], abs=1e-8)


def test_the_entropy_bonus_of_a_mean_over_tokens_is_trls(tensors: dict[str, Tensor]) -> None:
    """TRL takes the mean over tokens whatever the loss_type; ours is averaged as the rest of the loss is."""
    entropies = torch.rand(tensors["logprobs"].shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    case = {"loss_type": "dapo", "level": "token", "beta": 0.0, "epsilon": 0.2, "epsilon_high": 0.2, "once": False}
    [wanted] = ask_trl([trl_case(case | {"entropy_coef": 0.7}, {**tensors, "entropies": entropies})])
    mask, settings = tensors["mask"].bool(), GRPOSettings()
    ratio = torch.where(mask, tensors["logprobs"] - tensors["old"], 0.0).exp()
    advantages = torch.where(mask, tensors["advantages"][:, None], 0.0)
    losses = token_losses(tensors["logprobs"], ratio, advantages, settings) - 0.7 * entropies
    total, count = aggregate(losses, mask, "dapo", longest=LONGEST)
    assert (total / count).item() == pytest.approx(wanted["loss"], abs=1e-8)
