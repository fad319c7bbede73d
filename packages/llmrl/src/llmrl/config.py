"""Settings of reinforcement learning; names are TRL's where TRL has them."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from llmcore.config import Config
from llmcore.lora import OptionalAdapter
from llmcore.train.config import TrainConfig
from llmcore.train.optim import AdamW
from llmcore.train.schedule import Linear
from llmrl.critic import AnyCritic, SharedTrunk
from llmrl.rewards.names import AnyReward


class RLInputs(Config):
    """What the run is made from."""

    policy: str | None = None
    """The policy to improve (`llmsft run`)."""
    reward: str | None = None
    """A rule, a reward checkpoint's folder, or a sum: 0.7*runs/reward + 0.3*literal; a weight of 0 only watches."""
    prompts: str | None = None
    """Prompts: a records artifact, a folder with train.jsonl and valid.jsonl, or one JSONL file; built-in if absent."""
    reference: str | None = None
    """The policy to which the KL divergence is taken; the policy itself, as it was at the start, if absent."""


class PPOInputs(RLInputs):
    """What the run is made from."""

    critic: str | None = None
    """The reward model or policy that a separate critic begins as; the policy if absent."""


class RolloutConfig(Config):
    """How completions are sampled."""

    max_completion_length: int = Field(32, ge=1)
    """Longest completion, in tokens."""
    temperature: float = Field(1.0, gt=0)
    """Of sampling and of every log-probability alike."""
    top_k: int = Field(0, ge=0)
    """Sample among so many tokens only (0: all); the update then scores another distribution than was sampled."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Sample within this probability mass only; below 1 it biases the update as top_k does."""
    max_unscorable: float = Field(0.5, ge=0, le=1)
    """The share of a rollout that may have no reward (NaN, exception, timeout) before the run stops."""
    max_dropped: float = Field(0.01, ge=0, le=1)
    """The share of prompts that may be dropped, too long for the context, before it is an error."""
    eval_prompts: int = Field(64, ge=0)
    """Held-out prompts answered in each evaluation, sampled once and greedily; 0: no evaluation."""
    log_samples: int = Field(8, ge=0)
    """Completions written to run/samples.jsonl at each log interval."""
    show_samples: int = Field(1, ge=0)
    """How many of them are also shown."""


class GRPOSettings(Config):
    """Group relative policy optimization."""

    num_generations: int = Field(8, ge=2)
    """Completions of each prompt: the group whose mean is the baseline."""
    num_iterations: int = Field(1, ge=1)
    """Updates from each rollout."""
    beta: float = Field(0.02, ge=0)
    """Weight of the KL divergence to the reference; 0 loads no reference."""
    kl_estimator: Literal["k2", "k3"] = "k3"
    """Of the KL in the loss. Its gradient is that of KL(policy‖reference) with k2, of KL(reference‖policy) with k3."""
    kl_in_reward: bool = False
    """Take the KL (k1, summed over tokens) from the reward instead: the optimum is then reference·exp(reward/beta)."""
    epsilon: float = Field(0.2, gt=0)
    """How far below 1 the probability ratio still gives a gradient."""
    epsilon_high: float | None = Field(None, gt=0)
    """How far above 1; as `epsilon` if absent (DAPO: 0.28)."""
    delta: float | None = Field(None, gt=1)
    """Above this ratio a bad token gives no gradient either (INTELLECT-2's two-sided clip); none: it always does."""
    loss_type: Literal["grpo", "bnpo", "dapo", "dr_grpo", "cispo"] = "dapo"
    """What the loss is averaged over; see `llmrl.grpo.aggregate`."""
    importance_sampling_level: Literal["token", "sequence"] = "token"
    """One ratio for each token, or one for each completion (GSPO)."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """Divide advantages by the deviation of the group, of the batch, or by nothing (Dr. GRPO)."""
    mask_truncated_completions: bool = False
    """Leave completions that were cut out of the loss (DAPO)."""
    entropy_coef: float = Field(0.0, ge=0)
    """Weight of the policy's entropy, taken from the loss of each token: it keeps the policy from narrowing."""
    refill_attempts: int = Field(0, ge=0, le=8)
    """How often groups of equal rewards are replaced by groups of other prompts (DAPO's dynamic sampling)."""

    @field_validator("kl_estimator", mode="before")
    @classmethod
    def with_a_gradient(cls, value: object) -> object:
        """k1 in the loss does nothing on average, which would look like a weight that is too small."""
        if value == "k1":
            raise ValueError("k1 in the loss has no gradient on average; set grpo.kl_in_reward=true, or take k2")
        return value

    @field_validator("scale_rewards", mode="before")
    @classmethod
    def spelled(cls, value: object) -> object:
        """`grpo.scale_rewards=none` on a command line arrives as None."""
        return "none" if value is None else value

    @model_validator(mode="after")
    def check(self) -> "GRPOSettings":
        """Settings that contradict each other."""
        if self.kl_in_reward and not self.beta:
            raise ValueError("kl_in_reward needs a beta above 0")
        if self.kl_in_reward and self.kl_estimator != "k3":
            raise ValueError(
                f"kl_estimator={self.kl_estimator} does nothing: with kl_in_reward, k1 is taken from the reward"
            )
        if self.delta is not None and self.loss_type == "cispo":
            raise ValueError("delta does nothing with loss_type=cispo, whose ratio is capped at 1 + epsilon_high")
        if self.delta is not None and self.delta <= self.clip_range[1]:
            raise ValueError(f"delta is {self.delta}, but must be above 1 + epsilon_high, {self.clip_range[1]}")
        return self

    @property
    def clip_range(self) -> tuple[float, float]:
        """Between which ratios a token gives a gradient."""
        return 1 - self.epsilon, 1 + (self.epsilon_high or self.epsilon)


class PPOSettings(Config):
    """Proximal policy optimization with a learned value function."""

    critic: AnyCritic = SharedTrunk()
    """What says how good a state is: a head on the policy's trunk (shared) or a model of its own (separate)."""
    num_ppo_epochs: int = Field(2, ge=1)
    """How often each rollout is gone through."""
    num_mini_batches: int = Field(1, ge=1)
    """Updates in each pass; a rollout has train.batch × num_mini_batches completions."""
    kl_coef: float = Field(0.05, gt=0)
    """Weight of the KL divergence to the reference (k1) in each token's reward; the first one, if it adapts."""
    kl_target: float | None = Field(None, gt=0)
    """Adapt kl_coef towards this KL, in nats per completion (summed over its tokens); fixed if absent."""
    horizon: float = Field(2000.0, gt=0)
    """Over how many completions kl_coef adapts."""
    gamma: float = Field(1.0, gt=0, le=1)
    """Discount of each token."""
    lam: float = Field(0.95, ge=0, le=1)
    """GAE's trade of bias (0) against variance (1)."""
    cliprange: float = Field(0.2, gt=0)
    """How far below 1 the probability ratio still gives a gradient."""
    cliprange_high: float | None = Field(None, gt=0)
    """How far above 1; as `cliprange` if absent."""
    dual_clip: float | None = Field(None, gt=1)
    """Also bound the loss of a bad token at this multiple of its advantage (3 is usual)."""
    cliprange_value: float = Field(0.2, gt=0)
    """How far a value may move from the one at sampling."""
    vf_coef: float | None = Field(None, ge=0)
    """Weight of the value loss; if absent 0.1 with a shared trunk, and 1 with a separate critic."""
    entropy_coef: float = Field(0.0, ge=0)
    """Weight of the policy's entropy, mean over tokens, in the loss: it keeps the policy from narrowing."""
    whiten_advantages: bool = True
    """Bring advantages to mean 0 and variance 1 over the rollout's tokens."""
    whiten_rewards: bool = False
    """Bring token rewards to variance 1 over the rollout's tokens."""
    missing_eos_penalty: float = Field(0.0, ge=0)
    """Taken from the score of a completion that was cut."""
    score_clip: float | None = Field(5.0, gt=0)
    """Clip scores at so many running deviations from their running mean."""
    normalize_scores: bool = False
    """Bring scores to running mean 0 and deviation 1."""
    stop_kl: float | None = Field(None, gt=0)
    """Leave the rest of a rollout's updates out when an update is this far (approxkl, nats per token) from it."""

    @model_validator(mode="after")
    def check(self) -> "PPOSettings":
        """Settings that do nothing."""
        if self.kl_target is None and self.horizon != type(self).model_fields["horizon"].default:
            raise ValueError(f"horizon={self.horizon} does nothing without a kl_target: kl_coef is then fixed")
        return self

    @property
    def clip_range(self) -> tuple[float, float]:
        """Between which ratios a token gives a gradient."""
        return 1 - self.cliprange, 1 + (self.cliprange_high or self.cliprange)

    @property
    def value_weight(self) -> float:
        """Of the value loss: `vf_coef`, or what suits the critic."""
        return self.critic.value_weight if self.vf_coef is None else self.vf_coef


class RewardSettings(Config):
    """What names in `--reward` mean, beyond the rules and folders that everybody has."""

    rewards: dict[str, AnyReward] = {}
    """Rules with settings of their own, by the name that `--reward` uses: [rewards.short] kind = "length"."""


class RLConfig(RewardSettings):
    """What PPO and GRPO have in common."""

    inputs: RLInputs = RLInputs()
    """What the run is made from; each has an option of the same name."""
    rollout: RolloutConfig = RolloutConfig()
    """How completions are sampled."""
    lora: OptionalAdapter = None
    """Train adapters beside frozen weights (`lora.rank=8`); none: train all weights. The policy without its adapters is
    then the reference, and the output is an adapter, which every command takes in place of a policy."""


class GRPOConfig(RLConfig):
    """A better policy from a reward, without a value function."""

    grpo: GRPOSettings = GRPOSettings()
    """The algorithm."""
    train: TrainConfig = TrainConfig(
        steps=200,
        batch=128,
        lr=2e-4,
        optimizer=AdamW(weight_decay=0.0),
        schedule=Linear(floor=0.1),
        log_every=5,
        eval_every=50,
        save_every=50,
    )
    """The optimization; `batch` counts completions."""

    @model_validator(mode="after")
    def check_groups(self) -> "GRPOConfig":
        """Whole groups."""
        if self.train.batch % self.grpo.num_generations:
            raise ValueError(
                f"train.batch is {self.train.batch}, which is no multiple of "
                f"grpo.num_generations, {self.grpo.num_generations}"
            )
        return self


class PPOConfig(RLConfig):
    """A better policy from a reward, with a learned value function as the baseline."""

    inputs: PPOInputs = PPOInputs()
    """What the run is made from; each has an option of the same name."""
    ppo: PPOSettings = PPOSettings()
    """The algorithm."""
    train: TrainConfig = TrainConfig(
        steps=400,
        batch=128,
        lr=2e-4,
        optimizer=AdamW(weight_decay=0.0),
        schedule=Linear(floor=0.1),
        log_every=10,
        eval_every=100,
        save_every=100,
    )
    """The optimization; `batch` counts completions."""
