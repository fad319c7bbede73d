"""The critics of PPO: a linear head on the policy's own trunk, or a model of its own.

A critic gives the value of the state before each sampled token. Both begin by saying 0, except a critic that begins as
a reward model: that one begins with the reward it would give there.
"""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from llmcore.extensions import Part, part
from llmcore.train.optim import AnyOptimizer, Optimizer

if TYPE_CHECKING:  # settings are read without torch
    import torch
    from torch import nn

    from llmcore.model.transformer import Transformer
    from llmcore.scoring import Scorer
    from llmrl.critic_models import CriticModel


class Critic(Part):
    """The contract: `build` gives the module that values states; `value_weight` is ppo.vf_coef where none is given."""

    value_weight: ClassVar[float] = 1.0

    def build(self, policy: "Transformer", start: "Scorer | Transformer | None") -> "CriticModel":
        """The critic of `policy`; `start` is what `inputs.critic` names."""
        raise NotImplementedError(f"{type(self).__name__} must define build")

    def optimizer(self, optimizer: Optimizer) -> Optimizer:
        """What trains policy and critic, from what trains the policy."""
        return optimizer


class SharedTrunk(Critic):
    """A linear head on the policy's trunk: cheap, and its gradient reaches the trunk through ppo.vf_coef."""

    kind: Literal["shared"] = "shared"
    value_weight: ClassVar[float] = 0.1

    def build(self, policy: "Transformer", start: "Scorer | Transformer | None") -> "CriticModel":  # noqa: ARG002
        from llmrl.critic_models import ValueHead

        return ValueHead(policy.config.width)


class SeparateCritic(Critic):
    """A model of its own, which begins as the policy, or as the policy or reward model that `--critic` names.

    It costs a second forward and backward, and leaves the policy's trunk alone. Gradients of both are clipped together.
    """

    kind: Literal["separate"] = "separate"
    lr: float | None = Field(None, gt=0)
    """Its peak learning rate; train.lr if absent."""

    def build(self, policy: "Transformer", start: "Scorer | Transformer | None") -> "CriticModel":
        from llmrl.critic_models import OwnTrunk

        return OwnTrunk.of(start or policy)

    def optimizer(self, optimizer: Optimizer) -> Optimizer:
        return optimizer if self.lr is None else CriticRate(inner=optimizer, lr=self.lr)


AnyCritic = Annotated[Critic, part("llmrl.critic", shared=SharedTrunk, separate=SeparateCritic)]


class CriticRate(Optimizer):
    """An optimizer in which the weights below `critic` have a rate of their own."""

    kind: Literal["critic_rate"] = "critic_rate"
    inner: AnyOptimizer
    """What is done with the gradients."""
    lr: float
    """Peak rate of the critic."""

    def build(self, model: "nn.Module", lr: float) -> "torch.optim.Optimizer":
        optimizer = self.inner.build(model, lr)
        critics = {id(weight) for name, weight in model.named_parameters() if name.startswith("critic.")}
        for group in list(optimizer.param_groups):
            mine = [weight for weight in group["params"] if id(weight) in critics]
            group["params"] = [weight for weight in group["params"] if id(weight) not in critics]
            if mine:
                optimizer.add_param_group({**group, "params": mine, "lr": self.lr, "initial_lr": self.lr})
        return optimizer
