"""PPO and GRPO land on their own KL-regularised optimum, which has a closed form; a rising reward is no evidence.

Base: uniform over 8 letters, T = 8 letters, reward = the fraction of one letter. With beta = 0.05 and the KL (k1) in
the reward, π* ∝ ref·exp(R/beta) says that letter with p* = w/(w+7), w = exp(1/(T·beta)): 0.635, at a KL of 5.71 nats.
GRPO with k3 in the loss has another optimum: c/T + beta/(8p) - 7·beta/(8(1-p)) = 0, c = (G-1)/G: 0.655 for G = 16.
With k2 in the loss, whose gradient is that of KL(π‖ref), it is the first again, of a reward smaller by c:
c/T = beta·log(7p/(1-p)), 0.598.

With an end: π*(length) ∝ ref(length)·exp(R(length)/beta), which a wrong mask of the stop token misses.
"""

import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path

import pytest
import torch

from llmcore.config import load_config
from llmcore.model.config import ModelConfig
from llmcore.model.norms import LayerNorm
from llmcore.model.transformer import Transformer
from llmcore.records import Message, Prompt
from llmcore.tokenizer import Tokenizer
from llmcore.train.loop import fit
from llmcore.train.run import Run
from llmrl.config import GRPOConfig, PPOConfig, RLConfig
from llmrl.evaluate import divergence
from llmrl.experience import Experiences
from llmrl.grpo import GRPO
from llmrl.ppo import PPO, ActorCritic
from llmrl.prompts import Prompts
from llmrl.rewards.reward import Sample
from llmrl.rewards.sums import Rewards, Term
from llmrl.rollout import Rollout, sample_rollout

TOKENIZER = Tokenizer.byte_level()
LENGTH = 8
BETA = 0.05
G = 16
COMMON = [
    "train.dtype=fp32",
    "train.device=cpu",
    "train.log_every=100",
    "train.save_every=100000",
    "train.optimizer.weight_decay=0",
    "train.schedule.kind=linear",
    "train.schedule.floor=0.02",
    f"rollout.max_completion_length={LENGTH}",
]
GRPO_SETTINGS = [*COMMON, "train.batch=256", "train.lr=0.006", "grpo.scale_rewards=none", "grpo.loss_type=dr_grpo"]
PPO_SETTINGS = [*COMMON, "train.batch=256", "train.lr=0.004", "ppo.lam=1", "ppo.num_ppo_epochs=2", "ppo.vf_coef=0.1"]

pytestmark = pytest.mark.slow


def uniform_policy(tokens: Sequence[int], *, seed: int) -> Transformer:
    """A tiny transformer whose next token is uniform over `tokens`, whatever came before."""
    config = ModelConfig(
        vocab_size=TOKENIZER.vocab_size, width=32, depth=1, context=64, tie_embeddings=False, norm=LayerNorm()
    )
    model = config.build(seed=seed)
    with torch.no_grad():
        model.final_norm.weight[0], model.final_norm.bias[0] = 0.0, 1.0  # type: ignore[index,union-attr]
        assert model.head is not None
        model.head.weight.zero_()
        model.head.weight[:, 0] = -30.0
        model.head.weight[list(tokens), 0] = 0.0
    return model.eval()


def letters_reward(samples: Sequence[Sample]) -> list[float]:
    return [sample.text.count("a") / LENGTH for sample in samples]


def length_reward(samples: Sequence[Sample]) -> list[float]:
    return [len(sample.text) / LENGTH for sample in samples]


def trained(
    settings: RLConfig, policy: Transformer, reward: Callable[[Sequence[Sample]], list[float]], out: Path
) -> tuple[Rollout, torch.Tensor]:
    """Train `policy` in place; 4096 completions of the result, and log policy/base of each."""
    base = deepcopy(policy).requires_grad_(False)
    prompts = Prompts([Prompt(prompt=(Message(role="user", content="?"),))], TOKENIZER, longest=40)
    rewards = Rewards([Term("rule", 1.0, reward)])  # type: ignore[list-item]
    if isinstance(settings, GRPOConfig):
        algorithm = GRPO(policy, prompts=prompts, rewards=rewards, tokenizer=TOKENIZER, config=settings, reference=base)
        source = Experiences(algorithm, seed=settings.train.seed, epochs=settings.grpo.num_iterations)
        fit(policy, source, algorithm.loss, settings.train, Run(out, made_by="test", config=settings, quiet=True))
    else:
        assert isinstance(settings, PPOConfig)
        actor = ActorCritic(policy, settings.ppo.critic.build(policy, None))
        maker = PPO(actor, reference=base, prompts=prompts, rewards=rewards, tokenizer=TOKENIZER, config=settings)
        source = Experiences(maker, seed=settings.train.seed, epochs=settings.ppo.num_ppo_epochs)
        fit(actor, source, maker.loss, settings.train, Run(out, made_by="test", config=settings, quiet=True))
    rollout = sample_rollout(policy, prompts, [0], TOKENIZER, settings.rollout, samples=4096, seed=99)
    return rollout, divergence(policy, base, rollout, temperature=1.0)


def letter_kl(p: float) -> float:
    return LENGTH * (p * math.log(8 * p) + (1 - p) * math.log(8 * (1 - p) / 7))


def k1_optimum() -> float:
    w = math.exp(1 / (LENGTH * BETA))
    return w / (w + 7)


def k3_optimum() -> float:
    """The root of c/T + beta/(8p) - 7·beta/(8(1-p)) = 0, by bisection."""
    low, high = 0.01, 0.99
    for _ in range(60):
        p = (low + high) / 2
        slope = (G - 1) / G / LENGTH + BETA / (8 * p) - 7 * BETA / (8 * (1 - p))
        low, high = (p, high) if slope > 0 else (low, p)
    return low


def k2_optimum() -> float:
    w = math.exp((G - 1) / G / (LENGTH * BETA))
    return w / (w + 7)


def test_the_closed_forms_are_those_of_the_specification() -> None:
    assert k1_optimum() == pytest.approx(0.635, abs=5e-4)
    assert letter_kl(k1_optimum()) == pytest.approx(5.71, abs=5e-3)
    assert k3_optimum() == pytest.approx(0.655, abs=5e-4)
    assert k2_optimum() == pytest.approx(0.598, abs=5e-4)


CASES = {
    "ppo": (PPOConfig, [*PPO_SETTINGS, "train.steps=600", f"ppo.kl_coef={BETA}"], k1_optimum),
    "ppo-separate-critic": (
        PPOConfig,
        [*PPO_SETTINGS, "train.steps=600", f"ppo.kl_coef={BETA}", "ppo.critic.kind=separate", "ppo.vf_coef=1"],
        k1_optimum,
    ),
    "grpo-k1-in-reward": (
        GRPOConfig,
        [*GRPO_SETTINGS, "train.steps=300", f"grpo.num_generations={G}", f"grpo.beta={BETA}", "grpo.kl_in_reward=true"],
        k1_optimum,
    ),
    "grpo-k3-in-loss": (
        GRPOConfig,
        [*GRPO_SETTINGS, "train.steps=300", f"grpo.num_generations={G}", f"grpo.beta={BETA}"],
        k3_optimum,
    ),
    "grpo-k2-in-loss": (
        GRPOConfig,
        [
            *GRPO_SETTINGS,
            "train.steps=300",
            f"grpo.num_generations={G}",
            f"grpo.beta={BETA}",
            "grpo.kl_estimator=k2",
        ],
        k2_optimum,
    ),
}


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("case", CASES)
def test_the_letter_is_as_frequent_as_the_optimum_says(case: str, seed: int, tmp_path: Path) -> None:
    settings_class, settings, optimum = CASES[case]
    config = load_config(settings_class, [*settings, f"train.seed={seed}"])
    policy = uniform_policy([ord(letter) for letter in "abcdefgh"], seed=seed)
    rollout, log_ratio = trained(config, policy, letters_reward, tmp_path / "run")
    found = sum(sample.text.count("a") for sample in rollout.samples) / (LENGTH * len(rollout.samples))
    divergence_found = float(log_ratio.mean())
    wanted = optimum()
    print(f"{case} seed {seed}: p {found:.4f} (p* {wanted:.4f}), KL {divergence_found:.3f} ({letter_kl(wanted):.3f})")
    assert abs(found - wanted) < 0.02
    assert abs(divergence_found - letter_kl(wanted)) < 0.3


def length_optimum(beta: float, *, stop: float) -> tuple[float, float]:
    """Mean length and KL of π*(length) ∝ ref(length)·exp(R/beta); length LENGTH is cut and needs no stop."""
    reference = [(1 - stop) ** n * stop for n in range(LENGTH)] + [(1 - stop) ** LENGTH]
    weights = [share * math.exp(n / LENGTH / beta) for n, share in enumerate(reference)]
    shares = [weight / sum(weights) for weight in weights]
    mean = sum(n * share for n, share in enumerate(shares))
    return mean, sum(p * math.log(p / q) for p, q in zip(shares, reference, strict=True))


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("case", ["ppo", "grpo-k1-in-reward"])
def test_lengths_are_as_the_optimum_says(case: str, seed: int, tmp_path: Path) -> None:
    settings_class, settings, _ = CASES[case]
    beta = 0.25
    name = "ppo.kl_coef" if case == "ppo" else "grpo.beta"
    config = load_config(settings_class, [*settings, f"train.seed={seed}", f"{name}={beta}"])
    policy = uniform_policy([ord("a"), ord("b"), TOKENIZER.end_of_turn_id], seed=seed)
    rollout, log_ratio = trained(config, policy, length_reward, tmp_path / "run")
    found = sum(len(sample.text) for sample in rollout.samples) / len(rollout.samples)
    wanted, wanted_kl = length_optimum(beta, stop=1 / 3)
    print(f"{case} seed {seed}: length {found:.3f} ({wanted:.3f}), KL {float(log_ratio.mean()):.4f} ({wanted_kl:.4f})")
    assert abs(found - wanted) < 0.25
    assert abs(float(log_ratio.mean()) - wanted_kl) < 0.15
