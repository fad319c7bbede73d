"""What must hold of any run: frozen models stay as they are, and a group's baseline takes a prompt's own level away."""

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import pytest
import torch

from llmcore.config import load_config
from llmcore.model.config import ModelConfig
from llmcore.model.transformer import Transformer
from llmcore.records import Message, Prompt
from llmcore.scoring import RewardScale, Scorer, scored_row
from llmcore.tokenizer import Tokenizer
from llmcore.train.loop import fit
from llmcore.train.run import Run
from llmrl.config import GRPOConfig, PPOConfig
from llmrl.experience import Experiences
from llmrl.grpo import GRPO
from llmrl.ppo import PPO, ActorCritic
from llmrl.prompts import Prompts
from llmrl.rewards.reward import RewardFunction, Sample
from llmrl.rewards.sums import Rewards, Term

TOKENIZER = Tokenizer.byte_level()
SETTINGS = ["train.batch=12", "train.steps=3", "train.lr=0.01", "train.dtype=fp32", "train.device=cpu"]
SETTINGS += ["rollout.max_completion_length=6"]


def tiny(*, seed: int = 0, head: str = "lm") -> Transformer:
    """A small model that ends its turn now and then."""
    config = {"vocab_size": TOKENIZER.vocab_size, "width": 16, "depth": 1, "context": 64, "head": head}
    model = ModelConfig.model_validate(config).build(seed=seed)
    with torch.no_grad():
        model.embedding.weight[TOKENIZER.end_of_turn_id] *= 8
    return model


def prompts() -> Prompts:
    return Prompts(
        [Prompt(prompt=(Message(role="user", content="x" * n),)) for n in range(1, 7)], TOKENIZER, longest=40
    )


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_reference_and_reward_model_are_bit_identical_after_training(algorithm: str, tmp_path: Path) -> None:
    policy, reference = tiny(), tiny().requires_grad_(False)
    scorer = Scorer(tiny(seed=2, head="scalar"), TOKENIZER, None, RewardScale())  # type: ignore[arg-type]
    frozen = [deepcopy(reference.state_dict()), deepcopy(scorer.model.state_dict())]
    before = deepcopy(policy.state_dict())

    def learned(samples: Sequence[Sample]) -> list[float]:
        return scorer.score([scored_row(s.prompt.prompt, s.text, TOKENIZER) for s in samples]).tolist()

    rewards = Rewards([Term("learned", 1.0, learned)])
    if algorithm == "grpo":
        config = load_config(GRPOConfig, [*SETTINGS, "grpo.num_generations=4", "grpo.num_iterations=2"])
        maker = GRPO(
            policy, prompts=prompts(), rewards=rewards, tokenizer=TOKENIZER, config=config, reference=reference
        )
        job = Run(tmp_path / "run", made_by="test", config=config, quiet=True)
        fit(policy, Experiences(maker, seed=0, epochs=2), maker.loss, config.train, job)
    else:
        settings = load_config(PPOConfig, SETTINGS)
        actor = ActorCritic(policy)
        ppo = PPO(actor, reference=reference, prompts=prompts(), rewards=rewards, tokenizer=TOKENIZER, config=settings)
        job = Run(tmp_path / "run", made_by="test", config=settings, quiet=True)
        fit(actor, Experiences(ppo, seed=0, epochs=2), ppo.loss, settings.train, job)
    for kept, model in zip(frozen, (reference, scorer.model), strict=True):
        assert all(torch.equal(kept[name], weight) for name, weight in model.state_dict().items())
    assert any(not torch.equal(before[name], weight) for name, weight in policy.state_dict().items())


def test_a_level_of_each_prompts_own_changes_no_advantage_of_a_rollout() -> None:
    """Rows of another order than the rewards', or groups of mixed prompts, would show."""

    def letters(samples: Sequence[Sample]) -> list[float]:
        return [float(len(set(sample.text))) for sample in samples]

    def with_level(samples: Sequence[Sample]) -> list[float]:
        levels = [100.0 * len(sample.prompt.prompt[-1].content) for sample in samples]
        return [level + value for level, value in zip(levels, letters(samples), strict=True)]

    def advantages(reward: RewardFunction) -> torch.Tensor:
        config = load_config(GRPOConfig, [*SETTINGS, "grpo.num_generations=4", "grpo.beta=0"])
        maker = GRPO(
            tiny(),
            prompts=prompts(),
            rewards=Rewards([Term("rule", 1.0, reward)]),
            tokenizer=TOKENIZER,
            config=config,
        )
        return maker.experience(0, step=0).advantages

    plain, shifted = advantages(letters), advantages(with_level)
    assert plain.abs().max() > 0.5
    torch.testing.assert_close(shifted, plain, rtol=0, atol=1e-3)
