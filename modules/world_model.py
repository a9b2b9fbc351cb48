"""World model: what would happen if. A joint-embedding predictive architecture (LeCun 2022, 4.4):
it predicts states, never observations.

Here is the finest level, one step of the body at a time; those above it, which stride over many,
are in `hierarchy/`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import repeat
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from modules.dynamics import (
    GlanceDynamics,
    MapDynamics,
    VectorDynamics,
    WaveDynamics,
    unrolled,
)
from modules.latents import DiscreteLatent, GaussianLatent, Latent, NoLatent, SparseLatent
from modules.layers import InUnits, mlp, sharp
from modules.types import WIDTH, Decide, Rollout, Shape, require


class Level(nn.Module):
    """One time scale: a dynamics, and what can't be known of its next state."""

    def __init__(self, dynamics: nn.Module, latent: Latent) -> None:
        super().__init__()
        self.dynamics, self.latent = dynamics, latent

    def unroll(self, state: Tensor, acting: Tensor) -> Tensor:
        """`[N, D]`, `[N, H, A + Z]` -> `[N, H + 1, D]`"""
        return unrolled(self.dynamics, state, acting)

    def step(self, state: Tensor, action: Tensor, chance: Tensor | None = None) -> Step:
        """`[N, D]`, `[N, A]` -> the next state, the likeliest or the one of `chance` `[N, U]`."""
        if chance is None:
            acting = self.latent.likeliest(state, action)
        else:
            acting = self.latent.draw(state, action, chance)
        return Step(self.dynamics(state, acting), acting)


class Step(NamedTuple):
    state: Tensor  # [N, D]
    acting: Tensor  # [N, A + Z]


class Feeling(InUnits):
    """What the body feels in a state: interoception read off the latent state. It is what an
    intrinsic cost can be hard-wired to (LeCun 2022, 3.2 and 4.3)."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        hidden: int = 128

        def __post_init__(self) -> None:
            require(self, hidden=WIDTH)

        def build(self, shape: Shape, channels: int, action_dim: int) -> Feeling:
            return Feeling(sharp(prod(shape), self.hidden, channels), channels)

    def of(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        """What is felt of a step, `[..., D]`, `[..., A]`, `[..., D]` -> `[..., I]`: where it ended
        says it all."""
        return self(next_state)


class StepFeeling(InUnits):
    """What the body feels of a step: of where it led from where, and of what was done, as rewards
    of most worlds are."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        hidden: int = 128

        def __post_init__(self) -> None:
            require(self, hidden=WIDTH)

        def build(self, shape: Shape, channels: int, action_dim: int) -> StepFeeling:
            size = 2 * prod(shape) + action_dim
            return StepFeeling(sharp(size, self.hidden, channels), channels)

    def of(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        """`[..., D]`, `[..., A]`, `[..., D]` -> `[..., I]`"""
        return self(torch.cat([state, action, next_state], -1))


class Numb(nn.Module):
    """Feels nothing: for minds whose costs are about states alone."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        def build(self, shape: Shape, channels: int, action_dim: int) -> Numb:
            return Numb()

    def adapt(self, felt: Tensor, centred: Tensor | None = None) -> None:
        """Has no units."""

    def renew(self, felt: Tensor, centred: Tensor) -> Tensor:
        """Has no units."""
        return torch.ones(felt.shape[-1], device=felt.device)

    def strays(self, felt: Tensor) -> Tensor:
        """Has no units."""
        return torch.zeros((), dtype=torch.bool)

    def relative(self, felt: Tensor) -> Tensor:
        return felt.to(torch.get_default_dtype())

    def unit(self) -> Tensor:
        return torch.ones(0)

    def of(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        return state[..., :0]


class Ensemble(nn.Module):
    """Several small predictors of the next state, alike but for their beginnings: where they
    disagree, the world is not known yet (Pathak et al. 2019; Plan2Explore, Sekar et al. 2020)."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        members: int = 5
        hidden: int = 64

        def __post_init__(self) -> None:
            require(self, members=(2, 100), hidden=WIDTH)

        def build(self, shape: Shape, action_dim: int) -> Ensemble:
            size = prod(shape)
            return Ensemble(
                [mlp(size + action_dim, self.hidden, size) for _ in range(self.members)]
            )

    def __init__(self, members: list[nn.Sequential]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        """`[..., D]`, `[..., A]` -> what each expects to change, `[members, ..., D]`."""
        both = torch.cat([state, action], -1)
        return torch.stack([member(both) for member in self.members])

    def disagreement(self, state: Tensor, action: Tensor) -> Tensor:
        """Variance over the members, mean over the dimensions of the state; `[...]`."""
        return self(state, action).var(0).mean(-1)


class Certain(nn.Module):
    """Never in doubt: a mind without an ensemble."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        def build(self, shape: Shape, action_dim: int) -> Certain:
            return Certain()

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        """No member expects anything, `[0, ..., D]`."""
        return state.new_empty(0, *state.shape)

    def disagreement(self, state: Tensor, action: Tensor) -> Tensor:
        return 0 * action.sum(-1)  # has a gradient, as every energy has


class WorldModel(nn.Module):
    """All levels, finest first; what is felt in a state; and how far predictions can be trusted."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        dynamics: (
            VectorDynamics.Config | WaveDynamics.Config | GlanceDynamics.Config | MapDynamics.Config
        )
        latent: (
            NoLatent.Config | GaussianLatent.Config | SparseLatent.Config | DiscreteLatent.Config
        ) = field(default_factory=NoLatent.Config)
        """What can't be known of the next state."""
        feeling: Feeling.Config | StepFeeling.Config | Numb.Config = field(
            default_factory=Numb.Config
        )
        doubt: Ensemble.Config | Certain.Config = field(default_factory=Certain.Config)

        def build(self, shape: Shape, action_dim: int, channels: int) -> WorldModel:
            latent = self.latent.build(prod(shape), action_dim)
            dynamics = self.dynamics.build(shape, action_dim, latent.size)
            return WorldModel(
                [Level(dynamics, latent)],
                self.feeling.build(shape, channels, action_dim),
                self.doubt.build(shape, action_dim),
                action_dim,
            )

    def __init__(
        self, levels: list[Level], feeling: Feeling | StepFeeling | Numb, doubt: Ensemble | Certain,
        action_dim: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.action_dim = action_dim
        self.levels = nn.ModuleList(levels)
        self.feeling, self.doubt = feeling, doubt

    def level(self, index: int) -> Level:
        level = self.levels[index]
        assert isinstance(level, Level)
        return level

    def imagine(self, state: Tensor, actions: Tensor, chance: Tensor | None = None) -> Rollout:
        """`[B, D]`, `[B, P, H, A]` -> P futures at the finest level, the likeliest; or P * K, K of
        each proposal one after the other, where there is chance `[K, H, U]`."""
        return self._live(state, actions, chance, lambda states, others: others)

    def pursue(
        self, state: Tensor, decide: Decide, others: Tensor, chance: Tensor | None = None
    ) -> Rollout:
        """`[B, D]`, others `[B, P, H, A]` -> 1 + P futures at the finest level, K of each where
        there is chance; in the first it is decided in every state what to do there."""
        alike = 1 if chance is None else len(chance)

        def choose(states: Tensor, others: Tensor) -> Tensor:
            """`[B, 1 + P * K, D]`, `[B, P * K, A]` -> `[B, (1 + P) * K, A]`"""
            own = decide(states[:, :alike].flatten(0, 1)).unflatten(0, (len(states), alike))
            return torch.cat([own, others], 1)

        return self._live(state, others, chance, choose, more=1)

    def _live(
        self, state: Tensor, actions: Tensor, chance: Tensor | None,
        choose: Callable[[Tensor, Tensor], Tensor], more: int = 0,
    ) -> Rollout:  # fmt: skip
        """Futures of actions, and `more` that are not told; what is done, is chosen step by step
        from the states by then."""
        level, count = self.level(0), actions.shape[1] + more
        if chance is not None:
            actions = actions.repeat_interleave(len(chance), 1)
            # [H, B * (P + more) * K, U]
            draws: Any = chance.repeat(len(state) * count, 1, 1).unbind(1)
            count *= len(chance)
        else:
            draws = repeat(None)
        shape = (len(state), count)
        states, acted = [state[:, None].expand(-1, count, -1)], []
        for others, draw in zip(actions.unbind(2), draws, strict=False):
            action = choose(states[-1], others)
            ahead = level.step(states[-1].flatten(0, 1), action.flatten(0, 1), draw)
            states.append(ahead.state.unflatten(0, shape))
            acted.append(ahead.acting.unflatten(0, shape))
        path, acting = torch.stack(states, 2), torch.stack(acted, 2)
        actions, latents = acting.tensor_split([self.action_dim], -1)
        felt = self.feeling.of(path[:, :, :-1], actions, path[:, :, 1:])
        return Rollout(path, actions, latents, felt)

    def pace(self, state: Tensor) -> Tensor:
        """How far a full step leads in representation space, mean over both ways of every
        dimension of the action; `[B, D]` -> `[B]`."""
        size = self.action_dim
        ways = torch.eye(size, dtype=state.dtype, device=state.device)
        steps = torch.cat([ways, -ways])[None, :, None].expand(len(state), -1, -1, -1)
        ahead = self.imagine(state, steps).states
        return (ahead[:, :, 1] - ahead[:, :, 0]).norm(dim=-1).mean(1)
