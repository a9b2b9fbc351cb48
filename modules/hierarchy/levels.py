"""What a level above has learnt: its states, its macro-actions, and what they lead to."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import log, pi
from typing import NamedTuple

from torch import Tensor, nn

from modules.distance import GlanceQuasimetric, Quasimetric, WaveQuasimetric
from modules.dynamics import GlanceDynamics, VectorDynamics, WaveDynamics
from modules.latents import DiscreteLatent, GaussianLatent, NoLatent, SparseLatent
from modules.layers import mlp
from modules.types import WIDTH, Distance, UnusableInput, require
from modules.world_model import WorldModel


class Macros(NamedTuple):
    """The macro-actions that life contains in some state, as normal numbers `[..., M]` each."""

    mean: Tensor
    scale: Tensor

    def surprise(self, macro: Tensor) -> Tensor:
        """Nats, mean over M: how far beyond what life contains these are, `[...]`."""
        off = (macro - self.mean) / self.scale
        return ((off.square() + log(2 * pi)) / 2 + self.scale.log()).mean(-1)


class InStrides(nn.Module):
    """The distance of the critic, which knows states of the lowest level and counts in steps of the
    body, told in strides of a level that shares them: nothing of it is learnt again."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Has no settings."""

    def __init__(self, steps: Distance, span: int) -> None:
        super().__init__()
        self.steps, self.span = steps, span

    def forward(self, state: Tensor, goal: Tensor) -> Tensor:
        """States `[..., D]`, goals `[..., D]`, broadcast -> strides still to go `[...]`."""
        return self.steps.between(self.steps.embed(state), self.steps.embed(goal)) / self.span


class UpperLevel(nn.Module):
    """One level above another: a state u = lift(s), a macro-action m = chunk(a_1 .. a_k) that
    stands for k actions of the level below, a world model of what they lead to, a prior p(m | u) of
    those that life contains, and a distance in strides (H-JEPA; hierarchical world models)."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        size: int = 0
        """Numbers of its own state; 0: it shares that of the level below."""
        macro: int = 4
        """Numbers of a macro-action, M."""
        hidden: int = 256
        dynamics: VectorDynamics.Config | WaveDynamics.Config | GlanceDynamics.Config = field(
            default_factory=WaveDynamics.Config
        )
        latent: (
            NoLatent.Config | GaussianLatent.Config | SparseLatent.Config | DiscreteLatent.Config
        ) = field(default_factory=NoLatent.Config)
        """What can't be known of where a stride leads."""
        distance: (
            Quasimetric.Config | WaveQuasimetric.Config | GlanceQuasimetric.Config
            | InStrides.Config
        ) = field(default_factory=WaveQuasimetric.Config)  # fmt: skip

        def __post_init__(self) -> None:
            require(self, size=(0, 65_536), macro=WIDTH, hidden=WIDTH)

        def build(
            self, below: int, action_dim: int, stride: int, span: int, steps: Distance | None
        ) -> UpperLevel:
            """Above states of so many numbers and actions of so many; `span` steps of the body are
            one of its strides, and the critic tells `steps` to go, where there is one."""
            size = self.size or below
            if not isinstance(self.distance, InStrides.Config):
                distance: nn.Module = self.distance.build((size, 1, 1))
            elif steps is None or self.size:
                raise UnusableInput(
                    "hierarchy.level.distance InStrides is the critic's, of states of the lowest "
                    f"level; there must be a critic, and level.size {self.size} must be 0"
                )
            else:
                distance = InStrides(steps, span)
            return UpperLevel(self, below, action_dim, stride, distance)

    def __init__(
        self, config: Config, below: int, action_dim: int, stride: int, distance: nn.Module
    ) -> None:
        super().__init__()
        self.size, self.macro, self.stride = config.size or below, config.macro, stride
        self.lift = mlp(below, config.hidden, self.size) if config.size else nn.Identity()
        self.chunk = nn.Sequential(mlp(stride * action_dim, config.hidden, self.macro), nn.Tanh())
        within = WorldModel.Config(dynamics=config.dynamics, latent=config.latent)
        self.model = within.build((self.size, 1, 1), self.macro, 0)
        self.distance = distance
        self.ways = mlp(self.size, config.hidden, 2 * self.macro)

    def macros(self, state: Tensor) -> Macros:
        """Those that life contains in states `[..., D]`."""
        mean, free = self.ways(state).chunk(2, -1)
        return Macros(mean.tanh(), nn.functional.softplus(free) + 1e-2)

    def chunks(self, actions: Tensor) -> Tensor:
        """Actions of the level below `[..., T * stride, A]` -> macro-actions `[..., T, M]`."""
        return self.chunk(actions.unflatten(-2, (-1, self.stride)).flatten(-2))
