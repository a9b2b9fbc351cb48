"""Intrinsic costs: differentiable functions without parameters, so nothing can train them (LeCun
2022, 3.2).

Those of states and actions come first. Drives are costs of interoceptive signals, which the world
model learns to predict.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from modules.types import (
    CONTINUE,
    WEIGHT,
    ConfigError,
    CostFn,
    Rollout,
    TaskContext,
    validate_ranges,
)


@dataclass(frozen=True, kw_only=True)
class IntrinsicCostConfig:
    """Settings of an intrinsic cost of the user's own, which is a subclass with a `build`. The cost
    has no parameters: nothing can train it."""

    weight: float = 1.0
    """Its weight u_i in every task that names none."""

    def __post_init__(self) -> None:
        validate_ranges(self, weight=WEIGHT)

    def build(self) -> CostFn:
        """The cost, differentiable: an imagined rollout and the task -> energy `[B, P]`."""
        raise NotImplementedError


def goal_distance(rollout: Rollout, context: TaskContext) -> Tensor:
    """Mean squared difference of state and goal, mean over the path; `[B, P]`."""
    difference = rollout.states[:, :, 1:] - context.goal[:, None, None]  # [B, P, H, D]
    return difference.square().mean((-2, -1))


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
