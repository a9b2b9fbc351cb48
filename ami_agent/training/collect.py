"""Memory is filled by living."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from ami_agent.adapters.env import (
    ActFn,
    EnvAdapter,
    EnvConfig,
    Info,
    StepResult,
    done_of,
    next_obs_of,
    rollout,
)
from ami_agent.adapters.fault_tolerance import WorkerDied
from ami_agent.adapters.options import Options, check_options
from ami_agent.evaluation.policies import (
    EpisodeStart,
    PolicyFactory,
    agent_policy_factory,
    make_behaviour_policy,
)
from ami_agent.training.base import StageRun
from modules.memory.replay_buffer import OBS_ONLY
from modules.types import ENV_STEPS, Observation, Transition, tree_map, validate_ranges

if TYPE_CHECKING:
    from ami_agent.agent import Agent


class HasSteps(Protocol):
    """A lesson of so many steps in each world."""

    @property
    def steps(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class CollectRandom:
    """Walks in many worlds at once, remembered; no reward, and nobody judges them.

    Where the world has walks of its own, its keyword `errands` is the share of stretches that lead
    to some place in the other room, as the published protocols force a share of crossings."""

    num_envs: int = 1500
    steps: int = 64
    """Steps lived in each world."""
    options: Options = field(default_factory=dict)
    """Keyword arguments of the environment that hold for this stage only."""

    def __post_init__(self) -> None:
        validate_ranges(self, num_envs=(1, 1_000_000), steps=ENV_STEPS)
        check_options(self.options)

    @property
    def env_steps(self) -> int:
        return self.steps

    def start(self, agent: Agent, env: EnvConfig, seed: int) -> StageRun:
        return RandomCollector(
            agent,
            env.build(self.num_envs, "cpu", **self.options),
            self,
            [make_behaviour_policy],
            seed,
        )


@dataclass(frozen=True, kw_only=True)
class CollectWithPlanner:
    """Mode-2 pursues goals in as many worlds as memory keeps, and remembers: plans lead to where
    the world model is wrong in the plan's favour, and only what came of them can tell it so
    (Ross & Bagnell 2012, model learning on the distribution of the policy it leads to)."""

    steps: int = 24
    """Steps lived in each world."""
    options: Options = field(default_factory=dict)

    def __post_init__(self) -> None:
        validate_ranges(self, steps=ENV_STEPS)
        check_options(self.options)

    @property
    def env_steps(self) -> int:
        return self.steps

    def start(self, agent: Agent, env: EnvConfig, seed: int) -> StageRun:
        envs = env.build(agent.replay_buffer.num_envs, agent.device, **self.options)
        policies = [
            agent_policy_factory(agent, "plan", task_spec) for task_spec in agent.tasks.values()
        ]
        return Collector(agent.eval(), envs, self, policies, seed)


EPISODE_METRICS = ("episode_return", "episode_length")


class RunningEpisodes:
    """Return and length so far of the episodes that num_envs environments are in, `[B]`."""

    def __init__(self, num_envs: int) -> None:
        self.returns = torch.zeros(num_envs, dtype=torch.float64)
        self.lengths = torch.zeros(num_envs, dtype=torch.float64)

    def add(self, transition: Transition, reset_mask: Tensor) -> dict[str, Tensor]:
        """Adds a step; where `reset_mask` `[B]`, it only reset. Returns the means over the episodes
        that are done with it, if any is."""
        reward = transition.interoception[:, 0].cpu().double()
        self.returns = (self.returns + reward).masked_fill(reset_mask, 0)
        self.lengths = (self.lengths + 1).masked_fill(reset_mask, 0)
        done = (transition.terminated | transition.truncated).cpu()
        if not done.any():
            return {}
        found = (self.returns[done].mean(), self.lengths[done].mean())
        return dict(zip(EPISODE_METRICS, found, strict=True))

    def state_dict(self) -> dict[str, Tensor]:
        return {"returns": self.returns, "lengths": self.lengths}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """A checkpoint of before 0.2 has neither: the episode is counted from here on."""
        self.returns = state.get("returns", self.returns).cpu()
        self.lengths = state.get("lengths", self.lengths).cpu()


class Collector:
    """Lives and remembers. Several players take turns, each for its part of the time. Planners keep
    a part of their plans that no checkpoint holds, so it begins anew when it is interrupted: the
    same seed lives the same."""

    eval_mode_due = ""
    act_fn: ActFn
    episode_start: EpisodeStart
    done: Tensor  # [B] bool: the episodes that the next step resets

    def __init__(
        self, agent: Agent, env: EnvAdapter, stage: HasSteps, policies: Sequence[PolicyFactory],
        seed: int,
    ) -> None:  # fmt: skip
        self.total, self.step, self.agent, self.env = stage.steps, 0, agent, env
        self.policies, self.seed = policies, seed
        agent.replay_buffer.start_run()
        self._start_episodes()

    def update(self) -> dict[str, Tensor]:
        policy_index, previous_index = (
            step * len(self.policies) // self.total for step in (self.step, self.step - 1)
        )
        assert self.episode_start.reset_mask is not None
        if policy_index != previous_index or self.episode_start.reset_mask.any():
            self.start_policies()
        result = self._next_step()
        self.agent.remember(result.transition)
        metrics = self.episodes.add(result.transition, self.done)
        self.step += 1
        # the step after an end only resets: what it ends with is where an episode begins
        self.episode_start = EpisodeStart(self.env, next_obs_of(result), result.info, self.done)
        self.done = done_of(result).cpu()
        return {"num_envs": torch.tensor(float(self.env.num_envs)), **metrics}

    def _next_step(self) -> StepResult:
        """A step. Where a world's process died, what was begun is cut and other episodes begin."""
        while True:
            try:
                return next(self.results)
            except WorkerDied:
                self.reset_envs()

    def reset_envs(self) -> None:
        """Other episodes begin; those that were under way are cut."""
        self.agent.replay_buffer.break_episodes()
        self._start_episodes()
        self.start_policies()

    def _start_episodes(self) -> None:
        """Episodes begin."""
        obs, info = self.env.reset(self.seed + self.step)
        no_env = torch.zeros(self.env.num_envs, dtype=torch.bool)
        self._continue_from(obs, info, reset_mask=~no_env, done=no_env)

    def _continue_from(
        self, obs: Observation, info: Info, reset_mask: Tensor, done: Tensor
    ) -> None:
        """Life goes on from here; `[B]` where an episode begins, and where one is over."""
        self.episodes = RunningEpisodes(self.env.num_envs)
        self.done, self.episode_start = done, EpisodeStart(self.env, obs, info, reset_mask)
        self.results = rollout(lambda obs: self.act_fn(obs), self.env, obs)

    def start_policies(self) -> None:
        """Who acts from here on looks around."""
        policy_index = self.step * len(self.policies) // self.total
        self.act_fn = self.policies[policy_index](self.episode_start, self.seed + self.step)

    def replay(self, steps: int) -> bool:
        """Brings the worlds to where memory left them, so many steps after the beginning, by doing
        again what was done. Where that doesn't lead there, other episodes begin; returns whether it
        does."""
        self.step = steps
        is_same = self._replay_actions(steps)
        if not is_same:
            self.agent.replay_buffer.break_episodes()
            self._start_episodes()
        if steps < self.total:
            self.start_policies()
        return is_same

    def _replay_actions(self, steps: int) -> bool:
        obs, info = self.env.reset(self.seed)
        done = torch.zeros(self.env.num_envs, dtype=torch.bool)
        reset_mask = ~done
        try:
            for action in self.agent.replay_buffer.recent_actions(steps):
                self._before_replayed(obs)
                result = self.env.step(obs, action.to(self.env.device))
                obs, info = next_obs_of(result), result.info
                reset_mask, done = done, done_of(result).cpu()
        except WorkerDied:
            return False
        self._continue_from(obs, info, reset_mask, done)
        return self.agent.replay_buffer.ends_with(obs)

    def _before_replayed(self, obs: Observation) -> None:
        """Before each action that is done again: what else it took to choose it."""

    def finish(self) -> None:
        self.env.close()
        reference_obs, generator = (
            self.agent.reference_obs,
            torch.Generator().manual_seed(self.seed),
        )
        if reference_obs.capacity:
            sample = self.agent.replay_buffer.sample(
                reference_obs.capacity, 1, generator, parts=OBS_ONLY
            )
            reference_obs.store(tree_map(lambda part: part[:, 0], sample.obs))

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Begins anew."""


class RandomCollector(Collector):
    """Fills the replay buffer with random behaviour. A checkpoint holds what was collected so far;
    taken up again, the same actions bring the environments back to where they were. Where they
    don't (an environment with randomness of its own), the buffer is kept and other episodes
    begin."""

    def state_dict(self) -> dict[str, Tensor]:
        buffer = {f"memory.{n}": part for n, part in self.agent.replay_buffer.state_dict().items()}
        own_state = {"step": torch.tensor(self.step), **self.episodes.state_dict()}
        return {**buffer, **{f"here.{name}": part for name, part in own_state.items()}}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        buffer, own_state = (
            {n.removeprefix(prefix): p for n, p in state.items() if n.startswith(prefix)}
            for prefix in ("memory.", "here.")
        )
        self.agent.replay_buffer.load_state_dict(buffer)
        self.step = 0
        self.start_policies()
        if self.replay(int(own_state["step"])):
            self.episodes.load_state_dict(own_state)

    def _before_replayed(self, obs: Observation) -> None:
        self.act_fn(obs)  # the behaviour has random numbers of its own, drawn again as they were
