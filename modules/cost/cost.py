"""Cost: the energy of a state, C(s) = sum_i u_i IC_i(s) + sum_j v_j TC_j(s) (LeCun 2022, 3.2).

Intrinsic costs IC are differentiable functions without parameters, so nothing can train them: first
those of states and actions, then the drives, costs of interoceptive signals, which the world model
learns to predict. The critics, the trainable costs TC, predict future intrinsic cost: the number of
steps to a goal, and for every drive its discounted sum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from math import prod
from types import MappingProxyType
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from modules.cost.quasimetric import (
    ConvQuasimetricConfig,
    FourierQuasimetricConfig,
    GlimpseQuasimetricConfig,
    Quasimetric,
    QuasimetricConfig,
)
from modules.nets import (
    EnsembleHead,
    PathEnergy,
    StandardizedHead,
    after_first,
    differentiable,
    relu_mlp,
)
from modules.types import (
    CONTINUE,
    FRACTION,
    WEIGHT,
    WIDTH,
    BadSetting,
    ConfigError,
    CostByHand,
    CostFn,
    MapShape,
    Rollout,
    Settings,
    TaskContext,
)


@dataclass(frozen=True, kw_only=True)
class IntrinsicCostConfig(Settings):
    """Settings of an intrinsic cost of the user's own, which is a subclass with a `build`. The cost
    has no parameters: nothing can train it."""

    weight: Annotated[float, WEIGHT] = 1.0
    """Its weight u_i in every task that names none."""

    def build(self) -> CostFn:
        """The cost, differentiable: an imagined rollout and the task -> energy `[B, P]`."""
        raise NotImplementedError


def goal_distance(rollout: Rollout, context: TaskContext) -> Tensor:
    """Mean squared difference of state and goal, mean over the path; `[B, P]`."""
    goal = context.goal
    if goal.requires_grad:
        return (rollout.states[:, :, 1:] - goal[:, None, None]).square().mean((-2, -1))
    return differentiable(mean_square, rollout.states, goal)


def mean_square(states: Tensor, goal: Tensor) -> tuple[Tensor, Callable[[float], Tensor]]:
    """`goal_distance` with its gradient; see `PathEnergy`."""
    difference = states - (goal if len(goal) == 1 else goal[:, None])
    count = len(states) * states.shape[-1]
    return difference.square().mean((0, -1)), lambda weight: difference * (2 * weight / count)


def control_cost(rollout: Rollout, context: TaskContext) -> Tensor:
    """Squared length of the actions, mean over the path; `[B, P]`."""
    return rollout.actions.square().sum(-1).mean(-1)


def soft_nearest(states: Tensor, references: Tensor, width: Tensor) -> Tensor:
    """States `[..., D]` -> mixtures of reference states `[K, D]`, weighted by a Gaussian of that
    width. A planner that seeks novelty would otherwise find predictions that can't occur."""
    if not len(references):
        return states
    distance = torch.cdist(states.flatten(0, -2), references).unflatten(0, states.shape[:-1])
    return torch.softmax(-(distance / width).square(), -1) @ references  # of [..., K]


def boredom(rollout: Rollout, context: TaskContext) -> Tensor:
    """Similarity 1 / (1 + d^2) to the nearest state that was visited in this episode or is earlier
    on the imagined path, d in NOVELTY_SCALE steps, mean over the path; `[B, P]` (episodic novelty,
    Savinov et al. 2019)."""
    if not context.episode_states.shape[1]:
        return control_cost(rollout, context) * 0
    # a world model may predict that no action moves the state
    step_scale = context.step_scale[:, None, None].clamp_min(1e-3)
    imagined = soft_nearest(
        rollout.states[:, :, 1:], context.reference_states, step_scale[..., None] / 2
    )  # [B, P, H, D]
    visited = torch.cdist(imagined.flatten(1, 2), context.episode_states)
    visited = visited.unflatten(1, imagined.shape[1:3])  # [B, P, H, M]
    is_past = imagined.new_ones(2 * imagined.shape[2:3]).tril(-MIN_LAG).bool()
    own_past = torch.cdist(imagined, imagined).masked_fill(~is_past, torch.inf)  # [B, P, H, H]
    distance = torch.cat([visited, own_past], -1).amin(-1) / (NOVELTY_SCALE * step_scale)
    return (1 / (1 + distance.square())).mean(-1)


NOVELTY_SCALE = 2.0
"""Distance in steps at which the similarity is 1/2."""

MIN_LAG = 4
"""Earlier states of an imagined path count as visited from this many steps back."""

INTRINSIC: Mapping[str, CostFn] = {
    "goal_distance": goal_distance,
    "control_cost": control_cost,
    "boredom": boredom,
}


SET_POINT = 1.0
"""Energy level from which on hunger is 0."""


def hunger(energy: Tensor) -> Tensor:
    """Energy below the set point (Keramati & Gutkin 2014)."""
    return (SET_POINT - energy).relu()


def pain(damage: Tensor) -> Tensor:
    """Damage of a step (LeCun 2022, 3.2)."""
    return damage


def taste(meal: Tensor) -> Tensor:
    """Minus the ripe foods eaten (Berridge 2004)."""
    return -meal


def reward(reward: Tensor) -> Tensor:
    """Minus the reward of the environment (Sutton & Barto 2018, 3.2)."""
    return -reward


DRIVES: Mapping[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "hunger": ("energy", hunger),
    "pain": ("damage", pain),
    "taste": ("meal", taste),
    "reward": ("reward", reward),
}
"""The signal of each drive, and its cost as a function of the signal."""

CENTRED = ("reward",)
"""Drives that are linear in their signal, so that a constant part of it can be subtracted."""


class Drives:
    """The drives of an agent, and the signals (`channels`) that its environment declares."""

    def __init__(self, names: Sequence[str], channels: Sequence[str]) -> None:
        for name in names:
            if name not in DRIVES:
                raise ConfigError(f"no drive is called {name!r}; there are {', '.join(DRIVES)}")
            signal, _ = DRIVES[name]
            if signal not in channels:
                raise ConfigError(
                    f"the drive {name!r} needs the signal {signal!r}, which this "
                    f"environment does not declare; it declares {', '.join(channels)}"
                )
        self.names = tuple(names)
        self.columns = [channels.index(DRIVES[name][0]) for name in names]
        self.continue_index = [i for i, channel in enumerate(channels) if channel == CONTINUE]

    def __call__(self, interoception: Tensor) -> Tensor:
        """Signals `[..., I]` -> the cost of each drive, `[..., W]`."""
        costs = [
            DRIVES[name][1](interoception[..., column])
            for name, column in zip(self.names, self.columns, strict=True)
        ]
        return torch.stack(costs, -1) if costs else interoception[..., :0]

    def centred(self, channels: int) -> Tensor:
        """`[I]` bool: the signals whose constant part may be subtracted, because it adds a constant
        to the cost."""
        columns = dict(zip(self.names, self.columns, strict=True))
        centred = [columns[name] for name in CENTRED if name in columns]
        return torch.tensor([channel in centred for channel in range(channels)])

    def step_shift(self, subtract_offset: Callable[[Tensor], Tensor], zero: Tensor) -> Tensor:
        """The constant by which the cost of a step grows when the offset is subtracted from the
        signals, `[W]`; `zero` `[I]` are signals of 0."""
        return self(subtract_offset(zero)) - self(zero)

    def continue_prob(self, interoception: Tensor) -> Tensor:
        """Signals `[..., I]` -> the probability that the episode continues, `[...]`; 1 where no
        signal says so."""
        return interoception[..., self.continue_index].clamp(0, 1).prod(-1)

    def survival(self, interoception: Tensor) -> tuple[Tensor, Tensor]:
        """Signals of H steps `[..., H, I]` -> the probabilities that the episode has not ended
        before each step and after it, both `[..., H]`."""
        after = self.continue_prob(interoception).cumprod(-1)
        return torch.cat([torch.ones_like(after[..., :1]), after[..., :-1]], -1), after


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
    """Steps to the goal, mean over an imagined path."""

    def __init__(self, distance: Quasimetric) -> None:
        super().__init__()
        self.distance = distance

    def forward(self, rollout: Rollout, context: TaskContext) -> Tensor:
        """`[B, P]`"""
        return self.distance.path_mean(rollout.states, context.goal)


def no_goal_critic(rollout: Rollout, context: TaskContext) -> Tensor:
    """The energy without a goal critic, 0, `[B, P]`: planning looks no further than the horizon."""
    return 0 * rollout.actions.sum((-2, -1))  # planners differentiate every energy


@dataclass(frozen=True, kw_only=True)
class ValueCriticsConfig(Settings):
    hidden: Annotated[int, WIDTH] = 256
    discount: Annotated[float, FRACTION] = 0.97
    """gamma; 0: derived from the length of the collected episodes when training of the critics
    begins, and saved with their weights."""
    num_critics: Annotated[int, (1, 100)] = 1
    """Size of the ensemble of critics."""
    norm: bool = False
    """LayerNorm in every hidden layer, which bounds the values of unfamiliar states (Ball et al.
    2023)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.discount == 1:
            raise BadSetting("discount", self.discount, "from 0 to less than 1")

    def build(self, shape: MapShape, drives: int) -> ValueCritics:
        critics = EnsembleHead(
            relu_mlp(prod(shape), self.hidden, drives, self.norm) for _ in range(self.num_critics)
        )
        return ValueCritics(critics, drives, self.discount)


class ValueCritics(StandardizedHead):
    """A value function for each of W drives: V(s) = sum_k gamma^k c_k, the discounted sum of the
    costs after state s, `[..., D]` -> `[..., W]` (LeCun 2022, 3.3; Sutton & Barto 2018, 3.5). Of an
    ensemble the maximum counts, the most pessimistic cost (clipped double Q-learning, Fujimoto et
    al. 2018).

    If a constant part of the reward is subtracted from every step (`StandardizedHead.offset`), it
    is also subtracted from all steps that would follow the end of an episode: the value `terminal`,
    `[W]`, of a terminal state. All values then change by the same constant, and the order of
    policies stays."""

    terminal: Tensor
    gamma: Tensor  # the discount, saved with the weights
    CONSTANT_UNIT = 0.1

    def __init__(self, layers: nn.Module, drives: int, discount: float) -> None:
        super().__init__(layers, drives)
        self.discount = discount
        self.discount_from_episodes = not discount
        self.register_buffer("terminal", torch.zeros(drives))
        self.register_buffer("gamma", torch.tensor(discount, dtype=torch.float64))

    def set_discount(self, discount: float) -> None:
        """Sets the discount and the buffer it is saved in."""
        self.discount = discount
        self.gamma.fill_(discount)

    def set_terminal_value(self, step_shift: Tensor, can_terminate: bool) -> None:
        """The value of terminal states, where the cost of every step is shifted by `step_shift`
        `[W]`. `can_terminate`: episodes do terminate, and the scale must cover that value."""
        self.terminal.copy_(step_shift / (1 - self.discount))
        if can_terminate:
            self.scale.copy_(torch.maximum(self.scale, self.CONSTANT_UNIT * self.terminal.abs()))

    def rescale_costs(self, growth: Tensor, step_shift: Tensor, can_terminate: bool) -> None:
        """Adapts the values to step costs whose units have grown by `growth` `[W]` and that are
        shifted by `step_shift` `[W]`; the predictions are otherwise unchanged."""
        old_scale, old_terminal = self.scale.clone(), self.terminal.clone()
        self.scale.mul_(growth)
        self.set_terminal_value(step_shift, can_terminate)
        self.mean.add_(self.terminal - old_terminal)
        self.rescale(self.scale / old_scale)

    def step_shift(self) -> Tensor:
        """The constant that is added to the cost of every step, `[W]`."""
        return self.terminal * (1 - self.discount)

    def all_values(self, state: Tensor) -> Tensor:
        """The values of each critic of the ensemble, `[K, ..., W]`."""
        return super().forward(state)

    def forward(self, state: Tensor) -> Tensor:
        return self.all_values(state).amax(0)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        """A discount from the settings takes precedence over the saved one."""
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self.set_discount(float(self.gamma) if self.discount_from_episodes else self.discount)


DISCOUNT = 0.97
"""gamma of the costs up to the horizon, where no critics predict those beyond it."""

CONSTRAINT_PENALTY = 100.0
"""Energy per unit of its drive by which a limit is exceeded, much larger than any other."""


class InteroceptiveCost(nn.Module):
    """The costs of the drives over an imagined future, and the values that the critics predict.

    The estimate is the mean over k = 1..H of the k-step returns c_1 + .. + gamma^(k-1) c_k +
    gamma^k V(s_k): every term depends on the first actions, and the estimate does not grow with the
    horizon. If episodes may terminate, every step is weighted by the probability that the episode
    has not ended."""

    def __init__(
        self, drives: Drives, value_critics: ValueCritics | None, discount: float = DISCOUNT
    ) -> None:
        """`discount` counts only without critics, which have their own."""
        super().__init__()
        self.drives, self.value_critics, self.discount = drives, value_critics, discount
        self.drives_with_critic = drives.names if value_critics is not None else ()

    def names(self) -> list[str]:
        """The names of all energies: the drives and their critics."""
        return [*self.drives.names, *(f"critic_{name}" for name in self.drives_with_critic)]

    def centred(self, channels: int) -> Tensor:
        """`[I]` bool: the signals whose constant part may be subtracted. Without critics there are
        none, since no value would account for the end of an episode."""
        allowed = self.drives.centred(channels)
        return allowed if self.drives_with_critic else torch.zeros_like(allowed)

    def forward(self, rollout: Rollout, limits: Mapping[str, float]) -> dict[str, Tensor]:
        """Unweighted energies by name, each `[B, P]`, and the amount by which each limit is
        exceeded, under the name "limit <drive>"."""
        step_costs = self.drives(rollout.interoception)  # [B, P, H, W]
        horizon = rollout.actions.shape[2]
        step = torch.arange(horizon, device=step_costs.device, dtype=step_costs.dtype)
        critics = self.value_critics
        gamma = self.discount if critics is None else critics.discount
        discounts = gamma**step
        alive_before, alive_after = self.drives.survival(rollout.interoception)  # [B, P, H]
        step_weights = alive_before * discounts * (1 - step / horizon)
        immediate = torch.einsum("bphw,bph->bpw", step_costs, step_weights)
        energies = dict(zip(self.drives.names, immediate.unbind(-1), strict=True))
        step_shift = step_costs.new_zeros(step_costs.shape[-1])
        if critics is not None:
            step_shift = critics.step_shift()
            value_weights = alive_after * discounts * gamma / horizon
            values = critics(rollout.states[:, :, 1:])
            bootstrap = torch.einsum("bphw,bph->bpw", values, value_weights)
            termination = (
                (alive_before - alive_after) * discounts * gamma * (1 - step / horizon)
            ).sum(-1, keepdim=True)
            bootstrap = bootstrap + termination * critics.terminal
            names = (f"critic_{name}" for name in self.drives_with_critic)
            energies |= zip(names, bootstrap.unbind(-1), strict=True)
        for name, limit in limits.items():
            column = self.drives.names.index(name)
            excess = (step_costs[..., column] - (limit + step_shift[column])).relu()
            energies[f"limit {name}"] = (alive_before * excess).sum(-1)
        return energies


Uncertainty = Callable[[Tensor, Tensor], Tensor]
"""States `[..., D]`, actions `[..., A]` -> uncertainty of the predicted next state, `[...]`."""


def weighted(weight: float, energy: Tensor) -> Tensor:
    """The product, without an operation if the weight is 1."""
    return energy if weight == 1 else weight * energy


class Cost(nn.Module):
    """All weighted energies by name; a planner minimises their sum."""

    def __init__(
        self,
        goal_critic: GoalCritic | None,
        interoceptive_cost: InteroceptiveCost,
        uncertainty: Uncertainty,
        custom: Mapping[str, CostFn] = MappingProxyType({}),
    ) -> None:
        """`custom`: further intrinsic costs by name; ConfigError for a name that is taken."""
        super().__init__()
        self.custom, self.goal_critic = dict(custom), goal_critic
        self.interoceptive_cost, self.uncertainty = interoceptive_cost, uncertainty
        for name in custom:
            if name in self._standard() or name in interoceptive_cost.names():
                raise ConfigError(f"a cost is called {name!r} already; give yours another name")
            if name.startswith("limit "):
                raise ConfigError(f"{name!r} is the name of a limit; give your cost another one")

    def _standard(self) -> dict[str, CostFn]:
        critic = no_goal_critic if self.goal_critic is None else self.goal_critic
        return {**INTRINSIC, "curiosity": self._curiosity, "critic": critic}

    def cost_functions(self) -> dict[str, CostFn]:
        """Every energy of states and actions, by the name of its weight."""
        return {**self._standard(), **self.custom}

    def names(self) -> list[str]:
        """The names of all energies, each of which can have a weight."""
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
            raise ConfigError(f"no cost has a weight above 0; there are {', '.join(names)}")

    def forward(self, rollout: Rollout, context: TaskContext) -> dict[str, Tensor]:
        """Weighted energies by name, each `[B, P]`; those of weight 0 are not computed."""
        functions = self.cost_functions()
        weights = {name: weight for name, weight in context.weights.items() if weight}
        terms = {
            n: weighted(w, functions[n](rollout, context))
            for n, w in weights.items()
            if n in functions
        }
        weights |= {f"limit {name}": CONSTRAINT_PENALTY for name in context.limits}
        if weights.keys() - functions.keys():
            energies = self.interoceptive_cost(rollout, context.limits)
            terms |= {n: weighted(w, energies[n]) for n, w in weights.items() if n not in functions}
        return terms

    def by_hand(self, context: TaskContext) -> CostByHand | None:
        """The same for states that follow from actions, with the gradient of their sum; None if
        the gradient of any of them is not written by hand."""
        found: dict[str, PathEnergy | None] = {"goal_distance": mean_square}
        critic = self.goal_critic
        # a subclass may have another forward
        if type(critic) is GoalCritic and type(critic.distance) is Quasimetric:
            found["critic"] = critic.distance.path_mean_by_hand(context.goal)
        active = [
            (name, found.get(name), weight) for name, weight in context.weights.items() if weight
        ]
        if context.limits or any(energy is None for _, energy, _ in active):
            return None

        def terms_and_slope(rollout: Rollout) -> tuple[dict[str, Tensor], Tensor]:
            states, terms, slopes = after_first(rollout.states), {}, []
            for name, energy, weight in active:
                assert energy is not None
                value, slope = energy(states, context.goal)
                terms[name] = weighted(weight, value)
                slopes.append(slope(weight))
            return terms, reduce(torch.add, slopes)

        return terms_and_slope

    def _curiosity(self, rollout: Rollout, context: TaskContext) -> Tensor:
        """Minus the disagreement of the world model's ensemble, mean over the path, `[B, P]`
        (Plan2Explore, Sekar et al. 2020)."""
        return -self.uncertainty(rollout.states[:, :, :-1], rollout.actions).mean(-1)
