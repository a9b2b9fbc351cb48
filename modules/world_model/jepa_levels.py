"""What a level above has learnt: its states, its macro-actions, and what they lead to."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import log, pi
from typing import NamedTuple

from torch import Tensor, nn

from modules.cost.quasimetric import (
    FourierQuasimetricConfig,
    GlimpseQuasimetricConfig,
    QuasimetricConfig,
)
from modules.nets import silu_mlp
from modules.types import WIDTH, ConfigError, QuasimetricFns, validate_ranges
from modules.world_model.dynamics import (
    FourierDynamicsConfig,
    GlimpseDynamicsConfig,
    MLPDynamicsConfig,
)
from modules.world_model.jepa import WorldModelConfig
from modules.world_model.latents import (
    CategoricalLatentConfig,
    GaussianLatentConfig,
    NoLatentConfig,
    SparseLatentConfig,
)


class ActionPrior(NamedTuple):
    """The macro-actions that life contains in some state, as normal numbers `[..., M]` each."""

    mean: Tensor
    scale: Tensor

    def nll(self, macro_action: Tensor) -> Tensor:
        """Nats, mean over M: how far beyond what life contains these are, `[...]`."""
        off = (macro_action - self.mean) / self.scale
        return ((off.square() + log(2 * pi)) / 2 + self.scale.log()).mean(-1)


@dataclass(frozen=True, kw_only=True)
class SharedCriticConfig:
    """Has no settings."""


class SharedCritic(nn.Module):
    """The distance of the critic, which knows states of the lowest level and counts in steps of the
    body, told in strides of a level that shares them: nothing of it is learnt again."""

    def __init__(self, distance: QuasimetricFns, env_steps: int) -> None:
        super().__init__()
        self.distance, self.env_steps = distance, env_steps

    def forward(self, state: Tensor, goal: Tensor) -> Tensor:
        """States `[..., D]`, goals `[..., D]`, broadcast -> strides still to go `[...]`."""
        return (
            self.distance.from_embeddings(self.distance.embed(state), self.distance.embed(goal))
            / self.env_steps
        )


@dataclass(frozen=True, kw_only=True)
class JEPALevelConfig:
    state_dim: int = 0
    """Numbers of its own state; 0: it shares that of the level below."""
    macro_dim: int = 4
    """Numbers of a macro-action, M."""
    hidden: int = 256
    dynamics: MLPDynamicsConfig | FourierDynamicsConfig | GlimpseDynamicsConfig = field(
        default_factory=FourierDynamicsConfig
    )
    latent: NoLatentConfig | GaussianLatentConfig | SparseLatentConfig | CategoricalLatentConfig = (
        field(default_factory=NoLatentConfig)
    )
    """What can't be known of where a stride leads."""
    distance: (
        QuasimetricConfig | FourierQuasimetricConfig | GlimpseQuasimetricConfig
        | SharedCriticConfig
    ) = field(default_factory=FourierQuasimetricConfig)  # fmt: skip

    def __post_init__(self) -> None:
        validate_ranges(self, state_dim=(0, 65_536), macro_dim=WIDTH, hidden=WIDTH)

    def build(
        self,
        state_dim_below: int,
        action_dim: int,
        num_steps: int,
        env_steps: int,
        critic_distance: QuasimetricFns | None,
    ) -> JEPALevel:
        """Above states of so many numbers and actions of so many; `env_steps` steps of the body are
        one of its strides, and the critic tells `steps` to go, where there is one."""
        state_dim = self.state_dim or state_dim_below
        if not isinstance(self.distance, SharedCriticConfig):
            distance: nn.Module = self.distance.build((state_dim, 1, 1))
        elif critic_distance is None or self.state_dim:
            raise ConfigError(
                "hierarchy.level.distance SharedCritic is the critic's, of states of the lowest "
                f"level; there must be a critic, and level.size {self.state_dim} must be 0"
            )
        else:
            distance = SharedCritic(critic_distance, env_steps)
        return JEPALevel(self, state_dim_below, action_dim, num_steps, distance)


class JEPALevel(nn.Module):
    """One level above another: a state u = lift(s), a macro-action m = chunk(a_1 .. a_k) that
    stands for k actions of the level below, a world model of what they lead to, a prior p(m | u) of
    those that life contains, and a distance in strides (H-JEPA; hierarchical world models)."""

    def __init__(
        self,
        config: JEPALevelConfig,
        state_dim_below: int,
        action_dim: int,
        num_steps: int,
        distance: nn.Module,
    ) -> None:
        super().__init__()
        self.state_dim, self.macro_dim, self.num_steps = (
            config.state_dim or state_dim_below,
            config.macro_dim,
            num_steps,
        )
        self.state_encoder = (
            silu_mlp(state_dim_below, config.hidden, self.state_dim)
            if config.state_dim
            else nn.Identity()
        )
        self.action_encoder = nn.Sequential(
            silu_mlp(num_steps * action_dim, config.hidden, self.macro_dim), nn.Tanh()
        )
        world_model = WorldModelConfig(dynamics=config.dynamics, latent=config.latent)
        self.world_model = world_model.build((self.state_dim, 1, 1), self.macro_dim, 0)
        self.distance = distance
        self.prior_head = silu_mlp(self.state_dim, config.hidden, 2 * self.macro_dim)

    def action_prior(self, state: Tensor) -> ActionPrior:
        """Those that life contains in states `[..., D]`."""
        mean, raw_scale = self.prior_head(state).chunk(2, -1)
        return ActionPrior(mean.tanh(), nn.functional.softplus(raw_scale) + 1e-2)

    def encode_actions(self, actions: Tensor) -> Tensor:
        """Actions of the level below `[..., T * stride, A]` -> macro-actions `[..., T, M]`."""
        return self.action_encoder(actions.unflatten(-2, (-1, self.num_steps)).flatten(-2))
