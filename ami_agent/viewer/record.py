"""Records episodes of an agent: what it planned at every step, and the outcome."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from ami_agent.adapters.env import (
    EnvAdapter,
    EnvConfig,
    HasFactors,
    StepResult,
    check_same_spaces,
    done_of,
    rollout,
)
from ami_agent.agent import Agent
from ami_agent.evaluation.evaluate import FINAL_SUCCESS_NAMES, SUCCESS_NAMES, read_info
from ami_agent.evaluation.policies import EpisodeStart, task_of
from ami_agent.logger import Logger, Progress
from ami_agent.viewer.camera import Camera, Pictures
from ami_agent.viewer.introspect import best_so_far, critic_value, per_step_energy, record_search
from modules.configurator import TaskSpec
from modules.types import ConfigError, Observation, Plan, TaskContext

NUM_ENVS = 4
"""Environments that are recorded at once."""

MAX_STEPS_KEPT = 240
"""Steps of an episode whose pictures and plans are kept; of a longer episode every second step, or
every fourth, and so on."""

DEFAULT_EPISODE_STEPS = 1000
"""Steps of an episode, for the progress bar, where the environment doesn't say."""


@runtime_checkable
class HasEpisodeLength(Protocol):
    """An environment that says after how many steps an episode is done."""

    max_episode_steps: int


EXTRA_STEPS = 5
"""Steps that are shown after a success that lasts."""

SUCCESS_WORDS = {False: ("did not arrive", "arrived"), True: ("did not succeed", "succeeded")}
"""Failure and success in words, for tasks without drives and with them."""


class RecordedStep(NamedTuple):
    """An episode before one of its actions."""

    step: int
    pictures: Pictures
    candidate_states: Tensor  # [P * K, H + 1, D]
    candidate_energies: np.ndarray  # [P]: of each action sequence
    planned_states: Tensor  # [H + 1, D]; H is 0 in Mode-1
    upper_plans: Tensor  # [L - 1, H, D]: of the levels above, top first; subgoals come first
    terms: Mapping[str, float]  # weighted energies of the plan; empty in Mode-1
    step_energies: Mapping[str, np.ndarray]  # each [H]: of every single imagined step
    best_energies: np.ndarray  # the lowest energy so far after each evaluation of the search
    critic_value: float  # of the current state, in the critics' unit


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
    has_success: bool  # the environment reports success
    episode_return: float  # the sum of the rewards
    has_drives: bool  # the task has drives
    context: TaskContext  # its goal is [1, D]

    @property
    def summary(self) -> str:
        """The outcome in words."""
        return_text = f"return {self.episode_return:.4g} in {_steps(len(self.states))}"
        if not self.has_success:
            return f"seed {self.seed}: {return_text}"
        outcome = f"seed {self.seed}: {self._outcome()}"
        return f"{outcome}; {return_text}" if self.has_drives else outcome

    @property
    def success_label(self) -> str:
        """What the agent has done at its first success, in a word."""
        return SUCCESS_WORDS[self.has_drives][1]

    @property
    def end_step(self) -> int:
        """The step at which pictures end: soon after a goal is reached for good, else the last
        one."""
        if self.success_step is None or not self.final_success or self.has_drives:
            return len(self.states)
        return min(len(self.states), self.success_step + EXTRA_STEPS)

    def _outcome(self) -> str:
        if self.success_step is None:
            return f"{SUCCESS_WORDS[self.has_drives][0]} in {_steps(len(self.states))}"
        ending = "and stayed" if self.final_success else "and left again"
        return f"{self.success_label} after {_steps(self.success_step)} {ending}"


StepCallback: TypeAlias = Callable[[Callable[[], Sequence[RecordedEpisode]]], None]
"""Called at every step with a function that returns the episodes so far."""


def no_callback(episodes: Callable[[], Sequence[RecordedEpisode]]) -> None:
    """Does nothing; the episodes are read when they are done."""


def _steps(count: int) -> str:
    return f"{count} step" if count == 1 else f"{count} steps"


def record_episodes(
    agent: Agent, config: EnvConfig, camera: Camera, episodes: int, modes: Sequence[str],
    seed: int, task_spec: TaskSpec, logger: Logger, max_steps: int | None = None,
    callback: StepCallback = no_callback,
) -> Iterator[tuple[RecordedEpisode, ...]]:  # fmt: skip
    """The episodes of seeds `seed`, `seed` + 1, ..., each once in every mode, cut off after
    `max_steps`. `callback` is called at every step; with one, only the last step of an episode is
    kept."""
    if episodes < 1:
        raise ConfigError(f"episodes is {episodes}; it must be at least 1")
    agent.eval()

    def record_batch(mode: str, env: EnvAdapter, first: int) -> list[RecordedEpisode]:
        check_same_spaces(agent.spec, env.spec, config)
        recorder = _Recorder(agent, env, camera, seed + first, callback)
        with logger.progress(f"act, {mode}", _episode_length(env)) as bar:
            return recorder.record(config, mode, task_spec, bar, max_steps)

    def episodes_of(mode: str) -> Iterator[RecordedEpisode]:
        record = partial(record_batch, mode)
        for batch in config.run_in_batches(
            episodes, record, agent.device, NUM_ENVS, **camera.options
        ):
            yield from batch

    return zip(*map(episodes_of, modes), strict=True)


def _episode_length(env: EnvAdapter) -> int:
    if isinstance(env.unwrapped, HasEpisodeLength):
        return env.unwrapped.max_episode_steps
    spec = env.vector_env.spec
    return (spec.max_episode_steps if spec else None) or DEFAULT_EPISODE_STEPS


class _Recorder:
    """Acts in B environments until the first episode of each is done, and records it."""

    def __init__(
        self, agent: Agent, env: EnvAdapter, camera: Camera, seed: int, callback: StepCallback
    ) -> None:
        self.agent, self.env, self.camera, self.seed = agent, env, camera, seed
        self.controller = agent.controller(env.num_envs, tensors=True)
        self.callback = callback
        self.obs, self.info = env.reset(seed)
        self.step, self.interval = 0, 1
        self.recorded_steps: list[list[RecordedStep]] = [[] for _ in range(env.num_envs)]
        self.states: list[Tensor] = []  # of T steps, each [B, D]
        self.factors: list[np.ndarray] = []  # of T steps, each [B, F]
        self.running = np.ones(env.num_envs, dtype=bool)
        self.length = np.zeros(env.num_envs, dtype=int)
        self.success_step: list[int | None] = [None] * env.num_envs
        self.final_success, self.has_success = np.zeros((2, env.num_envs), dtype=bool)
        self.episode_return = np.zeros(env.num_envs)

    def record(
        self, config: EnvConfig, mode: str, task_spec: TaskSpec, bar: Progress,
        max_steps: int | None,
    ) -> list[RecordedEpisode]:  # fmt: skip
        start = EpisodeStart(self.env, self.obs, self.info)
        self.controller.set_task(task_of(task_spec, start, mode), self.seed)
        self.episodes = partial(self._episodes_so_far, config, mode, bool(task_spec.drives))
        for step_result in islice(rollout(self._act, self.env, self.obs), max_steps):
            self._update_outcome(step_result)
            bar.advance()
            if not self.running.any():
                break
        return self.episodes()

    def _episodes_so_far(
        self, config: EnvConfig, mode: str, has_drives: bool
    ) -> list[RecordedEpisode]:
        """The episodes so far, the current step included."""
        context, name = self.controller.context, f"{config.id} {config.variant}".strip()
        goals = context.goal.expand(self.env.num_envs, -1)
        states, factors = torch.stack(self.states, 1), np.stack(self.factors, 1)
        length = np.minimum(self.length + self.running, len(self.states))
        return [
            RecordedEpisode(
                name, self.env.description, mode, self.seed + i, self.recorded_steps[i],
                states[i, : length[i]], factors[i, : length[i]], self.success_step[i],
                bool(self.final_success[i]), bool(self.has_success.any()),
                float(self.episode_return[i]), has_drives, context._replace(goal=goals[i : i + 1]),
            )
            for i in range(self.env.num_envs)
        ]  # fmt: skip

    @torch.no_grad()
    def _act(self, obs: Observation) -> Tensor:
        state, context = self.controller.perceive(obs)
        with record_search(self.agent) as evaluations:
            plan = self.controller.plan(state, context)
        self.states.append(state.cpu())
        has_factors = isinstance(self.env.unwrapped, HasFactors)
        factors = self.env.factors(self.info).cpu() if has_factors else torch.empty(len(state), 0)
        self.factors.append(factors.numpy())
        if self.step % self.interval == 0:
            self._halve_detail()
        if self.step % self.interval == 0:
            self._record(state, plan, context, best_so_far(evaluations, plan))
        self.step += 1
        return plan.action

    def _halve_detail(self) -> None:
        """Keeps every second recorded step where there are too many; with a callback none of the
        past ones."""
        if self.callback is not no_callback:
            self.recorded_steps = [[] for _ in self.recorded_steps]
            return
        if self.step < self.interval * MAX_STEPS_KEPT:
            return
        self.interval *= 2
        for i in np.flatnonzero(self.running):
            self.recorded_steps[i] = self.recorded_steps[i][::2]

    def _record(
        self, state: Tensor, plan: Plan, context: TaskContext, best_energies: list[np.ndarray]
    ) -> None:
        pictures, step_energies = self.camera(self.env), per_step_energy(self.agent, plan, context)
        critic_values = critic_value(self.agent, state, self.controller.context)
        candidates, planned, upper_plans = (
            p.cpu() for p in (plan.candidate_states, plan.states, plan.upper_plans)
        )
        energies = plan.candidate_energies.cpu().numpy()
        for i in np.flatnonzero(self.running):
            self.recorded_steps[i].append(
                RecordedStep(
                    self.step, pictures[i], candidates[i], energies[i], planned[i], upper_plans[i],
                    {name: float(term[i]) for name, term in plan.terms.items()},
                    {name: term[i] for name, term in step_energies.items()}, best_energies[i],
                    float(critic_values[i]),
                )
            )  # fmt: skip
        self.callback(self.episodes)

    def _update_outcome(self, step_result: StepResult) -> None:
        self.info = step_result.info
        self.length += self.running
        self.episode_return += (
            step_result.transition.interoception[:, 0].cpu().numpy() * self.running
        )
        success = read_info(step_result, *SUCCESS_NAMES).numpy()
        final_success = read_info(step_result, *FINAL_SUCCESS_NAMES).numpy()
        for i in np.flatnonzero(self.running):
            self.has_success[i] |= bool(np.isfinite(success[i]))
            if self.success_step[i] is None and success[i] == 1:
                self.success_step[i] = int(self.length[i])
            if np.isfinite(final_success[i]):
                self.final_success[i] = final_success[i] == 1
        self.running &= ~done_of(step_result).cpu().numpy()
