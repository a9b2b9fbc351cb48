"""The agent: its modules, and how an observation becomes a plan.

An `Agent` holds weights and settings. What an episode changes is held by a `Controller`; an agent
can have any number of them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from math import isfinite, prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ami_agent.adapters.env import EnvironmentSpec
from ami_agent.adapters.tensors import Interface, to_array
from ami_agent.argument_checks import check_count
from ami_agent.storage import memory_files
from modules.actor.auto_mode import PlanEnergyPredictor
from modules.actor.planning import RolloutEvaluator
from modules.actor.policy import Policy
from modules.actor.subgoals import Hierarchy, RememberedGoal
from modules.by_hand.protocol import own_method
from modules.configurator import Configurator, Task, TaskSpec
from modules.cost.cost import Cost
from modules.memory.lasting import LastingMemory, LastingMemoryConfig, Memories
from modules.memory.replay_buffer import ReplayBuffer
from modules.memory.replay_storage import can_store
from modules.memory.short_term import (
    MAX_STATES,
    EpisodeMemory,
    ReferenceObservations,
    ShortTermMemory,
)
from modules.types import (
    ActorProtocol,
    ConfigError,
    ModalityWeights,
    Observation,
    Plan,
    PlannerProtocol,
    TaskContext,
    Transition,
)
from modules.world_model.jepa import WorldModel


class Agent(nn.Module):
    """Perception, memory, world model, cost, actor and configurator (LeCun 2022, figure 2)."""

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
        subgoals: Hierarchy | None,
        replay_buffer: ReplayBuffer,
        configurator: Configurator,
        actors: Mapping[str, ActorProtocol],
        planner: PlannerProtocol,
        evaluator: RolloutEvaluator,
        tasks: Mapping[str, TaskSpec],
        lasting_memory: LastingMemoryConfig | None = None,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.perception, self.short_term_memory = perception, short_term_memory
        self.reference_obs, self.world_model, self.cost = reference_obs, world_model, cost
        self.policy, self.plan_energy_predictor = policy, plan_energy_predictor
        self.subgoals, self.replay_buffer = subgoals, replay_buffer
        self.configurator, self.actors, self.tasks = configurator, actors, tasks
        self.planner, self.evaluator = planner, evaluator
        self.lasting_memory = lasting_memory
        self.shape: tuple[int, int, int] = perception.shape  # type: ignore[assignment]

    def controller(
        self, num_envs: int | None = None, task: Task | None = None, seed: int = 0,
        tensors: bool = False,
    ) -> Controller:  # fmt: skip
        """The agent acting in environments: see `Controller`."""
        return Controller(self, num_envs, task, seed, tensors)

    def start_compilation(self) -> None:
        """From now on plans are made by compiled functions, each compiled when it is first called
        and once for each shape. ConfigError where there is no compiler, and for other planners than
        `GradientPlanner`."""
        start = own_method(self.planner, "start_compilation")
        if start is None:
            raise ConfigError(
                f"a {type(self.planner).__name__} can't be compiled, only a GradientPlanner: leave "
                "--compile out"
            )
        start()

    @torch.no_grad()
    def context(self, task: Task) -> TaskContext:
        """The task as every module reads it. Its goal is an observation as the agent's encoders
        take it, `[B, *O]` or `[1, *O]`. ConfigError for a task that this agent can't pursue."""
        self.configurator.check_goal(task)
        if task.goal is not None and isinstance(self.subgoals, RememberedGoal):
            raise ConfigError(
                "the task has a goal, but this agent takes its goals from lasting memory "
                "(actor.subgoals is RememberedGoal)"
            )
        modality_weights = self.configurator.modality_weights(task)
        if task.goal is None:
            goal = torch.zeros(1, prod(self.shape))
        else:
            goal = self.encode(self.to_tensors("goal", task.goal), modality_weights)
            if not goal.isfinite().all():
                env = int((~goal.isfinite().all(-1)).nonzero()[0])
                raise ConfigError(
                    f"the goal of environment {env} gives a state that is not finite: its numbers "
                    "are too large for this agent"
                )
        context = self.configurator.context(task, goal.to(self.device))
        context = context._replace(task_index=self._index_of(task))
        self.cost.validate_weights(context.weights)
        if context.weights.get("boredom"):
            reference_obs = self.reference_obs.observations()
            context = context._replace(
                reference_states=self.encode(reference_obs, modality_weights)
            )
        return context

    def _index_of(self, task: Task) -> int | None:
        """The index of the agent's task with the same costs, which decide the scale of the energy,
        if possible with the same horizon and level of risk; None if there is none."""
        no_goal = [spec.to_task(None, task.mode) for spec in self.tasks.values()]
        any_goal = torch.zeros(1)
        known = [
            spec.to_task(None if spec.goal_source == "none" else any_goal, task.mode)
            for spec in self.tasks.values()
        ]
        costs = self._costs(task)
        alike = [index for index, other in enumerate(known) if self._costs(other) == costs]
        equal = [index for index in alike if no_goal[index] == replace(task, goal=None)]
        return next(iter([*equal, *alike]), None)

    def _costs(self, task: Task) -> tuple[Mapping[str, float], ...]:
        """What decides the energy of a task: weights that are not 0, limits, modality weights."""
        weights = {n: w for n, w in self.configurator.cost_weights(task).items() if w}
        return weights, task.limits, self.configurator.modality_weights(task)

    def task_spec(self, task: str) -> TaskSpec:
        """The task of that name; the first one if the name is empty."""
        tasks = self.tasks
        if task and task not in tasks:
            raise ConfigError(f"no task {task!r}; this agent has {', '.join(tasks)}")
        return tasks[task or next(iter(tasks))]

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device

    def to_tensors(self, label: str, obs: Observation) -> Observation:
        """Arrays or tensors -> tensors on the agent's device; ConfigError unless they are a batch
        of observations of this agent's spec. `label` names them in the message."""

        def read(part: Any) -> Any:
            with suppress(TypeError, ValueError):  # strings, objects, another byte order
                if isinstance(part, (np.ndarray, Tensor)):
                    return torch.as_tensor(part).to(self.device).detach()
            return part

        modalities, parts = self.spec.modalities, obs if isinstance(obs, Mapping) else {"obs": obs}
        tensors = {name: read(part) for name, part in parts.items()}
        is_valid = tensors.keys() == modalities.keys() and all(
            isinstance(part, Tensor)
            and part.shape[1:] == modalities[name].shape
            and can_store(modalities[name].dtype, part.dtype)
            for name, part in tensors.items()
        )
        if not is_valid:
            given = [
                ("" if name == "obs" else f"{name} ") + _describe(part)
                for name, part in tensors.items()
            ]
            raise ConfigError(
                f"the {label} is {', '.join(given)}; it must be a batch of "
                f"{self.spec.describe_obs()}"
            )
        return tensors if isinstance(obs, Mapping) else tensors["obs"]

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


class EpisodeState(NamedTuple):
    """Everything that episodes change. No part of it is ever altered in place."""

    context: TaskContext | None  # None before a task is set
    memory: EpisodeMemory
    lasting: LastingMemory  # what outlives the episodes
    subgoals: Any  # what the levels above carry from step to step
    actors: Mapping[str, Any]  # what each actor carries, by mode
    noise_rng: torch.Generator  # of the sampled futures
    num_resets: int  # since a seed was set


class Controller:
    """An agent acting in B environments at once. It holds everything that its episodes change:
    short-term memory, warm starts, the rest of plans that are executed open loop, feedback on
    edges, random streams. Controllers of one agent don't disturb each other.

        controller = agent.controller(num_envs=2, task=ami.Task(goal=info["goal"]))
        plan = controller.act(obs)  # plan.env_action is what env.step takes
        controller.reset(done)  # before the first observation of new episodes is acted on

    An agent with lasting memory also takes the interoceptive signals that came with an observation,
    `controller.act(obs, signals)`, that of the last step of an episode included; `reset` then keeps
    what came of the episode, and `forget` empties that memory.
    """

    def __init__(
        self,
        agent: Agent,
        num_envs: int | None = None,
        task: Task | None = None,
        seed: int = 0,
        tensors: bool = False,
    ) -> None:
        """`num_envs`: how many environments step together, so that observations are batches as
        `gymnasium.make_vec` delivers them; None for a single environment, whose observations and
        actions have no batch axis. `seed`: that of the random streams of planning. `tensors`:
        observations and goals are not what an environment delivers but tensors as the agent's
        encoders take them, `[B, *O]`, for any B."""
        if num_envs is not None:
            check_count("num_envs", num_envs, 1)
        check_count("seed", seed, 0)
        self.agent, self.num_envs, self.seed, self.tensors = agent, num_envs, seed, tensors
        self.episode = self._planners_reset(None, EpisodeMemory(), LastingMemory(), num_resets=0)
        if task is not None:
            self.set_task(task)

    @property
    def context(self) -> TaskContext:
        """The task as every module reads it; ConfigError before one is set."""
        if self.episode.context is None:
            raise ConfigError("the agent has no task yet: call set_task(Task(...)) first")
        return self.episode.context

    def set_task(self, task: Task, seed: int | None = None) -> None:
        """Sets the task, in the middle of an episode too: plans are made anew, the short-term
        memory stays. Its goal is an observation, one for each environment or one for all.
        ConfigError for a task that this agent can't pursue; the old one stays."""
        if not isinstance(task, Task):
            raise ConfigError(f"the task is a {type(task).__name__}; it must be an ami.Task")
        if seed is not None:
            check_count("seed", seed, 0)
        if task.goal is not None and not self.tensors:
            sizes = None if self.num_envs is None else {self.num_envs, 1}
            task = replace(task, goal=self._interface().read(task.goal, sizes, "goal"))
        context, memory = self.agent.context(task), self.episode.memory
        old = self.episode.context
        if old is not None and context.modality_weights != old.modality_weights:
            memory = memory.reset()  # its states were encoded with other modality weights
        num_resets = self.episode.num_resets if seed is None else 0
        self.seed = self.seed if seed is None else seed
        self.episode = self._planners_reset(context, memory, self.episode.lasting, num_resets)

    def reset(self, done: Any = None, keep_plans: bool = False) -> None:
        """Begins an episode in all environments, or where `done` `[B]` is True: the short-term
        memory of those is emptied, lasting memory takes up what it held, and all plans are made
        anew. `keep_plans`: what planners carry stays, so that the last plans are the warm start of
        the next; what is left of plans and of detours does not."""
        mask = None if done is None else self._mask(done)
        if mask is None or mask.any():
            before, config = self.episode, self.agent.lasting_memory
            lasting = before.lasting
            if config is not None:
                lasting = lasting.end_episodes(config, mask)
            memory = before.memory.reset(mask)
            self.episode = self._planners_reset(
                before.context, memory, lasting, before.num_resets + 1
            )
            if keep_plans:
                actors = {
                    mode: carry._replace(planner=before.actors[mode].planner)
                    if "planner" in getattr(carry, "_fields", ())
                    else carry
                    for mode, carry in self.episode.actors.items()
                }
                self.episode = self.episode._replace(actors=actors, noise_rng=before.noise_rng)

    def forget(self, envs: Any = None) -> None:
        """Empties the lasting memory of all environments, or where `envs` `[B]` is True."""
        mask = None if envs is None else self._mask(envs)
        self.episode = self.episode._replace(lasting=self.episode.lasting.forget(mask))

    def save_memory(self, folder: str | Path) -> None:
        """Writes the lasting memory of the episodes that have ended into a folder, whole or not at
        all: `controller.save_memory("runs/hidden-food/0/memory")`."""
        self._blank_memories()
        memories = self.episode.lasting.memories
        if memories is None:
            raise ConfigError("there is no lasting memory to save yet: no episode has begun")
        memory_files.save(Path(folder), memories, self._encoder_fingerprint())

    def load_memory(self, folder: str | Path) -> None:
        """Replaces the lasting memory by a saved one; an episode begins. ConfigError unless that is
        whole, of this run and of as many environments; the present memory then stays."""
        any_batch = self.tensors and self.num_envs is None
        blank, encoder = self._blank_memories(), self._encoder_fingerprint()
        memories = memory_files.load(Path(folder), blank, encoder, any_batch)
        self.episode = self.episode._replace(lasting=LastingMemory(memories))
        self.reset()

    def _blank_memories(self) -> Memories:
        """Memories of the size that this controller has; ConfigError without lasting memory."""
        agent, config = self.agent, self.agent.lasting_memory
        if config is None:
            raise ConfigError("this agent has no lasting memory: memory.lasting is None")
        drives = agent.cost.interoceptive_cost.drives.names
        states = torch.zeros(self.num_envs or 1, prod(agent.shape), device=agent.device)
        return Memories.blank(config, states, len(drives))

    def _encoder_fingerprint(self) -> str:
        drives = self.agent.cost.interoceptive_cost.drives.names
        return memory_files.fingerprint(drives, self.agent.perception, self.agent.short_term_memory)

    def act(self, obs: Any, interoception: Any = None) -> Plan:
        """The next observations of the episode, as `env.reset` or `env.step` returned them -> the
        plan whose first action should be executed; its `env_action` is what `env.step` takes.
        `interoception`: the signals that came with them, as `perceive` takes them. ConfigError for
        observations that are not of the observation space or give no finite plan; the controller
        is then as it was before."""
        before = self.episode
        try:
            state, context = self.perceive(obs, interoception)
            plan = self.plan(state, context)
            self._check_finite(state, context, plan)
        except BaseException:
            self.episode = before
            raise
        if self.tensors:
            return plan
        first = plan.actions[:, 0]
        env_action = self._interface().env_action(first, batch=self.num_envs is not None)
        return plan._replace(env_action=env_action)

    @torch.no_grad()
    def perceive(self, obs: Any, interoception: Any = None) -> tuple[Tensor, TaskContext]:
        """The first half of `act`: observation -> perception -> short-term memory -> state
        `[B, D]`; and the context of this step, with the subgoal as its goal. `interoception`
        `[B, I]`: the signals that came with the observation, in the order of the agent's spec,
        whose costs lasting memory takes up; None: none came, as at the start of an episode."""
        agent, episode, task = self.agent, self.episode, self.context
        features = agent.perception(self._read(obs), task.modality_weights)
        keep = MAX_STATES if task.weights.get("boredom") else 1
        state, memory = episode.memory.update(agent.short_term_memory, features, keep)
        signals = self._read_signals(interoception, state)
        context, noise_rng = self._context_of_step(state, memory)
        lasting, subgoals = episode.lasting, episode.subgoals
        if agent.lasting_memory is not None:
            lasting = lasting.record(
                agent.lasting_memory, state, self._drive_costs(signals, state),
                context.step_scale,
            )  # fmt: skip
            assert context.drive_weights is not None
            remembered, lasting = lasting.read(agent.lasting_memory, context.drive_weights)
            context = context._replace(remembered=remembered)
        if agent.subgoals is not None:
            context, subgoals = agent.subgoals(state, context, subgoals)
        self.episode = episode._replace(
            memory=memory, lasting=lasting, subgoals=subgoals, noise_rng=noise_rng
        )
        return state, context

    @torch.no_grad()
    def plan(self, state: Tensor, context: TaskContext) -> Plan:
        """The second half of `act`: state `[B, D]` and context, of `perceive` -> the plan of the
        actor of this mode."""
        episode, mode = self.episode, context.mode
        plan, carry = self.agent.actors[mode](state, context, episode.actors[mode])
        self.episode = episode._replace(actors={**episode.actors, mode: carry})
        return plan

    def _context_of_step(
        self, state: Tensor, memory: EpisodeMemory
    ) -> tuple[TaskContext, torch.Generator]:
        """The context of B environments, with what a plan from these states `[B, D]` needs of the
        episode so far and of chance; and the random stream after that."""
        agent, context, noise_rng = self.agent, self.context, self.episode.noise_rng
        if len(context.goal) not in (1, len(state)):
            raise ConfigError(f"there are {len(state)} observations, but {len(context.goal)} goals")
        if len(context.goal) != len(state):
            context = context.select(torch.zeros(len(state), dtype=torch.long, device=state.device))
        if context.weights.get("boredom"):
            context = context._replace(episode_states=memory.episode_states())
        if context.weights.get("boredom") or agent.lasting_memory is not None:
            context = context._replace(step_scale=agent.world_model.step_scale(state))
        if context.mode != "react":  # Mode-1 imagines nothing
            noise_rng = noise_rng.clone_state()
            context = agent.evaluator.with_noise(context, noise_rng)
        return context, noise_rng

    def _read_signals(self, interoception: Any, state: Tensor) -> Tensor | None:
        """Signals `[B, I]`, or `[I]` of a single environment -> `[B, I]`, on the device of the
        state; None where there are none. ConfigError for others."""
        if interoception is None:
            return None
        names = self.agent.spec.interoception
        shape = [len(state), len(names)]
        try:
            signals = torch.as_tensor(to_array(interoception), dtype=state.dtype)
        except (TypeError, ValueError, RuntimeError):
            given = f"a {type(interoception).__name__}"
        else:
            is_finite = bool(signals.isfinite().all())
            given = f"of shape {list(signals.shape)}" + ("" if is_finite else " and not finite")
            signals = signals[None] if self.num_envs is None and signals.ndim == 1 else signals
            if list(signals.shape) == shape and is_finite:
                return signals.to(state.device)
        if self.num_envs is None and not self.tensors:
            shape = shape[1:]
        raise ConfigError(
            f"the interoception is {given}; it must be finite numbers of shape {shape}: "
            f"{', '.join(names)} of each environment"
        )

    def _drive_costs(self, signals: Tensor | None, state: Tensor) -> Tensor:
        """Signals `[B, I]` -> the cost of each drive, `[B, W]`; 0 where there are none."""
        drives = self.agent.cost.interoceptive_cost.drives
        return (
            state.new_zeros(len(state), len(drives.names)) if signals is None else drives(signals)
        )

    def _planners_reset(
        self, context: TaskContext | None, memory: EpisodeMemory, lasting: LastingMemory,
        num_resets: int,
    ) -> EpisodeState:  # fmt: skip
        """The state in which all plans are made anew, with other random streams at each reset."""
        agent, seed = self.agent, self.seed + num_resets
        return EpisodeState(
            context=context,
            memory=memory,
            lasting=lasting,
            subgoals=None if agent.subgoals is None else agent.subgoals.initial_carry(seed),
            actors={mode: actor.initial_carry(seed) for mode, actor in agent.actors.items()},
            noise_rng=torch.Generator().manual_seed(seed),
            num_resets=num_resets,
        )

    def _read(self, obs: Any) -> Observation:
        """Observations as the agent's encoders take them."""
        if self.tensors:
            return self.agent.to_tensors("observation", obs)
        sizes = None if self.num_envs is None else {self.num_envs}
        obs, device = self._interface().read(obs, sizes), self.agent.device
        if isinstance(obs, Tensor):
            return obs.to(device)
        return {name: part.to(device) for name, part in obs.items()}

    def _interface(self) -> Interface:
        interface = self.agent.spec.interface
        if interface is None:
            raise ConfigError(
                "this agent was built without the spaces of an environment, so it can't read its "
                "observations: build it with the spec of an environment"
            )
        return interface

    def _mask(self, done: Any) -> Tensor:
        expected_shape: tuple[int, ...] = () if self.num_envs is None else (self.num_envs,)
        try:
            mask = to_array(done)
        except Exception:  # whatever the conversion of an object of any kind raises
            raise ConfigError(
                f"done is a {type(done).__name__}; it must be bool of shape {expected_shape}"
            ) from None
        if self.tensors and self.num_envs is None:  # any B, but that of the episode
            states = self.episode.memory.states
            expected_shape = (len(states[0]),) if states else mask.shape
        if mask.dtype != np.bool_ or mask.shape != expected_shape:
            raise ConfigError(
                f"done is {mask.dtype} of shape {mask.shape}; it must be bool of shape "
                f"{expected_shape}"
            )
        return torch.as_tensor(mask.reshape(-1))

    def _check_finite(self, state: Tensor, context: TaskContext, plan: Plan) -> None:
        finite_energy = context.mode == "react" or all(map(isfinite, plan.energy.tolist()))
        if finite_energy and all(
            np.isfinite(part.float().cpu().numpy()).all() for part in (state, plan.actions)
        ):
            return
        is_finite = state.isfinite().all(-1) & plan.actions.isfinite().flatten(1).all(1)
        is_finite &= plan.energy.isfinite() | ~plan.planned  # Mode-1 computes no energy
        if is_finite.all():
            return
        if not all(weights.isfinite().all() for weights in self.agent.parameters()):
            raise ConfigError("the agent's weights are not finite: its training diverged")
        env = int((~is_finite).nonzero()[0])
        raise ConfigError(
            f"the observation of environment {env} gives a state or a plan that is not finite: its "
            "numbers are too large for this agent"
        )


def _describe(part: object) -> str:
    if isinstance(part, Tensor):
        return f"{tuple(part.shape)} {part.dtype}"
    return f"a {type(part).__name__}"
