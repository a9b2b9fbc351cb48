"""Stages that fill the replay buffer with steps in environments."""

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
from ami_agent.adapters.make import Options, check_options
from ami_agent.evaluation.policies import (
    EpisodeStart,
    PolicyFactory,
    agent_policy_factory,
    make_behaviour_policy,
)
from ami_agent.training.base import StageRun, with_prefixes, without_prefix
from modules.memory.replay_buffer import OBS_ONLY
from modules.types import ENV_STEPS, Observation, Transition, tree_map, validate_ranges

if TYPE_CHECKING:
    from ami_agent.agent import Agent
    from modules.memory.replay_buffer import ReplayBuffer


class HasSteps(Protocol):
    """A stage of so many steps in each environment."""

    @property
    def steps(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class CollectRandom:
    """Collects steps of the environments' behaviour policy, or of random actions where they have
    none."""

    num_envs: int = 1500
    """Environments that the replay buffer keeps."""
    steps: int = 64
    """Steps in each environment."""
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
    """Collects steps of Mode-2 in its tasks. Its plans lead to where the world model is wrong in
    the plan's favour, and only steps there can correct it (Ross & Bagnell 2012: model learning on
    the states that the resulting policy visits)."""

    steps: int = 24
    """Steps in each environment."""
    options: Options = field(default_factory=dict)
    """Keyword arguments of the environment that hold for this stage only."""

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


def describe_constant_reward(buffer: ReplayBuffer) -> str:
    """A line for the log where the reward is the same at all recorded steps; else empty."""
    rewards = buffer.values("interoception")[:, 0]
    if not len(rewards) or rewards.amin() < rewards.amax():
        return ""
    text = f"the reward was {float(rewards[0]):.6g} at each of {len(rewards):,} steps"
    if rewards[0] != 0 and bool(buffer.values("terminated").any()):
        return f"{text}: only how long an episode lasts can be learnt from"
    return f"{text}: nothing to learn from yet"


class RunningEpisodes:
    """Return and length so far of the running episodes of `num_envs` environments, `[B]`."""

    def __init__(self, num_envs: int) -> None:
        self.returns = torch.zeros(num_envs, dtype=torch.float64)
        self.lengths = torch.zeros(num_envs, dtype=torch.float64)

    def add(self, transition: Transition, reset_mask: Tensor) -> dict[str, Tensor]:
        """Adds a step; where `reset_mask` `[B]` is True, it only reset. Returns the mean return and
        length of the episodes that it ended, if any."""
        reward = transition.interoception[:, 0].cpu().double()
        self.returns = (self.returns + reward).masked_fill(reset_mask, 0)
        self.lengths = (self.lengths + 1).masked_fill(reset_mask, 0)
        done = (transition.terminated | transition.truncated).cpu()
        if not done.any():
            return {}
        means = (self.returns[done].mean(), self.lengths[done].mean())
        return dict(zip(EPISODE_METRICS, means, strict=True))

    def state_dict(self) -> dict[str, Tensor]:
        return {"returns": self.returns, "lengths": self.lengths}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Checkpoints before version 0.2 have neither; episodes then count from here on."""
        self.returns = state.get("returns", self.returns).cpu()
        self.lengths = state.get("lengths", self.lengths).cpu()


class Collector:
    """Adds the steps of policies to the replay buffer; several policies take turns, each for an
    equal part of the steps. No checkpoint holds the planner's state, so a run that is interrupted
    is repeated from its start, with the same result."""

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
            self.start_policy()
        result = self._next_step()
        self.agent.remember(result.transition)
        metrics = self.episodes.add(result.transition, self.done)
        self.step += 1
        # the step after an end only resets; its next observation begins an episode
        self.episode_start = EpisodeStart(self.env, next_obs_of(result), result.info, self.done)
        self.done = done_of(result).cpu()
        return {"num_envs": torch.tensor(float(self.env.num_envs)), **metrics}

    def _next_step(self) -> StepResult:
        """A step. Where an environment's process died, all episodes are broken off and new ones
        begin."""
        while True:
            try:
                return next(self.results)
            except WorkerDied:
                self.reset_envs()

    def reset_envs(self) -> None:
        """Starts new episodes; those that were running are broken off."""
        self.agent.replay_buffer.break_episodes()
        self._start_episodes()
        self.start_policy()

    def _start_episodes(self) -> None:
        obs, info = self.env.reset(self.seed + self.step)
        no_env = torch.zeros(self.env.num_envs, dtype=torch.bool)
        self._continue_from(obs, info, reset_mask=~no_env, done=no_env)

    def _continue_from(
        self, obs: Observation, info: Info, reset_mask: Tensor, done: Tensor
    ) -> None:
        """Continues from these observations; `[B]`: where episodes begin, and where they ended."""
        self.episodes = RunningEpisodes(self.env.num_envs)
        self.done, self.episode_start = done, EpisodeStart(self.env, obs, info, reset_mask)
        self.results = rollout(lambda obs: self.act_fn(obs), self.env, obs)

    def start_policy(self) -> None:
        """The policy whose turn it is starts in these environments."""
        policy_index = self.step * len(self.policies) // self.total
        self.act_fn = self.policies[policy_index](self.episode_start, self.seed + self.step)

    def replay(self, steps: int) -> bool:
        """Repeats the recorded actions of the first `steps` steps, to bring the environments to
        where the replay buffer ends. Where they don't get there, starts new episodes. Returns
        whether they did."""
        self.step = steps
        is_same = self._replay_actions(steps)
        if not is_same:
            self.agent.replay_buffer.break_episodes()
            self._start_episodes()
        if steps < self.total:
            self.start_policy()
        return is_same

    def _replay_actions(self, steps: int) -> bool:
        obs, info = self.env.reset(self.seed)
        done = torch.zeros(self.env.num_envs, dtype=torch.bool)
        reset_mask = ~done
        try:
            for action in self.agent.replay_buffer.recent_actions(steps):
                self._before_replayed_action(obs)
                result = self.env.step(obs, action.to(self.env.device))
                obs, info = next_obs_of(result), result.info
                reset_mask, done = done, done_of(result).cpu()
        except WorkerDied:
            return False
        self._continue_from(obs, info, reset_mask, done)
        return self.agent.replay_buffer.ends_with(obs)

    def _before_replayed_action(self, obs: Observation) -> None:
        """Is called before each repeated action, with the observation it was chosen for."""

    def finish(self) -> None:
        self.env.close()
        reference_obs = self.agent.reference_obs
        if reference_obs.capacity:
            generator = torch.Generator().manual_seed(self.seed)
            sample = self.agent.replay_buffer.sample(
                reference_obs.capacity, 1, generator, parts=OBS_ONLY
            )
            reference_obs.store(tree_map(lambda part: part[:, 0], sample.obs))

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Nothing is saved."""


class RandomCollector(Collector):
    """Collects steps of the behaviour policy. A checkpoint holds the steps so far; a run that is
    resumed repeats their actions, to bring the environments back to where they were. Where that
    fails (in environments with randomness of their own), it keeps the steps and starts new
    episodes."""

    def state_dict(self) -> dict[str, Tensor]:
        own_state = {"step": torch.tensor(self.step), **self.episodes.state_dict()}
        return with_prefixes({"memory": self.agent.replay_buffer.state_dict(), "here": own_state})

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.agent.replay_buffer.load_state_dict(without_prefix(state, "memory"))
        own_state = without_prefix(state, "here")
        self.step = 0
        self.start_policy()
        if self.replay(int(own_state["step"])):
            self.episodes.load_state_dict(own_state)

    def _before_replayed_action(self, obs: Observation) -> None:
        self.act_fn(obs)  # brings the random stream of the behaviour policy to where it was
