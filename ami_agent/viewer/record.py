"""Records episodes of an agent: what it planned at every step, and the outcome."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ami_agent.adapters.env import EnvAdapter, EnvConfig, check_same_spaces, rollout
from ami_agent.agent import Agent
from ami_agent.evaluation.evaluate import OutcomeTracker
from ami_agent.evaluation.policies import EpisodeStart, TaskTracker
from ami_agent.evaluation.progress import EpisodeProgress, PolicyProgress
from ami_agent.logger import Logger
from ami_agent.probing.data import factors_of
from ami_agent.viewer.camera import Camera, Pictures
from modules.actor.planning.tree_search import TreeSearch
from modules.configurator import TaskSpec
from modules.types import ConfigError, EvaluatedRollouts, Observation, Plan, Rollout, TaskContext

NUM_ENVS = 4  # that are recorded at once
MAX_STEPS_KEPT = 240
"""Steps of an episode that are kept; of a longer one every second step, or every fourth, ...."""
EXTRA_STEPS = 5  # that are shown after a success that lasts
SUCCESS_WORDS = {False: ("did not arrive", "arrived"), True: ("did not succeed", "succeeded")}
"""Failure and success in words, for tasks without drives and with them."""
STEPS_TO_GO = "steps to go"  # the unit of the goal critic


class SearchTree(NamedTuple):
    """What a tree search simulated from one state: equal beginnings are one branch."""

    choices: np.ndarray  # [N, H] int64: the option of every step of every simulation
    energies: np.ndarray  # [N]
    planned: np.ndarray  # [H] int64: the options of the plan


class RecordedStep(NamedTuple):
    """An episode before one of its actions."""

    step: int
    pictures: Pictures
    candidate_states: Tensor  # [P * K, H + 1, D]
    candidate_energies: np.ndarray  # [P]: of each action sequence; NaN in Mode-1
    planned_states: Tensor  # [H + 1, D]; H is 0 in Mode-1
    upper_plans: Tensor  # [L - 1, H, D]: of the levels above, top first; subgoals come first
    terms: Mapping[str, float]  # weighted energies of the plan; empty in Mode-1
    step_energies: Mapping[str, np.ndarray]  # each [H]: of every single imagined step
    best_energies: np.ndarray  # the lowest energy so far after each evaluation of the search
    critic_value: float  # of the current state, in the critics' unit
    search_tree: SearchTree | None  # None of planners that search no tree, and in Mode-1
    action: Tensor  # [A]: the one that is executed


class RecordedEpisode(NamedTuple):
    """An episode from its first step to its last."""

    env: str
    description: str  # of the environment and its task, for people; may be empty
    mode: str
    seed: int
    recorded_steps: Sequence[RecordedStep]
    states: Tensor  # [T, D]: the agent's state before every action
    factors: np.ndarray  # [T, F]; F is 0 where the environment reports none
    success_step: int | None  # steps until the first success
    final_success: bool  # success at the last step
    success_interrupted: bool  # no success at some step after the first
    has_success: bool  # the environment reports success
    episode_return: float  # the sum of the rewards
    has_drives: bool  # the task has drives
    context: TaskContext  # its goal is [1, D]

    @property
    def summary(self) -> str:
        """The outcome in words."""
        length = _steps(len(self.states))
        return_text = f"return {self.episode_return:.4g} in {length}"
        if not self.has_success:
            return f"seed {self.seed}: {return_text}"
        if self.success_step is None:
            outcome = f"{SUCCESS_WORDS[self.has_drives][0]} in {length}"
        else:
            ending = ", left and returned" if self.final_success else " and left again"
            ending = " and stayed" if self.success_lasts else ending
            outcome = f"{self.success_label} after {_steps(self.success_step)}{ending}"
        return f"seed {self.seed}: {outcome}{f'; {return_text}' if self.has_drives else ''}"

    @property
    def success_lasts(self) -> bool:
        """Success at every step from the first on."""
        return self.final_success and not self.success_interrupted

    @property
    def success_label(self) -> str:
        """What the agent has done at its first success, in a word."""
        return SUCCESS_WORDS[self.has_drives][1]

    @property
    def end_step(self) -> int:
        """Where pictures end: soon after a goal is reached for good, else at the last step."""
        if self.success_step is None or not self.success_lasts or self.has_drives:
            return len(self.states)
        return min(len(self.states), self.success_step + EXTRA_STEPS)

    @property
    def critic_unit(self) -> str:
        """The unit of the critics' values; empty where no critic has a weight."""
        weights = self.context.weights
        critics = [name for name, weight in weights.items() if "critic" in name and weight]
        return (STEPS_TO_GO if critics == ["critic"] else "cost to come") if critics else ""


def _steps(count: int) -> str:
    return f"{count} step" if count == 1 else f"{count} steps"


MODE_GROUPS = {"both": ("plan", "react")}
"""Names that stand for several modes."""


@dataclass(frozen=True, kw_only=True)
class EpisodeSelection:
    """Which episodes are recorded: those of seeds `seed`, `seed` + 1, ..., each once in every
    mode."""

    episodes: int = 3
    mode: str = "plan"
    """One of the agent's modes, or "both": Mode-2 and Mode-1."""
    task: str = ""
    """The name of one of the agent's tasks; the first task if empty."""
    seed: int = 0
    max_steps: int | None = None
    """Steps after which episodes are cut off."""
    recorded_steps: Mapping[str, float] = field(default_factory=dict)
    """Steps of earlier episodes by mode, for the time left."""

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise ConfigError(f"episodes is {self.episodes}; it must be at least 1")

    @property
    def modes(self) -> tuple[str, ...]:
        return MODE_GROUPS.get(self.mode, (self.mode,))


StepCallback: TypeAlias = Callable[[Sequence[RecordedEpisode]], None]
"""Called at every step with the episodes so far."""


def record_episodes(
    agent: Agent, config: EnvConfig, camera: Camera | None, selection: EpisodeSelection,
    logger: Logger, callback: StepCallback | None = None,
) -> Iterator[tuple[RecordedEpisode, ...]]:  # fmt: skip
    """The selected episodes, one after the other, each in every mode. `callback` is called at every
    step; with one, only the last step of an episode is kept. Without a camera no picture is
    recorded."""
    agent.eval()
    task_spec = agent.task_spec(selection.task)
    progress = PolicyProgress(logger, selection.recorded_steps, "act")

    def record_batch(mode: str, env: EnvAdapter, first: int) -> list[RecordedEpisode]:
        check_same_spaces(agent.spec, env.spec, config)
        seed = selection.seed + first
        recorder = _Recorder(agent, env, camera, mode, task_spec, seed, callback)
        with progress.policy(mode, env.num_envs) as bar:
            return recorder.record(bar, selection.max_steps)

    def episodes_of(mode: str) -> Iterator[RecordedEpisode]:
        for batch in config.run_in_batches(
            selection.episodes, partial(record_batch, mode), agent.device, NUM_ENVS,
            **({} if camera is None else camera.options),
        ):  # fmt: skip
            yield from batch

    return zip(*map(episodes_of, selection.modes), strict=True)


class _Recorder:
    """Acts in B environments until the first episode of each is done, and records it."""

    def __init__(
        self, agent: Agent, env: EnvAdapter, camera: Camera | None, mode: str,
        task_spec: TaskSpec, seed: int, callback: StepCallback | None,
    ) -> None:  # fmt: skip
        self.agent, self.env, self.camera, self.mode = agent, env, camera, mode
        self.task_spec, self.seed, self.callback = task_spec, seed, callback
        self.controller = agent.controller(env.num_envs, tensors=True)
        self.outcome = OutcomeTracker(env)
        self.success_interrupted = torch.zeros(env.num_envs, dtype=torch.bool)
        self.step, self.interval = 0, 1
        self.recorded_steps: list[list[RecordedStep]] = [[] for _ in range(env.num_envs)]
        self.states: list[Tensor] = []  # of T steps, each [B, D]
        self.factors: list[np.ndarray] = []  # of T steps, each [B, F]

    def record(self, progress: EpisodeProgress, max_steps: int | None) -> list[RecordedEpisode]:
        obs, self.info = self.env.reset(self.seed)
        progress.begin(self.env)
        start = EpisodeStart(self.env, obs, self.info)
        self.controller.set_task(TaskTracker(self.task_spec).task(start, self.mode), self.seed)
        for step_result in islice(rollout(self._act, self.env, obs), max_steps):
            self.info = step_result.info
            self.outcome.update(step_result)
            results = self.outcome.results
            self.success_interrupted |= (results.success == 1) & (results.final_success == 0)
            progress.advance(self.outcome.results.length, self.outcome.running)
            if not self.outcome.running.any():
                break
        return self._episodes_so_far()

    def _episodes_so_far(self) -> list[RecordedEpisode]:
        """The episodes so far, the current step included."""
        config, context = self.env.config, self.controller.context
        name, results = f"{config.id} {config.variant}".strip(), self.outcome.results
        goals = context.goal.expand(self.env.num_envs, -1)
        states, factors = torch.stack(self.states, 1), np.stack(self.factors, 1)
        length = (results.length + self.outcome.running).int().clamp(max=len(self.states))
        return [
            RecordedEpisode(
                name, self.env.description, self.mode, self.seed + i, self.recorded_steps[i],
                states[i, : length[i]], factors[i, : length[i]],
                None if results.steps[i].isnan() else int(results.steps[i]),
                bool(results.final_success[i] == 1), bool(self.success_interrupted[i]),
                not bool(results.success.isnan().all()), float(results.signal_sums[i, 0]),
                bool(self.task_spec.drives),
                context._replace(goal=goals[i : i + 1]),
            )
            for i in range(self.env.num_envs)
        ]  # fmt: skip

    @torch.no_grad()
    def _act(self, obs: Observation) -> Tensor:
        state, context = self.controller.perceive(obs, self.env.interoception)
        with record_search(self.agent) as search:
            plan = self.controller.plan(state, context)
        self.states.append(state.cpu())
        self.factors.append(factors_of(self.env, self.info).numpy())
        if self.callback is not None:
            self.recorded_steps = [[] for _ in self.recorded_steps]
        elif self.step == self.interval * MAX_STEPS_KEPT:
            self.interval *= 2
            for i in np.flatnonzero(self.outcome.running):
                self.recorded_steps[i] = self.recorded_steps[i][::2]
        if self.step % self.interval == 0:
            self._record(state, plan, context, search)
        self.step += 1
        return plan.action

    def _record(
        self, state: Tensor, plan: Plan, context: TaskContext, search: list[Evaluation]
    ) -> None:
        pictures = [()] * len(state) if self.camera is None else self.camera(self.env)
        step_energies = per_step_energy(self.agent, plan, context)
        critic_values = critic_value(self.agent, state, self.controller.context)
        best_energies, trees = best_so_far(search, plan), search_trees(self.agent, search, plan)
        candidates, planned, upper_plans = (
            p.cpu() for p in (plan.candidate_states, plan.states, plan.upper_plans)
        )
        energies = plan.candidate_energies.cpu().numpy()
        for i in np.flatnonzero(self.outcome.running):
            self.recorded_steps[i].append(
                RecordedStep(
                    self.step, pictures[i], candidates[i], energies[i], planned[i], upper_plans[i],
                    {name: float(term[i]) for name, term in plan.terms.items()},
                    {name: term[i] for name, term in step_energies.items()}, best_energies[i],
                    float(critic_values[i]), trees[i], plan.action[i].cpu(),
                )
            )  # fmt: skip
        if self.callback is not None:
            self.callback(self._episodes_so_far())


class Evaluation(NamedTuple):
    """Action sequences that a planner compared at once, of the N environments that plan."""

    energy: Tensor  # [N, P]
    actions: Tensor  # [N, P, H, A]


@contextmanager
def record_search(agent: Agent) -> Iterator[list[Evaluation]]:
    """Collects every evaluation of the planner."""
    search: list[Evaluation] = []

    def collect(evaluated: EvaluatedRollouts) -> None:
        search.append(Evaluation(evaluated.energy.detach(), evaluated.rollout.actions.detach()))

    callbacks = agent.evaluator.callbacks
    callbacks.append(collect)
    try:
        yield search
    finally:
        callbacks.pop()


def best_so_far(search: Sequence[Evaluation], plan: Plan) -> list[np.ndarray]:
    """For each of B environments the lowest energy so far after each evaluation."""
    lowest = [evaluation.energy.amin(1).cpu().numpy() for evaluation in search]
    return [np.minimum.accumulate(np.array(rounds)) for rounds in _by_env(lowest, plan)]


def search_trees(agent: Agent, search: Sequence[Evaluation], plan: Plan) -> list[SearchTree | None]:
    """For each of B environments what the tree search simulated; None where none did."""
    planner = agent.planner
    if not isinstance(planner, TreeSearch):
        return [None] * len(plan.energy)
    options = planner.options.to(plan.actions).T  # [A, J]

    def chosen(actions: Tensor) -> np.ndarray:
        return (actions @ options).argmax(-1).cpu().numpy()

    choices = _by_env([chosen(evaluation.actions[:, 0]) for evaluation in search], plan)
    energies = _by_env([evaluation.energy[:, 0].cpu().numpy() for evaluation in search], plan)
    of_plan = zip(choices, energies, chosen(plan.actions), strict=True)
    return [SearchTree(np.array(c), np.array(e), p) if e else None for c, e, p in of_plan]


def _by_env(rounds: Sequence[np.ndarray], plan: Plan) -> list[list[Any]]:
    """What each evaluation `[N, ...]` has for each environment that plans, one after the other;
    where `auto` plans in some, the others have nothing."""
    num_envs = len(plan.energy)
    planned_envs = plan.planned.nonzero().squeeze(1).tolist()
    found: list[list[Any]] = [[] for _ in range(num_envs)]
    for parts in rounds:
        env_ids = range(num_envs) if len(parts) == num_envs else planned_envs
        for env_id, part in zip(env_ids, parts, strict=False):
            found[env_id].append(part)
    return found


@torch.no_grad()
def per_step_energy(agent: Agent, plan: Plan, context: TaskContext) -> dict[str, np.ndarray]:
    """The energy of every imagined step of the plan, by term, each `[B, H]`; empty without any."""
    starts, ends = plan.states[:, :-1], plan.states[:, 1:]
    if not plan.terms or not starts.shape[1]:
        return {}
    terms = _step_energies(agent, starts, ends, plan.actions[:, : starts.shape[1]], context)
    return {name: term.cpu().numpy() for name, term in terms.items()}


@torch.no_grad()
def critic_value(agent: Agent, states: Tensor, context: TaskContext) -> np.ndarray:
    """The weighted sum `[N]` of the context's critics, for staying in states `[N, D]`."""
    weights = {name: weight for name, weight in context.weights.items() if "critic" in name}
    rest = states.new_zeros(len(states), 1, agent.spec.action_dim)
    critics_only = context._replace(weights=weights, limits={})
    terms = _step_energies(agent, states[:, None], states[:, None], rest, critics_only)
    return sum(terms.values(), rest.sum(-1))[:, 0].cpu().numpy()


def _step_energies(
    agent: Agent, starts: Tensor, ends: Tensor, actions: Tensor, context: TaskContext
) -> dict[str, Tensor]:
    """Steps from states to states `[B, N, D]` by actions `[B, N, A]`, each a rollout of its own ->
    weighted energies by term, each `[B, N]`."""
    start, end, action = starts[:, :, None], ends[:, :, None], actions[:, :, None]
    interoception = agent.world_model.interoception_head.predict(start, action, end)
    rollout = Rollout(torch.cat([start, end], 2), action, action[..., :0], interoception)
    return agent.cost(rollout, context)
