"""Levels above that plan by gradient: macro-actions under what the level has learnt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod

import torch
from torch import Tensor, nn

from modules.actor.action_space import BoxActions
from modules.actor.planning.evaluator import RolloutEvaluator
from modules.actor.planning.gradient import GradientPlannerConfig
from modules.actor.planning.risk import ScenarioCVaRConfig
from modules.actor.subgoals.base import LevelInfo
from modules.types import (
    GOAL_COSTS,
    HORIZON,
    WEIGHT,
    BadSetting,
    LatentRolloutFn,
    MapShape,
    Plan,
    QuasimetricFns,
    Rollout,
    Stateful,
    TaskContext,
    validate_ranges,
)
from modules.world_model.jepa_levels import JEPALevel, JEPALevelConfig


class LevelPlanner(Stateful):
    """Mode-2 of a level above: the same planner, of macro-actions, toward a goal in its states."""

    episode_state = ("rng",)

    def __init__(self, config: HierarchicalJEPAConfig, level: JEPALevel) -> None:
        self.level, self.config = level, config
        world_model = level.world_model
        self.risk_model = config.scenarios.build(world_model.level(0).latent.noise_dim)
        evaluator = RolloutEvaluator(
            world_model.imagine,
            world_model.imagine_policy,
            self.cost_terms,
            BoxActions(),
            level.macro_dim,
            self.risk_model,
        )
        self.planner = config.planner.build(evaluator, self.propose)
        self.reset()

    def reset(self, seed: int = 0) -> None:
        self.planner.reset(seed)
        self.risk_model.reset(seed)
        self.rng = torch.Generator().manual_seed(seed)

    def __call__(self, state: Tensor, goal: Tensor, context: TaskContext) -> Plan:
        """States, goals `[B, D]` of this level -> a plan of this level."""
        config = self.config.planner
        self.risk_model.resample()
        plan = self.planner(
            state, context._replace(goal=goal, horizon=config.horizon, iterations=config.iterations)
        )
        # a step of the body later, a stride is far from over
        self.planner.set_warm_start(plan.actions[:, None])
        return plan

    def cost_terms(self, rollout: Rollout, context: TaskContext) -> dict[str, Tensor]:
        """Strides still to go, mean over the path; and macro-actions that life does not contain."""
        states = rollout.states
        nll = self.level.action_prior(states[:, :, :-1]).nll(rollout.actions)
        steps_to_go = self.level.distance(states[:, :, 1:], context.goal[:, None, None])
        return {"critic": steps_to_go.mean(-1), "prior": self.config.prior_weight * nll.mean(-1)}

    def propose(self, state: Tensor, context: TaskContext) -> Tensor:
        """`[B, D]` -> macro-actions as life contains them, `[B, P, H, M]`."""
        count = self.config.num_proposals
        current = state[:, None].expand(-1, count, -1).flatten(0, 1)
        macro_actions = []
        for _ in range(context.horizon):
            prior = self.level.action_prior(current)
            noise = torch.randn(count, self.level.macro_dim, generator=self.rng).to(current)
            noise = noise.repeat(len(state), 1)  # no world's depends on how many others there are
            macro_actions.append((prior.mean + prior.scale * noise).clamp(-1, 1))
            current = self.level.world_model.level(0).step(current, macro_actions[-1]).state
        return torch.stack(macro_actions, 1).unflatten(0, (len(state), count))


MAX_LEVELS = 8


@dataclass(frozen=True, kw_only=True)
class HierarchicalJEPAConfig:
    steps_per_level: tuple[int, ...] = (6,)
    """From the lowest up: steps of the level below that a step of each spans."""
    level: JEPALevelConfig = field(default_factory=JEPALevelConfig)
    planner: GradientPlannerConfig = field(
        default_factory=lambda: GradientPlannerConfig(
            horizon=2, iterations=12, warm_iterations=4, num_proposals=1, num_warm_starts=1, lr=0.1
        )
    )
    scenarios: ScenarioCVaRConfig = field(
        default_factory=lambda: ScenarioCVaRConfig(num_scenarios=8)
    )
    """Imagined of the same macro-actions, where a level has a latent variable."""
    num_proposals: int = 4
    """Drawn from the prior at every level, P."""
    prior_weight: float = 0.3
    """Weight of macro-actions that life does not contain, in strides a nat."""
    snap_to_memory: bool = False
    """Whether subgoals are remembered states, where states are shared."""
    memory_size: int = 2000
    """States that subgoals are looked up among."""
    replan_every: int = 1
    """Steps of the body for which a subgoal stands."""

    def __post_init__(self) -> None:
        validate_ranges(
            self, num_proposals=(0, 100_000), prior_weight=WEIGHT, memory_size=(1, 10_000_000)
        )
        validate_ranges(self, replan_every=HORIZON)
        if not 1 <= len(self.steps_per_level) <= MAX_LEVELS:
            right = f"one number for each level above, from 1 to {MAX_LEVELS} of them"
            raise BadSetting("steps_per_level", self.steps_per_level, right)
        validate_ranges(self, steps_per_level=(2, 10_000))

    def build(
        self,
        shape: MapShape,
        action_dim: int,
        distance: QuasimetricFns | None,
        imagine: LatentRolloutFn,
    ) -> HierarchicalJEPA:
        return HierarchicalJEPA(self, shape, action_dim, distance)


class HierarchicalJEPA(nn.Module, Stateful):
    """Learnt levels above the lowest (H-JEPA). From the top down, each plans macro-actions toward
    what the level above hopes for, and the first state that it hopes for is the subgoal of the one
    below. A level that is less than a stride away from its goal is skipped: near by, plans are
    flat.

    A level with states of its own hopes for something in those; the subgoal is then the remembered
    state of the level below that comes nearest to it. So it is with shared states where it is to be
    `snap_to_memory`: a hope that was never lived is none."""

    episode_state = ("calls", "subgoals", "encoded_memories")
    memory_bank: Tensor
    description = (
        "Levels above stride over several steps at once and plan as the lowest does, from the top "
        "down. What each hopes for is drawn; the first of it is the subgoal that the level below "
        "plans for."
    )

    def __init__(
        self,
        config: HierarchicalJEPAConfig,
        shape: MapShape,
        action_dim: int,
        distance: QuasimetricFns | None,
    ) -> None:
        super().__init__()
        self.config = config
        levels, dims_below, env_steps = [], (prod(shape), action_dim), 1
        for num_steps in config.steps_per_level:
            env_steps *= num_steps
            levels.append(config.level.build(*dims_below, num_steps, env_steps, distance))
            dims_below = levels[-1].state_dim, levels[-1].macro_dim
        self.levels = nn.ModuleList(levels)
        self.level_planners = [LevelPlanner(config, level) for level in levels]
        self.register_buffer("memory_bank", torch.zeros(config.memory_size, prod(shape)))
        self.trained = False
        self.reset()

    def reset(self, seed: int = 0) -> None:
        """The next call plans."""
        self.calls, self.subgoals = 0, torch.empty(0, 0, 0, 0)
        self.encoded_memories: dict[
            int, Tensor
        ] = {}  # what is remembered, in states of a level above
        for planner in self.level_planners:
            planner.reset(seed)

    def is_trained(self) -> bool:
        """Whether there is anything to go by; asked of the device only until there is."""
        self.trained = self.trained or bool(self.memory_bank.any())
        return self.trained

    def forward(self, state: Tensor, context: TaskContext) -> TaskContext:
        """`[B, D]` -> the same focus, the goal a stride ahead; flat before anything was learnt."""
        if not (any(context.weights.get(name) for name in GOAL_COSTS) and self.is_trained()):
            return context
        if len(self.subgoals) != len(state) or self.calls % self.config.replan_every == 0:
            self.subgoals = self.plan(state, context)
        self.calls += 1
        return context._replace(goal=self.subgoals[:, -1, 0], upper_plans=self.subgoals)

    @torch.no_grad()
    def plan(self, state: Tensor, context: TaskContext) -> Tensor:
        """`[B, D]` -> what each level hopes for, top first, in states of the lowest,
        `[B, L - 1, H, D]`."""
        goal, subgoals = context.goal, []
        for index in reversed(range(len(self.level_planners))):
            planner = self.level_planners[index]
            start, target = (self.encode_to(part, index) for part in (state, goal))
            plan = planner(start, target, context)
            is_near = planner.level.distance(start, target) <= 1  # [B]
            level_subgoals = torch.where(
                is_near[:, None, None],
                goal[:, None],
                self.nearest_memory(plan.states[:, 1:], index),
            )
            subgoals.append(level_subgoals)
            goal = level_subgoals[:, 0]
        return torch.stack(subgoals, 1)

    def encode_to(self, state: Tensor, index: int) -> Tensor:
        """States of the lowest level -> those of a level above, `[..., D]` each."""
        for planner in self.level_planners[: index + 1]:
            state = planner.level.state_encoder(state)
        return state

    @property
    def learned_levels(self) -> Sequence[LevelInfo]:
        """Every level above."""
        steps_per_level, has_own_states = (
            self.config.steps_per_level,
            bool(self.config.level.state_dim),
        )
        return [
            LevelInfo(
                prod(steps_per_level[: i + 1]),
                has_own_states,
                partial(self.encode_to, index=i),
                partial(self.predict, index=i),
            )
            for i in range(len(steps_per_level))
        ]

    def predict(self, state: Tensor, actions: Tensor, index: int) -> Tensor:
        """States `[N, D]` of a level above and actions of the body `[N, T, A]` -> what it foresees
        of them, `[N, T // stride + 1, D]`."""
        for planner in self.level_planners[: index + 1]:
            num_actions = actions.shape[1] // planner.level.num_steps * planner.level.num_steps
            actions = planner.level.encode_actions(actions[:, :num_actions])
        return (
            self.level_planners[index]
            .level.world_model.imagine(state, actions[:, None])
            .states[:, 0]
        )

    def nearest_memory(self, states: Tensor, index: int) -> Tensor:
        """States of a level above -> remembered states of the lowest that come nearest; or the
        states themselves, where all levels share theirs."""
        if not (self.config.snap_to_memory or self.config.level.state_dim):
            return states
        if index not in self.encoded_memories:
            self.encoded_memories[index] = self.encode_to(self.memory_bank, index)
        distance = torch.cdist(states.flatten(0, -2), self.encoded_memories[index])
        return self.memory_bank[distance.argmin(-1)].unflatten(0, states.shape[:-1])
