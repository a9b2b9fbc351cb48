"""World model: what would happen if. A joint-embedding predictive architecture (LeCun 2022, 4.4):
it predicts states, never observations.

The model is a list of levels, finest first. Each level has its own dynamics and its own stride:
how many steps of the level below one of its steps spans.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor, nn

from modules.dynamics import MapDynamics, VectorDynamics, WaveDynamics
from modules.layers import InUnits, mlp, sharp
from modules.types import Decide, Rollout, Shape, require


class Level(nn.Module):
    """One time scale: a dynamics, and how many steps of the level below it strides over."""

    def __init__(self, dynamics: nn.Module, stride: int = 1) -> None:
        super().__init__()
        self.dynamics, self.stride = dynamics, stride

    def unroll(self, state: Tensor, actions: Tensor) -> Tensor:
        """`[N, D]`, `[N, H, A]` -> `[N, H + 1, D]`: imagining H steps is stepping H times."""
        states = [state]
        for action in actions.unbind(1):
            states.append(self.dynamics(states[-1], action))
        return torch.stack(states, 1)


class Feeling(InUnits):
    """What the body feels in a state: interoception read off the latent state. It is what an
    intrinsic cost can be hard-wired to (LeCun 2022, 3.2 and 4.3)."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        hidden: int = 128

        def __post_init__(self) -> None:
            require(self, hidden=1)

        def build(self, shape: Shape, channels: int) -> Feeling:
            return Feeling(sharp(prod(shape), self.hidden, channels), channels)


class Numb(nn.Module):
    """Feels nothing: for minds whose costs are about states alone."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        def build(self, shape: Shape, channels: int) -> Numb:
            return Numb()

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.ones(0)

    def adapt(self, felt: Tensor) -> None:
        """Has no units."""

    def forward(self, state: Tensor) -> Tensor:
        return state[..., :0]


class Ensemble(nn.Module):
    """Several small predictors of the next state, alike but for their beginnings: where they
    disagree, the world is not known yet (Pathak et al. 2019; Plan2Explore, Sekar et al. 2020)."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        members: int = 5
        hidden: int = 64

        def __post_init__(self) -> None:
            require(self, members=2, hidden=1)

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
        dynamics: VectorDynamics.Config | WaveDynamics.Config | MapDynamics.Config
        feeling: Feeling.Config | Numb.Config = field(default_factory=Numb.Config)
        doubt: Ensemble.Config | Certain.Config = field(default_factory=Certain.Config)

        def build(self, shape: Shape, action_dim: int, channels: int) -> WorldModel:
            return WorldModel(
                [Level(self.dynamics.build(shape, action_dim))],
                self.feeling.build(shape, channels),
                self.doubt.build(shape, action_dim),
                action_dim,
            )

    def __init__(
        self, levels: list[Level], feeling: Feeling | Numb, doubt: Ensemble | Certain,
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

    def imagine(self, state: Tensor, actions: Tensor) -> Rollout:
        """`[B, D]`, `[B, P, H, A]` -> the futures at the finest level."""
        batch, proposals = actions.shape[:2]
        start = state[:, None].expand(-1, proposals, -1).flatten(0, 1)  # [B * P, D]
        states = self.level(0).unroll(start, actions.flatten(0, 1))
        states = states.unflatten(0, (batch, proposals))
        return Rollout(states, actions, actions[..., :0], self.feeling(states[:, :, 1:]))

    def pursue(self, state: Tensor, decide: Decide, others: Tensor) -> Rollout:
        """`[B, D]`, others `[B, P, H, A]` -> 1 + P futures at the finest level; in the first it is
        decided in every state what to do there."""
        futures = state[:, None].expand(-1, 1 + others.shape[1], -1)  # [B, 1 + P, D]
        shape, states, actions = futures.shape[:2], [futures], []
        for other in others.unbind(2):
            own = decide(states[-1][:, 0])[:, None]
            actions.append(torch.cat([own, other], 1))
            ahead = self.level(0).dynamics(states[-1].flatten(0, 1), actions[-1].flatten(0, 1))
            states.append(ahead.unflatten(0, shape))
        path, acted = torch.stack(states, 2), torch.stack(actions, 2)
        return Rollout(path, acted, acted[..., :0], self.feeling(path[:, :, 1:]))

    def pace(self, state: Tensor) -> Tensor:
        """How far a full step leads in representation space, mean over both ways of every
        dimension of the action; `[B, D]` -> `[B]`."""
        size = self.action_dim
        ways = torch.eye(size, dtype=state.dtype, device=state.device)
        steps = torch.cat([ways, -ways])[None, :, None].expand(len(state), -1, -1, -1)
        ahead = self.imagine(state, steps).states
        return (ahead[:, :, 1] - ahead[:, :, 0]).norm(dim=-1).mean(1)
