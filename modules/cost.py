"""Cost: how much a state hurts. C(s) = sum_i u_i IC_i(s) + sum_j v_j TC_j(s) (LeCun 2022, 4.3).

Intrinsic costs are functions: they have no parameters, so nothing can train them. The critics are
modules and learn the intrinsic cost still to come: the number of steps to a goal, and for every
drive (`drives.py`) what it will cost in the long run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from modules.distance import GlanceQuasimetric, MapQuasimetric, Quasimetric, WaveQuasimetric
from modules.drives import Drives
from modules.intrinsic import INTRINSIC
from modules.layers import InUnits, Judges, sharp
from modules.types import (
    FRACTION,
    WIDTH,
    BadSetting,
    Energy,
    Focus,
    Rollout,
    Shape,
    UnusableInput,
    require,
)

Doubt = Callable[[Tensor, Tensor], Tensor]
"""States `[..., D]`, actions `[..., A]` -> how little is known of what follows, `[...]`."""


class Critic(nn.Module):
    """Steps still to go, averaged over an imagined path."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        distance: (
            Quasimetric.Config
            | WaveQuasimetric.Config
            | GlanceQuasimetric.Config
            | MapQuasimetric.Config
        ) = field(default_factory=Quasimetric.Config)

        def build(self, shape: Shape) -> Critic:
            return Critic(self.distance.build(shape))

    def __init__(self, distance: Quasimetric) -> None:
        super().__init__()
        self.distance = distance

    def forward(self, rollout: Rollout, focus: Focus) -> Tensor:
        """`[B, P]`"""
        return self.distance(rollout.states[:, :, 1:], focus.goal[:, None, None]).mean(-1)


class NoCritic(nn.Module):
    """No foresight beyond the horizon: the ablation of the critic."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        def build(self, shape: Shape) -> NoCritic:
            return NoCritic()

    def forward(self, rollout: Rollout, focus: Focus) -> Tensor:
        return 0 * rollout.actions.sum((-2, -1))  # has a gradient, as every energy has


def _check_discount(config: Foresight.Config | NoForesight.Config) -> None:
    require(config, discount=FRACTION)
    if config.discount == 1:
        raise BadSetting("discount", config.discount, "from 0 to less than 1")


class Foresight(InUnits):
    """A critic for every drive: V(s) = sum_k gamma^k c_k, the discounted intrinsic cost that is
    still to come after state s, `[..., D]` -> `[..., W]` (LeCun 2022, 4.3; Sutton & Barto 2018,
    3.5). Of several that foresee it, the gloomiest is believed (clipped double Q-learning, Fujimoto
    et al. 2018).

    Where a constant part of the reward is taken away from every step (`InUnits.offset`), it is
    taken away from all that follows the end of an episode as well: `terminal`, `[W]`. So what is
    foreseen is the same but for a constant, and no policy is better or worse for it."""

    terminal: Tensor
    gamma: Tensor  # the discount as it is saved
    STILL = 0.1

    @dataclass(frozen=True, kw_only=True)
    class Config:
        hidden: int = 256
        discount: float = 0.97
        """gamma; 0: taken from the length of the episodes that were collected, when the critics
        begin to learn, and saved with their weights."""
        critics: int = 1
        """How many foresee the same."""
        norm: bool = False
        """LayerNorm in every hidden layer: what is foreseen of strange states stays within bounds
        (Ball et al. 2023)."""

        def __post_init__(self) -> None:
            require(self, hidden=WIDTH, critics=(1, 100))
            _check_discount(self)

        def build(self, shape: Shape, drives: int) -> Foresight:
            size, hidden, norm = prod(shape), self.hidden, self.norm
            judges = Judges(sharp(size, hidden, drives, norm) for _ in range(self.critics))
            return Foresight(judges, drives, self.discount)

    def __init__(self, layers: nn.Module, drives: int, discount: float) -> None:
        super().__init__(layers, drives)
        self.discount = discount
        self.from_episodes = not discount
        """Whether the discount is taken from the length of episodes."""
        self.register_buffer("terminal", torch.zeros(drives))
        self.register_buffer("gamma", torch.tensor(discount, dtype=torch.float64))

    def look_ahead(self, discount: float) -> None:
        """Takes a discount."""
        self.discount = discount
        self.gamma.fill_(discount)

    def end(self, shift: Tensor, mortal: bool) -> None:
        """Every step is dearer by `shift` `[W]`, so the end of an episode is by all that would have
        followed; `mortal`: episodes do end, and the unit must hold that."""
        self.terminal.copy_(shift / (1 - self.discount))
        if mortal:
            self.scale.copy_(torch.maximum(self.scale, self.STILL * self.terminal.abs()))

    def follow(self, grown: Tensor, shift: Tensor, mortal: bool) -> None:
        """The costs of a step are in other units, so many times larger `[W]`, and dearer by
        `shift`: what is foreseen changes by what that comes to, and by nothing else."""
        before, terminal = self.scale.clone(), self.terminal.clone()
        self.scale.mul_(grown)
        self.end(shift, mortal)
        self.mean.add_(self.terminal - terminal)
        self.rescale(self.scale / before)

    def shift(self) -> Tensor:
        """How much dearer every step is than the drives alone say, `[W]`."""
        return self.terminal * (1 - self.discount)

    def every(self, state: Tensor) -> Tensor:
        """What each critic foresees, `[K, ..., W]`."""
        return super().forward(state)

    def forward(self, state: Tensor) -> Tensor:
        return self.every(state).amax(0)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        """Weights of before 0.2 know neither; a discount that is a setting stays what it is."""
        for name, buffer in (("terminal", self.terminal), ("gamma", self.gamma)):
            state_dict.setdefault(f"{prefix}{name}", torch.zeros_like(buffer) + buffer)
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self.look_ahead(float(self.gamma) if self.from_episodes else self.discount)


class NoForesight(nn.Module):
    """No drive is foreseen beyond the horizon."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        discount: float = 0.97

        def __post_init__(self) -> None:
            _check_discount(self)

        def build(self, shape: Shape, drives: int) -> NoForesight:
            return NoForesight(self.discount)

    def __init__(self, discount: float) -> None:
        super().__init__()
        self.discount = discount

    def forward(self, state: Tensor) -> Tensor:
        return state[..., :0]


LIMIT_PRICE = 100.0
"""What exceeding a limit costs, per unit of its drive: more than anything else is worth."""


class Body(nn.Module):
    """What the drives make of an imagined future, and what the critics foresee at its end.

    The estimate is the mean over k = 1..H of the k-step returns c_1 + .. + gamma^(k-1) c_k +
    gamma^k V(s_k): so the first actions matter to every term, and a short plan is as good a guess
    as a long one. A body that may die counts all that follows by its chance to be alive."""

    def __init__(self, drives: Drives, foresight: Foresight | NoForesight) -> None:
        super().__init__()
        self.drives, self.foresight = drives, foresight
        self.foreseen = drives.names if isinstance(foresight, Foresight) else ()

    def names(self) -> list[str]:
        """Every energy of the body: each drive, and each critic of one."""
        return [*self.drives.names, *(f"critic_{name}" for name in self.foreseen)]

    def centred(self, channels: int) -> Tensor:
        """`[I]` bool: the channels of which a constant part may be taken away. Without critics none
        may: nothing would say what it is worth that an episode goes on."""
        free = self.drives.centred(channels)
        return free if self.foreseen else torch.zeros_like(free)

    def forward(self, rollout: Rollout, limits: Mapping[str, float]) -> dict[str, Tensor]:
        """Unweighted energies by name, each `[B, P]`, and how far each limit is exceeded."""
        felt = self.drives(rollout.interoception)  # [B, P, H, W]
        horizon = rollout.actions.shape[2]
        step = torch.arange(horizon, device=felt.device, dtype=felt.dtype)
        fade = self.foresight.discount**step
        dearer = (
            self.foresight.shift()
            if isinstance(self.foresight, Foresight)
            else felt.new_zeros(felt.shape[-1])
        )
        before, after = self.drives.alive(rollout.interoception)  # [B, P, H]
        soon = torch.einsum("bphw,bph->bpw", felt, before * fade * (1 - step / horizon))
        late = self.foresight(rollout.states[:, :, 1:])
        late = torch.einsum("bphw,bph->bpw", late, after * fade * self.foresight.discount / horizon)
        if isinstance(self.foresight, Foresight):
            ending = (before - after) * fade * self.foresight.discount * (1 - step / horizon)
            late = late + ending.sum(-1, keepdim=True) * self.foresight.terminal
        return {
            **dict(zip(self.drives.names, soon.unbind(-1), strict=True)),
            **dict(zip((f"critic_{n}" for n in self.foreseen), late.unbind(-1), strict=True)),
            **{
                f"limit {name}": (before * (felt[..., column] - most).relu()).sum(-1)
                for name, limit in limits.items()
                for column in [self.drives.names.index(name)]
                for most in [limit + dearer[column]]
            },
        }


class Cost(nn.Module):
    """The weighted energies. The sum is for the optimiser, the names are for the reader."""

    def __init__(self, critic: Critic | NoCritic, body: Body, doubt: Doubt) -> None:
        super().__init__()
        self.critic, self.body, self.doubt = critic, body, doubt

    def energies(self) -> dict[str, Energy]:
        """Every energy of states and actions, by the name of its weight."""
        return {**INTRINSIC, "curiosity": self._curiosity, "critic": self.critic}

    def names(self) -> list[str]:
        """All that can have a weight."""
        return [*self.energies(), *self.body.names()]

    def check(self, weights: Mapping[str, float]) -> None:
        """Raises UnusableInput for weights that name no energy, or are negative or not finite."""
        names = self.names()
        for name, weight in weights.items():
            if name not in names:
                raise UnusableInput(f"no cost is called {name!r}; there are {', '.join(names)}")
            if not 0 <= weight < float("inf"):
                raise UnusableInput(f"the weight of {name!r} is {weight}; it must be 0 or more")
        if not any(weights.values()):
            raise UnusableInput(f"no cost has a weight, so nothing is wanted: weigh {names}")

    def forward(self, rollout: Rollout, focus: Focus) -> dict[str, Tensor]:
        """Weighted energies by name, each `[B, P]`; what has no weight is not computed."""
        energies = self.energies()
        wanted = {name: weight for name, weight in focus.weights.items() if weight}
        prices = {f"limit {name}": LIMIT_PRICE for name in focus.limits}
        bodily = {n: w for n, w in {**wanted, **prices}.items() if n not in energies}
        felt = self.body(rollout, focus.limits) if bodily else {}
        return {
            **{n: w * energies[n](rollout, focus) for n, w in wanted.items() if n in energies},
            **{name: weight * felt[name] for name, weight in bodily.items()},
        }

    def _curiosity(self, rollout: Rollout, focus: Focus) -> Tensor:
        """Minus the disagreement of the world model's ensemble, mean over the path; `[B, P]`
        (Plan2Explore, Sekar et al. 2020)."""
        return -self.doubt(rollout.states[:, :, :-1], rollout.actions).mean(-1)
