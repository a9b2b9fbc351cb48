"""Cost: the energy of a state, C(s) = sum_i u_i IC_i(s) + sum_j v_j TC_j(s) (LeCun 2022, 3.2).

Intrinsic costs IC are differentiable functions without parameters, so nothing can train them: first
those of states and actions, then the drives, costs of interoceptive signals, which the world model
learns to predict. The critics, the trainable costs TC, predict future intrinsic cost: the number of
steps to a goal, and for every drive its discounted sum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial, reduce
from types import MappingProxyType
from typing import Annotated

import torch
from torch import Tensor, nn

from modules.by_hand.autograd import after_first, differentiable_energy
from modules.by_hand.energies import mean_square
from modules.by_hand.protocol import CostByHand, PathEnergy, own_method
from modules.cost.drives import InteroceptiveCost
from modules.cost.goal_critic import GoalCritic, no_goal_critic
from modules.types import WEIGHT, ConfigError, CostFn, Rollout, Settings, TaskContext


@dataclass(frozen=True, kw_only=True)
class IntrinsicCostConfig(Settings):
    """Settings of an intrinsic cost of the user's own, which is a subclass with a `build`. The cost
    has no parameters: nothing can train it."""

    weight: Annotated[float, WEIGHT] = 1.0
    """Weight u_i of the cost in every task that names none."""

    def build(self) -> CostFn:
        """The cost, differentiable: an imagined rollout and the task -> energy `[B, P]`."""
        raise NotImplementedError


def goal_distance(rollout: Rollout, context: TaskContext) -> Tensor:
    """Mean squared difference of state and goal, in the numbers that the goal is about, mean over
    the path; 0 where there is no goal; `[B, P]`."""
    if context.has_goal is not None:
        distance = goal_distance(rollout, context._replace(has_goal=None))
        return distance * context.has_goal[:, None]
    goal = context.goal
    if goal.requires_grad:
        size = context.goal_dims or goal.shape[-1]
        difference = rollout.states[:, :, 1:, :size] - goal[:, None, None, :size]
        return difference.square().mean((-2, -1))
    energy = partial(mean_square, goal_dims=context.goal_dims)
    return differentiable_energy(energy, rollout.states, goal)


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


CONSTRAINT_PENALTY = 100.0
"""Energy per unit of its drive by which a limit is exceeded, much larger than any other."""


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
        """The cost terms of states that follow from actions, faster (`modules/by_hand`), with the
        gradient of their sum; None if the gradient of any term is not written by hand."""
        offered = own_method(self.goal_critic, "by_hand")
        found: dict[str, PathEnergy | None] = {
            "goal_distance": partial(mean_square, goal_dims=context.goal_dims),
            "critic": None if offered is None else offered(context.goal),
        }
        active = [
            (name, found.get(name), weight) for name, weight in context.weights.items() if weight
        ]
        is_masked = context.has_goal is not None
        if is_masked or context.limits or any(energy is None for _, energy, _ in active):
            return None

        def terms_and_slope(rollout: Rollout) -> tuple[dict[str, Tensor], Tensor]:
            states, terms, slopes = after_first(rollout.states), {}, []
            start = rollout.states[:, 0, 0]
            for name, energy, weight in active:
                assert energy is not None
                value, slope = energy(states, context.goal, start)
                terms[name] = weighted(weight, value)
                slopes.append(slope(weight))
            return terms, reduce(torch.add, slopes)

        return terms_and_slope

    def _curiosity(self, rollout: Rollout, context: TaskContext) -> Tensor:
        """Minus the disagreement of the world model's ensemble, mean over the path, `[B, P]`
        (Plan2Explore, Sekar et al. 2020)."""
        return -self.uncertainty(rollout.states[:, :, :-1], rollout.actions).mean(-1)
