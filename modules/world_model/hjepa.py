"""H-JEPA: levels of the world model above the lowest (LeCun 2022, 4.6), and planning in them (4.7).

A step of a level spans several steps of the level below. The level has a state, macro-actions, a
world model of what they lead to, a prior over macro-actions and a distance in its own steps; it
plans by gradient, and one of the first states of its plan is the subgoal of the level below.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Annotated, NamedTuple

import torch
from torch import Tensor, nn

from modules.actor.planning.evaluator import RolloutEvaluator
from modules.actor.planning.gradient import GradientPlannerConfig
from modules.actor.planning.risk import EntropicRiskConfig, ScenarioCVaRConfig
from modules.actor.policy import BoxActions
from modules.actor.subgoals.base import LevelInfo
from modules.cost.goal_critic import (
    FourierQuasimetricConfig,
    GlimpseQuasimetricConfig,
    QuasimetricConfig,
    excess_steps,
)
from modules.nets import silu_mlp
from modules.types import (
    HORIZON,
    WEIGHT,
    WIDTH,
    BadSetting,
    ConfigError,
    LatentRolloutFn,
    MapShape,
    Plan,
    PlannerCarry,
    QuasimetricFns,
    Rollout,
    Settings,
    TaskContext,
)
from modules.world_model.dynamics import (
    FourierDynamicsConfig,
    GlimpseDynamicsConfig,
    MLPDynamicsConfig,
)
from modules.world_model.jepa import WorldModelConfig
from modules.world_model.latents import LatentConfig, Normal


@dataclass(frozen=True, kw_only=True)
class SharedCriticConfig:
    """No settings."""


class SharedCritic(nn.Module):
    """The distance of the goal critic, converted from environment steps to steps of a level that
    shares the states of the lowest level; no parameters of its own."""

    def __init__(self, distance: QuasimetricFns, env_steps: int) -> None:
        super().__init__()
        self.distance, self.env_steps = distance, env_steps

    def forward(self, state: Tensor, goal: Tensor) -> Tensor:
        """States `[..., D]`, goals `[..., D]`, broadcast -> steps of the level to go `[...]`."""
        embed, from_embeddings = self.distance
        return from_embeddings(embed(state), embed(goal)) / self.env_steps


@dataclass(frozen=True, kw_only=True)
class JEPALevelConfig(Settings):
    state_dim: Annotated[int, (0, 65_536)] = 0
    """Dimensions of the level's own state; 0: it shares the state of the level below."""
    macro_dim: Annotated[int, WIDTH] = 4
    """Dimensions of a macro-action, M."""
    hidden: Annotated[int, WIDTH] = 256
    dynamics: MLPDynamicsConfig | FourierDynamicsConfig | GlimpseDynamicsConfig = field(
        default_factory=FourierDynamicsConfig
    )
    latent: LatentConfig | None = None
    """What state and macro-action do not determine of the next state."""
    distance: (
        QuasimetricConfig | FourierQuasimetricConfig | GlimpseQuasimetricConfig | SharedCriticConfig
    ) = field(default_factory=FourierQuasimetricConfig)
    """Steps of the level from a state to a goal."""

    def build(
        self,
        state_dim_below: int,
        action_dim: int,
        num_steps: int,
        env_steps: int,
        critic_distance: QuasimetricFns | None,
    ) -> JEPALevel:
        """A level above one of these dimensions. Its step spans `num_steps` steps of the level
        below and `env_steps` environment steps; `critic_distance` is the goal critic's, if there is
        one."""
        state_dim = self.state_dim or state_dim_below
        if not isinstance(self.distance, SharedCriticConfig):
            distance: nn.Module = self.distance.build((state_dim, 1, 1))
        elif critic_distance is None or self.state_dim:
            raise ConfigError(
                "subgoals.level.distance SharedCritic is the goal critic's, of states of the "
                "lowest level: there must be a critic, and subgoals.level.state_dim "
                f"{self.state_dim} must be 0"
            )
        else:
            distance = SharedCritic(critic_distance, env_steps)
        return JEPALevel(self, state_dim_below, action_dim, num_steps, distance)


class JEPALevel(nn.Module):
    """One level above another: a state u = f(s), a macro-action m = g(a_1 .. a_k) that stands for
    k actions of the level below, a world model of the next u, a prior p(m | u) over the
    macro-actions in the data, and a distance in steps of the level."""

    def __init__(
        self,
        config: JEPALevelConfig,
        state_dim_below: int,
        action_dim: int,
        num_steps: int,
        distance: nn.Module,
    ) -> None:
        super().__init__()
        self.state_dim = config.state_dim or state_dim_below
        self.macro_dim, self.num_steps = config.macro_dim, num_steps
        self.state_encoder = (
            silu_mlp(state_dim_below, config.hidden, self.state_dim)
            if config.state_dim
            else nn.Identity()
        )
        self.action_encoder = nn.Sequential(
            silu_mlp(num_steps * action_dim, config.hidden, self.macro_dim), nn.Tanh()
        )
        world_model = WorldModelConfig(dynamics=config.dynamics, latent=config.latent)
        self.world_model = world_model.build((self.state_dim, 1, 1), self.macro_dim, 0)
        self.distance = distance
        self.prior_head = silu_mlp(self.state_dim, config.hidden, 2 * self.macro_dim)

    def action_prior(self, state: Tensor) -> Normal:
        """p(m | u), the macro-actions in the recorded data, in states `[..., D]`."""
        prior = Normal.from_params(self.prior_head(state))
        return prior._replace(mean=prior.mean.tanh())

    def encode_actions(self, actions: Tensor) -> Tensor:
        """Actions of the level below `[..., T * num_steps, A]` -> macro-actions `[..., T, M]`."""
        return self.action_encoder(actions.unflatten(-2, (-1, self.num_steps)).flatten(-2))


class LevelPlanner:
    """Mode-2 of a level above: a gradient planner of macro-actions towards a goal state."""

    def __init__(self, config: HierarchicalJEPAConfig, level: JEPALevel) -> None:
        self.level, self.config = level, config
        world_model = level.world_model
        self.evaluator = RolloutEvaluator(
            world_model.imagine,
            world_model.imagine_policy,
            self.cost_terms,
            BoxActions(),
            level.macro_dim,
            config.scenarios.build(world_model.latent.noise_dim),
        )
        self.planner = config.planner.build(self.evaluator, self.propose)

    def __call__(
        self, state: Tensor, goal: Tensor, context: TaskContext, carry: PlannerCarry
    ) -> tuple[Plan, PlannerCarry]:
        """States, goals `[B, D]` of this level -> a plan of this level."""
        planner, rng = self.config.planner, carry.rng.clone_state()
        context = context._replace(
            goal=goal, horizon=planner.horizon, iterations=planner.iterations, noise=None
        )
        context = self.evaluator.with_noise(context, rng)
        plan, carry = self.planner(state, context, carry._replace(rng=rng))
        # not shifted: the next call is one environment step later, a fraction of the level's step
        return plan, carry._replace(warm_start=plan.actions[:, None])

    def cost_terms(self, rollout: Rollout, context: TaskContext) -> dict[str, Tensor]:
        """Steps of the level to go, mean over the path, the penalty for states that can't be
        reached in time, and that for unlikely macro-actions; each `[B, P]`."""
        states, distance, config = rollout.states, self.level.distance, self.config
        start, path = states[:, :, :1], states[:, :, 1:]
        nll = self.level.action_prior(states[:, :, :-1]).nll(rollout.actions)
        terms = {
            "critic": distance(path, context.goal[:, None, None]).mean(-1),
            "prior": config.prior_weight * nll.mean(-1),
        }
        if config.reachability:
            excess = excess_steps(distance(start, path)).mean(-1)
            terms["reachability"] = config.reachability * excess
        return terms

    def propose(self, state: Tensor, context: TaskContext, rng: torch.Generator) -> Tensor:
        """`[B, D]` -> macro-actions sampled from the prior, `[B, P, H, M]`."""
        count = self.config.num_proposals
        current = state[:, None].expand(-1, count, -1).flatten(0, 1)
        macro_actions = []
        for _ in range(context.horizon):
            prior = self.level.action_prior(current)
            noise = torch.randn(count, self.level.macro_dim, generator=rng).to(current)
            noise = noise.repeat(len(state), 1)  # the same in each environment, for any number B
            macro_actions.append((prior.mean + prior.scale * noise).clamp(-1, 1))
            current = self.level.world_model.step(current, macro_actions[-1]).state
        return torch.stack(macro_actions, 1).unflatten(0, (len(state), count))


MAX_LEVELS = 8


@dataclass(frozen=True, kw_only=True)
class HierarchicalJEPAConfig(Settings):
    steps_per_level: Annotated[tuple[int, ...], (2, 10_000)] = (6,)
    """For each level above, the lowest first: how many steps of the level below its step spans."""
    level: JEPALevelConfig = field(default_factory=JEPALevelConfig)
    planner: GradientPlannerConfig = field(
        default_factory=lambda: GradientPlannerConfig(
            horizon=2, iterations=12, warm_iterations=4, num_proposals=1, num_warm_starts=1, lr=0.1
        )
    )
    scenarios: ScenarioCVaRConfig | EntropicRiskConfig = field(
        default_factory=lambda: ScenarioCVaRConfig(num_scenarios=8)
    )
    """Sampled futures of each candidate, if a level has a latent variable."""
    num_proposals: Annotated[int, (0, 100_000)] = 4
    """Candidates sampled from the prior at every level, P."""
    prior_weight: Annotated[float, WEIGHT] = 0.3
    """Weight of the prior's negative log-likelihood, in steps of the level per nat."""
    subgoal_step: Annotated[int, HORIZON] = 1
    """Which state of a level's plan is the subgoal of the level below, from 1, the first. A lower
    level that can plan beyond its subgoal stops at it: where it lies further away, the way there is
    the lower level's, whose steps are finer."""
    reachability: Annotated[float, WEIGHT] = 0.0
    """Weight of the steps by which the level's distance from the present state to a planned one
    exceeds the steps that were planned: a macro-action that the level's world model lets through a
    wall (`GoalCriticConfig.reachability`)."""
    snap_to_memory: bool = False
    """Whether subgoals are replaced by the nearest remembered state; always so for levels with
    states of their own."""
    memory_size: Annotated[int, (1, 10_000_000)] = 2000
    """Remembered states among which the nearest is searched."""
    replan_every: Annotated[int, HORIZON] = 1
    """Environment steps between two plans of the levels above."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= len(self.steps_per_level) <= MAX_LEVELS:
            expected = f"from 1 to {MAX_LEVELS} numbers, one for each level above"
            raise BadSetting("steps_per_level", self.steps_per_level, expected)
        if self.subgoal_step > self.planner.horizon:
            expected = f"at most the steps of a plan, planner.horizon {self.planner.horizon}"
            raise BadSetting("subgoal_step", self.subgoal_step, expected)

    def build(
        self,
        shape: MapShape,
        action_dim: int,
        distance: QuasimetricFns | None,
        imagine: LatentRolloutFn,
    ) -> HierarchicalJEPA:
        return HierarchicalJEPA(self, shape, action_dim, distance)


class HierarchyCarry(NamedTuple):
    """What the levels carry from step to step."""

    planners: tuple[PlannerCarry, ...]  # of each level, the lowest first
    calls: int = 0
    subgoals: Tensor | None = None  # [B, L - 1, H, D], top first
    encoded_memories: tuple[Tensor, ...] = ()  # the memory bank in states of each level


class HierarchicalJEPA(nn.Module):
    """Learnt levels above the lowest (H-JEPA). From the top down, each plans macro-actions towards
    the subgoal that the level above sets, and the first state of its plan, or a later one
    (`subgoal_step`), is the subgoal of the level below. A level less than one of its steps away
    from its goal passes the goal on unchanged.

    If a level has states of its own, the subgoal is the remembered state of the lowest level whose
    encoding is nearest to the planned one. `snap_to_memory` does the same for shared states, so
    that every subgoal is a state that was observed."""

    memory_bank: Tensor
    description = (
        "Learnt levels above plan in steps that span several of the level below, from the top "
        "down. The states of each level's plan are drawn from the subgoal of the level below on."
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

    def initial_carry(self, seed: int) -> HierarchyCarry:
        """The next call plans; random draws depend on the seed alone."""
        return HierarchyCarry(tuple(PlannerCarry.initial(seed) for _ in self.level_planners))

    def is_trained(self) -> bool:
        """Whether the levels were trained; reads from the device only until they are."""
        self.trained = self.trained or bool(self.memory_bank.any())
        return self.trained

    def forward(
        self, state: Tensor, context: TaskContext, carry: HierarchyCarry
    ) -> tuple[TaskContext, HierarchyCarry]:
        """`[B, D]` -> the context with the subgoal as its goal; unchanged before training."""
        if not (context.pursues_goal and self.is_trained()):
            return context, carry
        subgoals = carry.subgoals
        if (
            subgoals is None
            or len(subgoals) != len(state)
            or carry.calls % self.config.replan_every == 0
        ):
            subgoals, carry = self.plan(state, context, carry)
        carry = carry._replace(calls=carry.calls + 1, subgoals=subgoals)
        upper_plans = subgoals[:, :, self.config.subgoal_step - 1 :]
        return context._replace(goal=upper_plans[:, -1, 0], upper_plans=upper_plans), carry

    @torch.no_grad()
    def plan(
        self, state: Tensor, context: TaskContext, carry: HierarchyCarry
    ) -> tuple[Tensor, HierarchyCarry]:
        """`[B, D]` -> the states that each level plans for, top first, as states of the lowest
        level, `[B, L - 1, H, D]`; that of `subgoal_step` is the subgoal of the level below."""
        memories = carry.encoded_memories or self._encoded_memories()
        goal, subgoals, carries = context.goal, [], list(carry.planners)
        for index in reversed(range(len(self.level_planners))):
            planner = self.level_planners[index]
            start, target = (self.encode_to(part, index) for part in (state, goal))
            plan, carries[index] = planner(start, target, context, carries[index])
            is_near = planner.level.distance(start, target) <= 1  # [B]
            planned = (
                self._snap(plan.states[:, 1:], memories[index]) if memories else plan.states[:, 1:]
            )
            subgoals.append(torch.where(is_near[:, None, None], goal[:, None], planned))
            goal = subgoals[-1][:, self.config.subgoal_step - 1]
        carry = carry._replace(planners=tuple(carries), encoded_memories=memories)
        return torch.stack(subgoals, 1), carry

    def encode_to(self, state: Tensor, index: int) -> Tensor:
        """States of the lowest level -> those of a level above, `[..., D]` each."""
        for planner in self.level_planners[: index + 1]:
            state = planner.level.state_encoder(state)
        return state

    @property
    def learned_levels(self) -> Sequence[LevelInfo]:
        """Every level above."""
        steps_per_level = self.config.steps_per_level
        return [
            LevelInfo(
                prod(steps_per_level[: i + 1]),
                bool(self.config.level.state_dim),
                partial(self.encode_to, index=i),
                partial(self.predict, index=i),
            )
            for i in range(len(steps_per_level))
        ]

    def predict(self, state: Tensor, actions: Tensor, index: int) -> Tensor:
        """States `[N, D]` of a level above and environment actions `[N, T, A]` -> the states that
        the level predicts, `[N, T // env_steps + 1, D]`."""
        for planner in self.level_planners[: index + 1]:
            num_actions = actions.shape[1] // planner.level.num_steps * planner.level.num_steps
            actions = planner.level.encode_actions(actions[:, :num_actions])
        world_model = self.level_planners[index].level.world_model
        return world_model.imagine(state, actions[:, None]).states[:, 0]

    def _encoded_memories(self) -> tuple[Tensor, ...]:
        """The memory bank in states of each level, the lowest first; empty if all levels share
        their states and `snap_to_memory` is off."""
        if not (self.config.snap_to_memory or self.config.level.state_dim):
            return ()
        return tuple(
            self.encode_to(self.memory_bank, index) for index in range(len(self.level_planners))
        )

    def _snap(self, states: Tensor, memories: Tensor) -> Tensor:
        """States of a level above `[B, H, D]` -> the remembered states of the lowest level whose
        encodings `memories` are nearest."""
        distance = torch.cdist(states.flatten(0, -2), memories)
        return self.memory_bank[distance.argmin(-1)].unflatten(0, states.shape[:-1])
