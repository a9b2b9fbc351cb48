"""The agent: its modules, and how an observation becomes a plan.

What an episode changes is held by a `Controller`; an agent can have any number of them. The agent's
own methods `set_task`, `reset`, `prepare` and `act` act in an episode that it holds itself, and
take observations as its encoders do, not as an environment delivers them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ami_agent import episode_state
from ami_agent.adapters.env import EnvironmentSpec
from ami_agent.controller import Controller
from modules.actor.adaptive import PlanEnergyPredictor
from modules.actor.planning import RolloutEvaluator
from modules.actor.policy import Policy
from modules.actor.subgoals import Hierarchy
from modules.configurator import Configurator, Task, TaskSpec
from modules.cost.cost import Cost
from modules.memory.replay_buffer import ReplayBuffer
from modules.memory.short_term import (
    MAX_STATES,
    EpisodeMemory,
    ReferenceObservations,
    ShortTermMemory,
)
from modules.memory.storage import can_store
from modules.types import (
    ActorProtocol,
    ConfigError,
    ModalityWeights,
    Observation,
    Plan,
    PlannerProtocol,
    Stateful,
    TaskContext,
    Transition,
    as_dict,
    batch_size,
)
from modules.world_model.jepa import WorldModel


class Agent(nn.Module, Stateful):
    """Perception, memory, world model, cost, actor and configurator (LeCun 2022, figure 2), acting
    in B environments at once."""

    episode_state = ("context", "seed", "num_resets")

    def __init__(
        self,
        *,
        spec: EnvironmentSpec,
        perception: nn.Module,
        short_term_memory: ShortTermMemory,
        reference_obs: ReferenceObservations,
        world_model: WorldModel,
        cost: Cost,
        policy: Policy,
        plan_energy_predictor: PlanEnergyPredictor,
        subgoals: Hierarchy,
        replay_buffer: ReplayBuffer,
        configurator: Configurator,
        actors: Mapping[str, ActorProtocol],
        planner: PlannerProtocol,
        evaluator: RolloutEvaluator,
        tasks: Mapping[str, TaskSpec],
    ) -> None:
        super().__init__()
        self.spec = spec
        self.perception, self.short_term_memory = perception, short_term_memory
        self.reference_obs, self.world_model, self.cost = reference_obs, world_model, cost
        self.policy, self.plan_energy_predictor = policy, plan_energy_predictor
        self.subgoals, self.replay_buffer = subgoals, replay_buffer
        self.configurator, self.actors, self.tasks = configurator, actors, tasks
        self.planner, self.evaluator = planner, evaluator
        self.shape: tuple[int, int, int] = perception.shape  # type: ignore[assignment]
        self.episode_memory = EpisodeMemory(short_term_memory)
        self.context: TaskContext | None = None
        self.seed = self.num_resets = 0  # of planning's random streams; resets since it was set
        self._roots: tuple[object, ...] = ()
        self._parts: list[Stateful] = []

    def controller(
        self, num_envs: int | None = None, task: Task | None = None, seed: int = 0
    ) -> Controller:
        """Acts on what an environment delivers, and holds all that its episodes change.

        `num_envs`: how many environments step together, so that observations are batches as
        `gymnasium.make_vec` delivers them; None for a single environment, whose observations and
        actions have no batch axis. `seed`: that of the random streams of planning."""
        return Controller(self, num_envs, task, seed)

    def stateful_parts(self) -> list[Stateful]:
        """The modules that an episode changes, and the agent itself."""
        roots = (
            self.episode_memory, self.subgoals, self.evaluator.risk_model, self.planner,
            *self.actors.values(),
        )  # fmt: skip
        if self._roots != roots:  # searched once, not at every action
            self._roots, self._parts = roots, [self, *episode_state.stateful_parts(roots)]
        return self._parts

    @contextmanager
    def rollback_on_error(self) -> Iterator[None]:
        """If the block raises, everything that an episode changes is as it was before."""
        parts = self.stateful_parts()
        before = episode_state.copy_state(episode_state.take(parts))
        try:
            yield
        except BaseException:
            episode_state.restore(parts, before)
            raise

    @torch.no_grad()
    def set_task(self, task: Task, seed: int = 0) -> None:
        """Sets the task, in the middle of an episode too; plans are made anew. Its goal is an
        observation as the agent's encoders take it, `[B, *O]` or `[1, *O]`."""
        modality_weights = self.configurator.modality_weights(task)
        if task.goal is None:
            goal = torch.zeros(1, prod(self.shape))
        else:
            goal_obs = self._to_tensors("goal", task.goal)
            goal = self.encode(goal_obs, modality_weights)
            if not goal.isfinite().all():
                env = int((~goal.isfinite().all(-1)).nonzero()[0])
                raise ConfigError(
                    f"the goal of environment {env} gives a state that is not finite: its numbers "
                    "are too large for this agent"
                )
        context = self.configurator.context(task, goal.to(self.device))
        self.cost.validate_weights(context.weights)
        if context.weights.get("boredom"):
            context = context._replace(
                reference_states=self.encode(self.reference_obs.observations(), modality_weights)
            )
        if self.context is not None and context.modality_weights != self.context.modality_weights:
            self.episode_memory.reset()  # its states were encoded with other modality weights
        self.context = context
        self.seed, self.num_resets = seed, 0
        self._reset_planners(seed)

    def task_spec(self, task: str) -> TaskSpec:
        """The task of that name; the first one if the name is empty."""
        tasks = self.tasks
        if task and task not in tasks:
            raise ConfigError(f"no task {task!r}; this agent has {', '.join(tasks)}")
        return tasks[task or next(iter(tasks))]

    def reset(self, reset_mask: Tensor | None = None) -> None:
        """Begins an episode in all environments, or where `reset_mask` `[B]` is True: the
        short-term memory of those is emptied, and all plans are made anew."""
        self.episode_memory.reset(reset_mask)
        self.num_resets += 1
        self._reset_planners(self.seed + self.num_resets)

    def clear(self) -> None:
        """Resets to the state after construction: no task, no episode."""
        self.context, self.seed, self.num_resets = None, 0, 0
        self.episode_memory.reset()
        self._reset_planners(0)

    def _reset_planners(self, seed: int) -> None:
        self.subgoals.reset(seed)
        self.evaluator.risk_model.reset(seed)
        for actor in self.actors.values():
            actor.reset(seed)

    @torch.no_grad()
    def act(self, obs: Observation) -> Plan:
        """Observations `[B, *O]` -> the plan whose first action should be executed. ConfigError for
        observations that give no finite plan; the episode is then as it was before."""
        with self.rollback_on_error():
            state, context = self.prepare(obs)
            plan = self.actors[context.mode](state, context)
            self._check_finite(state, plan)
        return plan

    def _check_finite(self, state: Tensor, plan: Plan) -> None:
        is_finite = state.isfinite().all(-1) & plan.actions.isfinite().flatten(1).all(1)
        is_finite &= plan.energy.isfinite() | ~plan.planned  # Mode-1 computes no energy
        if is_finite.all():
            return
        if not all(weights.isfinite().all() for weights in self.parameters()):
            raise ConfigError("the agent's weights are not finite: its training diverged")
        env = int((~is_finite).nonzero()[0])
        raise ConfigError(
            f"the observation of environment {env} gives a state or a plan that is not finite: its "
            "numbers are too large for this agent"
        )

    @torch.no_grad()
    def prepare(self, obs: Observation) -> tuple[Tensor, TaskContext]:
        """The next observations of the episode `[B, *O]` -> state `[B, D]` and task context."""
        if self.context is None:
            raise ConfigError("the agent has no task yet: call set_task(Task(...)) first")
        self.evaluator.risk_model.resample()
        obs = self._to_tensors("observation", obs)
        context, num_envs = self.context, batch_size(obs)
        if len(context.goal) not in (1, num_envs):
            raise ConfigError(f"{num_envs} observations, but {len(context.goal)} goals")
        uses_boredom = bool(context.weights.get("boredom"))
        state = self.episode_memory.update(
            self.perception(obs, context.modality_weights), MAX_STATES if uses_boredom else 1
        )
        context = context.select(torch.arange(num_envs, device=state.device) % len(context.goal))
        if uses_boredom:
            context = context._replace(
                episode_states=self.episode_memory.episode_states(),
                step_scale=self.world_model.step_scale(state),
            )
        return state, self.subgoals(state, context)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device

    def check_obs(self, label: str, obs: Observation) -> None:
        """Raises ConfigError unless it is a batch of observations of this agent's spec. `label`
        names it in the message."""
        modalities, given = self.spec.modalities, as_dict(obs)
        is_valid = given.keys() == modalities.keys() and all(
            isinstance(part, Tensor)
            and part.shape[1:] == modalities[name].shape
            and can_store(modalities[name].dtype, part.dtype)
            for name, part in given.items()
        )
        if not is_valid:
            raise ConfigError(
                f"the {label} is {_describe_parts(given)}; it must be a batch of "
                f"{self.spec.describe_obs()}"
            )

    def _to_tensors(self, label: str, obs: Observation) -> Observation:
        """Arrays or tensors -> tensors on the agent's device; ConfigError as in `check_obs`."""
        if not isinstance(obs, (Tensor, np.ndarray, Mapping)):
            raise ConfigError(
                f"the {label} is a {type(obs).__name__}; it must be a batch of "
                f"{self.spec.describe_obs()}"
            )

        def tensor(part: Any) -> Any:
            if not isinstance(part, (np.ndarray, Tensor)):
                return part
            try:
                return torch.as_tensor(part).detach().to(self.device)
            except (TypeError, ValueError):  # strings, objects, another byte order
                return part

        parts = {n: tensor(part) for n, part in obs.items()} if isinstance(obs, Mapping) else None
        converted: Observation = tensor(obs) if parts is None else parts
        self.check_obs(label, converted)
        return converted

    def encode(self, obs: Observation, modality_weights: ModalityWeights | None = None) -> Tensor:
        """Observations `[B, *O]` -> states `[B, D]`, as at the beginning of an episode."""
        if modality_weights is None:
            modality_weights = self.configurator.default_modality_weights
        features = self.perception(obs, modality_weights)
        state, _ = self.short_term_memory(features, self.short_term_memory.initial_state(features))
        return state

    def remember(self, transition: Transition) -> None:
        """Adds a step to the replay buffer."""
        self.replay_buffer.add(transition)


def _describe_parts(parts: Mapping[str, object]) -> str:
    def kind(part: object) -> str:
        return f"{tuple(part.shape)} {part.dtype}" if isinstance(part, Tensor) else str(type(part))

    return ", ".join(kind(p) if name == "obs" else f"{name} {kind(p)}" for name, p in parts.items())
