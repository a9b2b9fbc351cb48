"""Actor, Mode-1: a policy that reacts, and what makes it an actor (Mode-2: `planners/`)."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from modules.bounds import Bounds
from modules.layers import Neighbourhoods, first_of, mlp, sharp
from modules.planners.common import MindsEye
from modules.planners.outlook import Thought
from modules.types import (
    FRACTION,
    HORIZON,
    WIDTH,
    Decide,
    Focus,
    Mode,
    Plan,
    Shape,
    Stateful,
    require,
)


class Policy(nn.Module):
    """pi(s, g, task) -> the action that Mode-2 would have found after deliberation, in one pass.

    What is told of the task are the weights of some costs, `[B, W]`; W may be 0."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        hidden: int = 256
        aims: int = 0
        """Numbers of a goal, the first ones, that it looks at; 0: all."""
        kinks: bool = False
        """Three layers with kinks in the place of two smooth ones, for what has to be timed."""

        def __post_init__(self) -> None:
            require(self, hidden=WIDTH, aims=(0, 65_536))

        def build(self, shape: Shape, action_dim: int, bounds: Bounds, told: int) -> Policy:
            size, aims = prod(shape), first_of(self.aims, shape) or prod(shape)
            stack = sharp if self.kinks else mlp
            layers = stack(size + 2 * aims + told, self.hidden, action_dim)
            return Policy(layers, action_dim, bounds, aims)

    def __init__(self, layers: nn.Module, action_dim: int, bounds: Bounds, aims: int) -> None:
        super().__init__()
        self.layers, self.bounds, self.action_dim, self.aims = layers, bounds, action_dim, aims

    def forward(self, state: Tensor, goal: Tensor, condition: Tensor) -> Tensor:
        """States, goals `[B, D]`, the task `[B, W]` -> actions `[B, A]` inside the bounds."""
        return self.bounds.bound(self.free(state, goal, condition))

    def free(self, state: Tensor, goal: Tensor, condition: Tensor) -> Tensor:
        """The same before they are bounded; where these are large, no gradient comes through."""
        aim, here = goal[..., : self.aims], state[..., : self.aims]
        known = torch.cat([state, aim, aim - here, self.spread(condition)], -1)
        return self.layers(known)

    def spread(self, condition: Tensor) -> Tensor:
        """The task `[B, W]` as numbers beside those of a state."""
        return condition


class MapPolicy(Policy):
    """The same for map states: neighbourhoods of state and goal are looked at before the whole."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        channels: int = 32
        hidden: int = 256

        def __post_init__(self) -> None:
            require(self, channels=WIDTH, hidden=WIDTH)

        def build(self, shape: Shape, action_dim: int, bounds: Bounds, told: int) -> MapPolicy:
            # flat maps one behind the other are their channels
            both = (3 * shape[0] + told, *shape[1:])
            layers = Neighbourhoods(both, self.channels, self.hidden, action_dim)
            return MapPolicy(layers, action_dim, bounds, shape)

    def __init__(self, layers: nn.Module, action_dim: int, bounds: Bounds, shape: Shape) -> None:
        super().__init__(layers, action_dim, bounds, prod(shape))
        self.places = shape[1] * shape[2]

    def spread(self, condition: Tensor) -> Tensor:
        """The same number in every place, one channel for each."""
        return condition.repeat_interleave(self.places, -1)


class Reflex:
    """Mode-1 as an actor: one forward pass, nothing imagined, so no energy is claimed (NaN)."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def reset(self, seed: int = 0) -> None:
        """A reflex has no past."""

    def __call__(self, state: Tensor, focus: Focus) -> Plan:
        """`[B, D]` -> a plan of one action."""
        now = state[:, None]
        return Plan(
            actions=self.policy(state, focus.goal, focus.condition)[:, None],
            energy=state.new_full((len(state),), torch.nan),
            terms={},
            states=now,
            hopes=focus.hopes,
            considered=now[:, None],
            energies=state.new_full((len(state), 1), torch.nan),
            deliberated=torch.zeros(len(state), dtype=torch.bool, device=state.device),
        )


class Habit:
    """What the policy would do for the next H steps, as one proposal for Mode-2 to improve."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        def build(self, policy: Policy, eye: MindsEye) -> Habit:
            return Habit(policy, eye)

    def __init__(self, policy: Policy, eye: MindsEye) -> None:
        self.policy, self.eye = policy, eye

    def __call__(self, state: Tensor, focus: Focus) -> Tensor:
        """`[B, D]` -> `[B, 1, H, A]`"""
        nothing = state.new_empty(len(state), 0, focus.horizon, self.eye.action_dim)
        return self.eye.pursue(state, self._decide(focus), nothing).actions

    def beside(self, state: Tensor, others: Tensor, focus: Focus) -> Thought:
        """`[B, D]` -> the policy's own future, and beside it those of others `[B, P, H, A]`."""
        return self.eye.beside(state, self._decide(focus), others, focus)

    def _decide(self, focus: Focus) -> Decide:
        def decide(states: Tensor) -> Tensor:
            alike = len(states) // len(focus.goal)  # several futures of each world, side by side
            goal, told = (
                part.repeat_interleave(alike, 0) if alike > 1 else part
                for part in (focus.goal, focus.condition)
            )
            return self.policy(states, goal, told)

        return decide


class NoHabit:
    """Nothing to go by: Mode-2 without a policy."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        def build(self, policy: Policy, eye: MindsEye) -> NoHabit:
            return NoHabit(policy.action_dim)

    def __init__(self, action_dim: int) -> None:
        self.action_dim = action_dim

    def __call__(self, state: Tensor, focus: Focus) -> Tensor:
        return state.new_empty(len(state), 0, focus.horizon, self.action_dim)


class Calm:
    """Trusts its plans, come what may."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        def build(self, actor: Mode, eye: MindsEye) -> Mode:
            return actor


class Restless(Stateful):
    """Where plans are followed and nothing gets better, the model is wrong about this place: one
    random action, and then the plans have their chance again."""

    episode_state = ("random", "calls", "before")

    @dataclass(frozen=True, kw_only=True)
    class Config:
        period: int = 3
        """Actions between two looks at what was gained."""
        progress: float = 0.75
        """How much the energy of the plan must have fallen since the last look."""
        content: float = 2.0
        """Energy below which there is nothing to gain; both in the units of the cost."""

        def __post_init__(self) -> None:
            require(self, period=HORIZON, progress=FRACTION, content=(0.0, 1e12))

        def build(self, actor: Mode, eye: MindsEye) -> Mode:
            return Restless(self, actor, eye)

    def __init__(self, config: Config, actor: Mode, eye: MindsEye) -> None:
        self.config, self.actor, self.eye = config, actor, eye
        self.reset()

    def reset(self, seed: int = 0) -> None:
        """Nothing was tried yet."""
        self.actor.reset(seed)
        self.random = torch.Generator().manual_seed(seed)
        self.calls, self.before = 0, torch.tensor(torch.inf)

    def __call__(self, state: Tensor, focus: Focus) -> Plan:
        plan = self.actor(state, focus)
        self.calls += 1
        if self.calls % self.config.period:
            return plan
        gained = self.before.to(plan.energy) - plan.energy  # [B]
        stuck = (gained < self.config.progress) & (plan.energy > self.config.content)
        self.before = plan.energy
        noise = torch.randn(plan.action.shape[-1], generator=self.random).to(plan.action)
        first = torch.where(stuck[:, None], self.eye.bounds.bound(2 * noise), plan.action)
        actions = torch.cat([first[:, None], plan.actions[:, 1:]], 1)
        # what the rest of the plan comes to after that: a plan never shows what it won't do
        changed = self.eye.decide(state, actions[:, None], focus)
        return changed._replace(considered=plan.considered, energies=plan.energies)


class Commit(Stateful):
    """Carries out several actions of a plan before it is made anew."""

    episode_state = ("left",)

    def __init__(self, actor: Mode, execute: int) -> None:
        self.actor, self.execute = actor, execute
        self.left: list[Plan] = []

    def reset(self, seed: int = 0) -> None:
        """The next call plans, with nothing to go on from."""
        self.actor.reset(seed)
        self.left = []

    def __call__(self, state: Tensor, focus: Focus) -> Plan:
        if not self.left:
            plan = self.actor(state, focus)
            self.left = [later(plan, step) for step in range(min(self.execute, focus.horizon))]
        return self.left.pop(0)


def later(plan: Plan, step: int) -> Plan:
    """The same plan after `step` of its actions were carried out."""
    return plan._replace(
        actions=plan.actions[:, step:],
        states=plan.states[:, step:],
        considered=plan.considered[:, :, step:],
    )
