"""Cost: how much a state hurts. C(s) = sum_i u_i IC_i(s) + sum_j v_j TC_j(s) (LeCun 2022, 4.3).

Intrinsic costs are functions: they have no parameters, so nothing can train them. The critics are
modules and learn the intrinsic cost still to come: the number of steps to a goal, and for every
drive (`drives.py`) what it will cost in the long run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from modules.cost.drives import Drives
from modules.cost.intrinsic import INTRINSIC
from modules.cost.quasimetric import (
    ConvQuasimetricConfig,
    FourierQuasimetricConfig,
    GlimpseQuasimetricConfig,
    Quasimetric,
    QuasimetricConfig,
)
from modules.nets import EnsembleHead, StandardizedHead, relu_mlp
from modules.types import (
    FRACTION,
    WIDTH,
    BadSetting,
    ConfigError,
    CostFn,
    MapShape,
    Rollout,
    TaskContext,
    validate_ranges,
)

Uncertainty = Callable[[Tensor, Tensor], Tensor]
"""States `[..., D]`, actions `[..., A]` -> how little is known of what follows, `[...]`."""


@dataclass(frozen=True, kw_only=True)
class GoalCriticConfig:
    distance: (
        QuasimetricConfig
        | FourierQuasimetricConfig
        | GlimpseQuasimetricConfig
        | ConvQuasimetricConfig
    ) = field(default_factory=QuasimetricConfig)

    def build(self, shape: MapShape) -> GoalCritic:
        return GoalCritic(self.distance.build(shape))


class GoalCritic(nn.Module):
    """Steps still to go, averaged over an imagined path."""

    def __init__(self, distance: Quasimetric) -> None:
        super().__init__()
        self.distance = distance

    def forward(self, rollout: Rollout, context: TaskContext) -> Tensor:
        """`[B, P]`"""
        return self.distance(rollout.states[:, :, 1:], context.goal[:, None, None]).mean(-1)


@dataclass(frozen=True, kw_only=True)
class NoGoalCriticConfig:
    def build(self, shape: MapShape) -> NoGoalCritic:
        return NoGoalCritic()


class NoGoalCritic(nn.Module):
    """No foresight beyond the horizon: the ablation of the critic."""

    def forward(self, rollout: Rollout, context: TaskContext) -> Tensor:
        return 0 * rollout.actions.sum((-2, -1))  # has a gradient, as every energy has


def _check_discount(config: ValueCriticsConfig | NoValueCriticsConfig) -> None:
    validate_ranges(config, discount=FRACTION)
    if config.discount == 1:
        raise BadSetting("discount", config.discount, "from 0 to less than 1")


@dataclass(frozen=True, kw_only=True)
class ValueCriticsConfig:
    hidden: int = 256
    discount: float = 0.97
    """gamma; 0: taken from the length of the episodes that were collected, when the critics
        begin to learn, and saved with their weights."""
    num_critics: int = 1
    """How many foresee the same."""
    norm: bool = False
    """LayerNorm in every hidden layer: what is foreseen of strange states stays within bounds
        (Ball et al. 2023)."""

    def __post_init__(self) -> None:
        validate_ranges(self, hidden=WIDTH, num_critics=(1, 100))
        _check_discount(self)

    def build(self, shape: MapShape, drives: int) -> ValueCritics:
        size, hidden, norm = prod(shape), self.hidden, self.norm
        critics = EnsembleHead(
            relu_mlp(size, hidden, drives, norm) for _ in range(self.num_critics)
        )
        return ValueCritics(critics, drives, self.discount)


class ValueCritics(StandardizedHead):
    """A critic for every drive: V(s) = sum_k gamma^k c_k, the discounted intrinsic cost that is
    still to come after state s, `[..., D]` -> `[..., W]` (LeCun 2022, 4.3; Sutton & Barto 2018,
    3.5). Of several that foresee it, the gloomiest is believed (clipped double Q-learning, Fujimoto
    et al. 2018).

    Where a constant part of the reward is taken away from every step (`InUnits.offset`), it is
    taken away from all that follows the end of an episode as well: `terminal`, `[W]`. So what is
    foreseen is the same but for a constant, and no policy is better or worse for it."""

    terminal: Tensor
    gamma: Tensor  # the discount as it is saved
    CONSTANT_UNIT = 0.1

    def __init__(self, layers: nn.Module, drives: int, discount: float) -> None:
        super().__init__(layers, drives)
        self.discount = discount
        self.discount_from_episodes = not discount
        """Whether the discount is taken from the length of episodes."""
        self.register_buffer("terminal", torch.zeros(drives))
        self.register_buffer("gamma", torch.tensor(discount, dtype=torch.float64))

    def set_discount(self, discount: float) -> None:
        """Takes a discount."""
        self.discount = discount
        self.gamma.fill_(discount)

    def set_terminal_value(self, step_shift: Tensor, can_terminate: bool) -> None:
        """Every step is dearer by `step_shift` `[W]`, so the end of an episode is by all that would have
        followed; `can_terminate`: episodes do end, and the unit must hold that."""
        self.terminal.copy_(step_shift / (1 - self.discount))
        if can_terminate:
            self.scale.copy_(torch.maximum(self.scale, self.CONSTANT_UNIT * self.terminal.abs()))

    def rescale_costs(self, growth: Tensor, step_shift: Tensor, can_terminate: bool) -> None:
        """The costs of a step are in other units, so many times larger `[W]`, and dearer by
        `step_shift`: what is foreseen changes by what that comes to, and by nothing else."""
        old_scale, old_terminal = self.scale.clone(), self.terminal.clone()
        self.scale.mul_(growth)
        self.set_terminal_value(step_shift, can_terminate)
        self.mean.add_(self.terminal - old_terminal)
        self.rescale(self.scale / old_scale)

    def step_shift(self) -> Tensor:
        """How much dearer every step is than the drives alone say, `[W]`."""
        return self.terminal * (1 - self.discount)

    def all_values(self, state: Tensor) -> Tensor:
        """What each critic foresees, `[K, ..., W]`."""
        return super().forward(state)

    def forward(self, state: Tensor) -> Tensor:
        return self.all_values(state).amax(0)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        """Weights of before 0.2 know neither; a discount that is a setting stays what it is."""
        for name, buffer in (("terminal", self.terminal), ("gamma", self.gamma)):
            state_dict.setdefault(f"{prefix}{name}", torch.zeros_like(buffer) + buffer)
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self.set_discount(float(self.gamma) if self.discount_from_episodes else self.discount)


@dataclass(frozen=True, kw_only=True)
class NoValueCriticsConfig:
    discount: float = 0.97

    def __post_init__(self) -> None:
        _check_discount(self)

    def build(self, shape: MapShape, drives: int) -> NoValueCritics:
        return NoValueCritics(self.discount)


class NoValueCritics(nn.Module):
    """No drive is foreseen beyond the horizon."""

    def __init__(self, discount: float) -> None:
        super().__init__()
        self.discount = discount

    def forward(self, state: Tensor) -> Tensor:
        return state[..., :0]


CONSTRAINT_PENALTY = 100.0
"""What exceeding a limit costs, per unit of its drive: more than anything else is worth."""


class InteroceptiveCost(nn.Module):
    """What the drives make of an imagined future, and what the critics foresee at its end.

    The estimate is the mean over k = 1..H of the k-step returns c_1 + .. + gamma^(k-1) c_k +
    gamma^k V(s_k): so the first actions matter to every term, and a short plan is as good a guess
    as a long one. A body that may die counts all that follows by its chance to be alive."""

    def __init__(self, drives: Drives, value_critics: ValueCritics | NoValueCritics) -> None:
        super().__init__()
        self.drives, self.value_critics = drives, value_critics
        self.drives_with_critic = drives.names if isinstance(value_critics, ValueCritics) else ()

    def names(self) -> list[str]:
        """Every energy of the body: each drive, and each critic of one."""
        return [*self.drives.names, *(f"critic_{name}" for name in self.drives_with_critic)]

    def centred(self, channels: int) -> Tensor:
        """`[I]` bool: the channels of which a constant part may be taken away. Without critics none
        may: nothing would say what it is worth that an episode goes on."""
        allowed = self.drives.centred(channels)
        return allowed if self.drives_with_critic else torch.zeros_like(allowed)

    def forward(self, rollout: Rollout, limits: Mapping[str, float]) -> dict[str, Tensor]:
        """Unweighted energies by name, each `[B, P]`, and how far each limit is exceeded."""
        step_costs = self.drives(rollout.interoception)  # [B, P, H, W]
        horizon = rollout.actions.shape[2]
        step = torch.arange(horizon, device=step_costs.device, dtype=step_costs.dtype)
        discounts = self.value_critics.discount**step
        step_shift = (
            self.value_critics.step_shift()
            if isinstance(self.value_critics, ValueCritics)
            else step_costs.new_zeros(step_costs.shape[-1])
        )
        alive_before, alive_after = self.drives.survival(rollout.interoception)  # [B, P, H]
        immediate = torch.einsum(
            "bphw,bph->bpw", step_costs, alive_before * discounts * (1 - step / horizon)
        )
        bootstrap = self.value_critics(rollout.states[:, :, 1:])
        bootstrap = torch.einsum(
            "bphw,bph->bpw",
            bootstrap,
            alive_after * discounts * self.value_critics.discount / horizon,
        )
        if isinstance(self.value_critics, ValueCritics):
            termination = (
                (alive_before - alive_after)
                * discounts
                * self.value_critics.discount
                * (1 - step / horizon)
            )
            bootstrap = bootstrap + termination.sum(-1, keepdim=True) * self.value_critics.terminal
        return {
            **dict(zip(self.drives.names, immediate.unbind(-1), strict=True)),
            **dict(
                zip(
                    (f"critic_{n}" for n in self.drives_with_critic),
                    bootstrap.unbind(-1),
                    strict=True,
                )
            ),
            **{
                f"limit {name}": (alive_before * (step_costs[..., column] - maximum).relu()).sum(-1)
                for name, limit in limits.items()
                for column in [self.drives.names.index(name)]
                for maximum in [limit + step_shift[column]]
            },
        }


class Cost(nn.Module):
    """The weighted energies. The sum is for the optimiser, the names are for the reader."""

    def __init__(
        self,
        goal_critic: GoalCritic | NoGoalCritic,
        interoceptive_cost: InteroceptiveCost,
        uncertainty: Uncertainty,
        custom: Mapping[str, CostFn] = MappingProxyType({}),
    ) -> None:
        """`custom`: further intrinsic costs by name; ConfigError for a name that is taken."""
        super().__init__()
        self.custom = dict(custom)
        self.goal_critic, self.interoceptive_cost, self.uncertainty = (
            goal_critic,
            interoceptive_cost,
            uncertainty,
        )
        for name in custom:
            if name in self._standard() or name in interoceptive_cost.names():
                raise ConfigError(f"a cost is called {name!r} already; give yours another name")

    def _standard(self) -> dict[str, CostFn]:
        return {**INTRINSIC, "curiosity": self._curiosity, "critic": self.goal_critic}

    def cost_functions(self) -> dict[str, CostFn]:
        """Every energy of states and actions, by the name of its weight."""
        return {**self._standard(), **self.custom}

    def names(self) -> list[str]:
        """All that can have a weight."""
        return [*self.cost_functions(), *self.interoceptive_cost.names()]

    def validate_weights(self, weights: Mapping[str, float]) -> None:
        """Raises ConfigError for weights that name no energy, or are negative or not finite."""
        names = self.names()
        for name, weight in weights.items():
            if name not in names:
                raise ConfigError(f"no cost is called {name!r}; there are {', '.join(names)}")
            if not 0 <= weight < float("inf"):
                raise ConfigError(f"the weight of {name!r} is {weight}; it must be 0 or more")
        if not any(weights.values()):
            raise ConfigError(f"no cost has a weight, so nothing is wanted: weigh {names}")

    def forward(self, rollout: Rollout, context: TaskContext) -> dict[str, Tensor]:
        """Weighted energies by name, each `[B, P]`; what has no weight is not computed."""
        functions = self.cost_functions()
        weights = {name: weight for name, weight in context.weights.items() if weight}
        penalties = {f"limit {name}": CONSTRAINT_PENALTY for name in context.limits}
        interoceptive_weights = {
            n: w for n, w in {**weights, **penalties}.items() if n not in functions
        }
        interoceptive = (
            self.interoceptive_cost(rollout, context.limits) if interoceptive_weights else {}
        )
        return {
            **{n: w * functions[n](rollout, context) for n, w in weights.items() if n in functions},
            **{
                name: weight * interoceptive[name] for name, weight in interoceptive_weights.items()
            },
        }

    def _curiosity(self, rollout: Rollout, context: TaskContext) -> Tensor:
        """Minus the disagreement of the world model's ensemble, mean over the path; `[B, P]`
        (Plan2Explore, Sekar et al. 2020)."""
        return -self.uncertainty(rollout.states[:, :, :-1], rollout.actions).mean(-1)
