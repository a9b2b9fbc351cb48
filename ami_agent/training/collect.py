"""Stages that fill the replay buffer: with steps in environments, or with recorded episodes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from torch import Tensor

from ami_agent.adapters.env import ActFn, EnvAdapter, EnvConfig, Info, StepResult, rollout
from ami_agent.adapters.env_spec import EnvironmentSpec
from ami_agent.adapters.fault_tolerance import EpisodesRestarted
from ami_agent.adapters.make import Options
from ami_agent.agent import Agent
from ami_agent.data.dataset import EpisodeDataset
from ami_agent.data.minari import from_minari
from ami_agent.data.reader import open_dataset
from ami_agent.data.runs import from_run
from ami_agent.evaluation.policies import (
    EnvGoals,
    EpisodeStart,
    PolicyFactory,
    agent_policy_factory,
    make_behaviour_policy,
)
from ami_agent.training import distributed
from ami_agent.training.base import Stage, StageRun, with_prefixes, without_prefix
from modules.memory.replay_buffer import OBS_ONLY, ReplayBuffer
from modules.types import ENV_STEPS, STEPS, ConfigError, Observation, Transition, tree_map

if TYPE_CHECKING:
    from ami_agent.config import Config

CHECK_SECONDS = 2.0
"""How long recorded episodes are checked before a run begins; the others are when they are read."""
EPISODE_METRICS = ("episode_return", "episode_length")


@dataclass(frozen=True, kw_only=True)
class CollectBehaviour(Stage):
    """Collects steps of the environments' own behaviour policy, or of uniformly random actions in
    environments that have none."""

    num_envs: Annotated[int, (1, 1_000_000)] = 1500
    """Environments that the replay buffer keeps."""
    steps: Annotated[int, ENV_STEPS] = 64
    """Steps in each environment."""
    options: Options = field(default_factory=dict)
    """Keyword arguments of the environment that hold for this stage only."""

    @property
    def env_steps(self) -> int:
        return self.steps

    def start(self, agent: Agent, env: EnvConfig, seed: int) -> StageRun:
        envs = env.build(distributed.share_size(self.num_envs), "cpu", **self.options)
        return BehaviourCollector(agent, envs, self.steps, [make_behaviour_policy], seed)


@dataclass(frozen=True, kw_only=True)
class CollectWithPlanner(Stage):
    """Collects steps of Mode-2 in its tasks. Its plans lead to where the world model is wrong in
    the plan's favour, and only steps there can correct it (Ross & Bagnell 2012: model learning on
    the states that the resulting policy visits)."""

    steps: Annotated[int, ENV_STEPS] = 24
    """Steps in each environment."""
    options: Options = field(default_factory=dict)
    """Keyword arguments of the environment that hold for this stage only."""

    @property
    def env_steps(self) -> int:
        return self.steps

    def check_processes(self, config: Config, name: str) -> None:
        distributed.check_divides("the number of environments", config.collect.num_envs)

    def start(self, agent: Agent, env: EnvConfig, seed: int) -> StageRun:
        num_envs = distributed.share_size(agent.replay_buffer.num_envs)
        envs = env.build(num_envs, agent.device, **self.options)
        controller = agent.controller(tensors=True)  # one short-term memory for all tasks
        tasks = agent.tasks.values()
        goals = EnvGoals() if any(task.goal_source == "env" for task in tasks) else None
        policies = [
            agent_policy_factory(agent, "plan", task, controller=controller, goals=goals)
            for task in tasks
        ]
        return PlannerCollector(agent.eval(), envs, self.steps, policies, seed)


@dataclass(frozen=True, kw_only=True)
class LoadDataset(Stage):
    """Fills the replay buffer with the episodes of a dataset, in place of collecting steps in the
    environment."""

    path: str = ""
    """Recorded episodes, by what lies there: a .npz file as OGBench's, an HDF5 file (robomimic,
    stable-worldmodel, D4RL), a folder of .npz files, one an episode, or a run that kept its replay
    buffer; or the id of a Minari dataset. `--data PATH` is the short form."""
    keys: dict[str, str] = field(default_factory=dict)
    """Which columns of the file are observations, actions, rewards, terminated and done (1 in the
    last row of each episode), as pairs ROLE NAME, where their names do not say so. A+B joins two
    vectors to one, and observations/PART is part PART of a Dict observation."""
    minari: str = ""
    """Id of a Minari dataset on this machine."""
    run: str = ""
    """Folder of a run that kept its replay buffer (`--keep-replay-buffer`)."""
    steps: Annotated[int, STEPS] = 0
    """Steps to keep, one between every two episodes included; of a longer dataset, the last ones.
    0: all."""
    in_memory: Literal["auto", "yes", "no"] = "auto"
    """Whether the replay buffer is held in memory, or in a file of the run folder that is read as
    it is needed; by default in a file where it would take more than half of the free memory."""

    def __post_init__(self) -> None:
        super().__post_init__()
        named = {"path": self.path, "minari": self.minari, "run": self.run}
        if len(given := [f"{name} {value}" for name, value in named.items() if value]) > 1:
            raise ConfigError(f"data are of {given[0]} or of {given[1]}, not both")

    @property
    def num_envs(self) -> int:
        """Environments of the replay buffer: one, which holds all episodes."""
        return 1

    @property
    def env_steps(self) -> int:
        return self.steps

    def with_all_steps(self, env: EnvAdapter) -> LoadDataset:
        """The same stage with the steps of the whole dataset, unless `steps` is given."""
        return replace(self, steps=self.steps or self.dataset(env).steps)

    def dataset(self, env: EnvAdapter) -> EpisodeDataset:
        """The dataset; ConfigError where it is not of such an environment."""
        if self.path:
            return open_dataset(self.path, self.keys, env)
        if not (self.minari or self.run):
            raise ConfigError("recorded data need a place: --data PATH")
        return from_minari(self.minari, env) if self.minari else from_run(self.run, env)

    def check_env(self, spec: EnvironmentSpec, env: EnvConfig) -> None:
        """ConfigError for invalid episodes among those that CHECK_SECONDS suffice to read."""
        with closing(env.build(1)) as adapter:
            deadline = time.monotonic() + CHECK_SECONDS
            for _ in self.dataset(adapter).episodes(0):
                if time.monotonic() > deadline:
                    return

    def start(self, agent: Agent, env: EnvConfig, seed: int) -> StageRun:
        return DatasetLoader(agent, env.build(1), self, seed)


def describe_constant_reward(buffer: ReplayBuffer) -> str:
    """A line for the log where the reward is the same at all recorded steps; else empty."""
    rewards = buffer.values("interoception")[:, 0]
    if not len(rewards) or rewards.amin() < rewards.amax():
        return ""
    text = f"the reward was {float(rewards[0]):.6g} at each of {len(rewards):,} steps"
    if rewards[0] != 0 and bool(buffer.values("terminated").any()):
        return f"{text}: only how long an episode lasts can be learnt from"
    return f"{text}: nothing to learn from yet"


def store_reference_obs(agent: Agent, seed: int) -> None:
    """Gives the agent a sample of the observations in its replay buffer to recognise states by."""
    reference_obs = agent.reference_obs
    if reference_obs.capacity:
        generator = torch.Generator().manual_seed(seed)
        sample = agent.replay_buffer.sample(reference_obs.capacity, 1, generator, parts=OBS_ONLY)
        reference_obs.store(tree_map(lambda part: part[:, 0], sample.obs))


class Collector(StageRun):
    """Adds the steps of policies to the replay buffer; several policies take turns, each for an
    equal part of the steps. A checkpoint holds the steps so far; a run that is resumed repeats
    their actions, to bring the environments back to where they were. Where that fails (in
    environments with randomness of their own), it keeps the steps and starts new episodes.

    Of several processes, each acts in its share of the B environments, and adds the steps of
    all."""

    act_fn: ActFn
    episode_start: EpisodeStart
    reset_mask: Tensor  # [B] bool: where an episode begins
    done: Tensor  # [B] bool: the episodes that the next step resets
    running: Tensor  # [2, B]: return and length so far of the running episodes

    def __init__(
        self,
        agent: Agent,
        env: EnvAdapter,
        steps: int,
        policies: Sequence[PolicyFactory],
        seed: int,
    ) -> None:
        self.total, self.agent, self.env = steps, agent, env
        self.rows = distributed.share_rows(agent.replay_buffer.num_envs)
        self.policies, self.seed = policies, seed
        agent.replay_buffer.start_run()
        self._start_episodes()

    def update(self) -> dict[str, Tensor]:
        policy_index, previous_index = (
            step * len(self.policies) // self.total for step in (self.step, self.step - 1)
        )
        if policy_index != previous_index or self.reset_mask.any():
            self.start_policy()
        own = self._next_step()
        result = StepResult(distributed.gather(own.transition), own.info)
        self.agent.remember(result.transition)
        metrics = self._add_to_episodes(result.transition)
        self.step += 1
        # the step after an end only resets; its next observation begins an episode
        self._begin_episodes(own.next_obs, own.info, self.done)
        self.done = result.done.cpu()
        return {"num_envs": torch.tensor(float(len(self.done))), **metrics}

    def _add_to_episodes(self, transition: Transition) -> dict[str, Tensor]:
        """Returns the mean return and length of the episodes that a step ended, if any."""
        reward = transition.interoception[:, 0].cpu().double()
        step = torch.stack([reward, torch.ones_like(reward)])
        self.running = (self.running + step).masked_fill(self.done, 0)
        done = (transition.terminated | transition.truncated).cpu()
        if not done.any():
            return {}
        means = (part[done].mean() for part in self.running)
        return dict(zip(EPISODE_METRICS, means, strict=True))

    def _next_step(self) -> StepResult:
        """A step. Where all environments were made again, their episodes are broken off and new
        ones begin."""
        while True:
            try:
                return next(self.results)
            except EpisodesRestarted:
                if distributed.world().size > 1:  # the others act on
                    raise
                self.reset_envs()

    def reset_envs(self) -> None:
        """Starts new episodes; those that were running are broken off."""
        self.agent.replay_buffer.break_episodes()
        self._start_episodes()
        self.start_policy()

    def _start_episodes(self) -> None:
        obs, info = self.env.reset(self.seed + self.rows.start + self.step)
        no_env = torch.zeros(self.agent.replay_buffer.num_envs, dtype=torch.bool)
        self._continue_from(obs, info, reset_mask=~no_env, done=no_env)
        self.episode_start = EpisodeStart(self.env, obs, info)  # in other environments

    def _continue_from(
        self, obs: Observation, info: Info, reset_mask: Tensor, done: Tensor
    ) -> None:
        """Continues from these observations; `[B]`: where episodes begin, and where they ended."""
        self.running = torch.zeros(2, len(done), dtype=torch.float64)
        self.done = done
        self._begin_episodes(obs, info, reset_mask)
        self.results = rollout(lambda obs: self.act_fn(obs), self.env, obs)

    def _begin_episodes(self, obs: Observation, info: Info, reset_mask: Tensor) -> None:
        self.reset_mask = reset_mask
        self.episode_start = EpisodeStart(self.env, obs, info, reset_mask[self.rows])

    def start_policy(self) -> None:
        """The policy whose turn it is starts in these environments."""
        policy_index = self.step * len(self.policies) // self.total
        self.act_fn = self.policies[policy_index](self.episode_start, self.seed + self.step)

    def state_dict(self) -> dict[str, Tensor]:
        own_state = {"step": torch.tensor(self.step), "running": self.running}
        return with_prefixes({"memory": self.agent.replay_buffer.state_dict(), "here": own_state})

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.agent.replay_buffer.load_state_dict(without_prefix(state, "memory"))
        self.step = int(state["here.step"])
        if self._replay_actions(self.step):
            self.running = state["here.running"].cpu()
        else:
            self.agent.replay_buffer.break_episodes()
            self._start_episodes()
        if self.step < self.total:
            self.start_policy()

    def _replay_actions(self, steps: int) -> bool:
        """Repeats the recorded actions of the first `steps` steps. Returns whether the environments
        got to where the replay buffer ends."""
        obs, info = self.env.reset(self.seed + self.rows.start)
        done = torch.zeros(self.agent.replay_buffer.num_envs, dtype=torch.bool)
        reset_mask = ~done
        try:
            for action in self.agent.replay_buffer.recent_actions(steps):
                self._before_replayed_action(obs)
                result = self.env.step(obs, action[self.rows].to(self.env.device))
                obs, info = result.next_obs, result.info
                reset_mask, done = done, distributed.gather(result.done.cpu())
        except EpisodesRestarted:
            if distributed.world().size > 1:
                raise
            return False
        self._continue_from(obs, info, reset_mask, done)
        return self.agent.replay_buffer.ends_with(distributed.gather(obs))

    def _before_replayed_action(self, obs: Observation) -> None:
        """A subclass prepares each repeated action here; `obs` is what it was chosen for."""

    def finish(self) -> None:
        self.env.close()
        store_reference_obs(self.agent, self.seed)


class BehaviourCollector(Collector):
    """Collects steps of the behaviour policy. A run that is resumed brings the policy's random
    stream to where it was as well."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.start_policy()
        super().load_state_dict(state)

    def _before_replayed_action(self, obs: Observation) -> None:
        self.act_fn(obs)


class PlannerCollector(Collector):
    """Collects steps of Mode-2. No checkpoint holds what the planner carries, so a run that
    is interrupted is repeated from its start, with the same result."""

    def state_dict(self) -> dict[str, Tensor]:
        return {}


class DatasetLoader(StageRun):
    """Loads one episode per update. A checkpoint holds their number and checksum alone: a run that
    is resumed reads them again."""

    def __init__(self, agent: Agent, env: EnvAdapter, stage: LoadDataset, seed: int) -> None:
        self.agent, self.env, self.dataset = agent, env, stage.dataset(env)
        self.seed = seed
        self.total, self.episodes = self.dataset.num_episodes, self.dataset.episodes(0)

    def update(self) -> dict[str, Tensor]:
        self.agent.replay_buffer.add_episode(next(self.episodes))
        self.step += 1
        return {}

    def finish(self) -> None:
        self.close_envs()
        store_reference_obs(self.agent, self.seed)

    def close_envs(self) -> None:
        self.env.close()

    def state_dict(self) -> dict[str, Tensor]:
        recorded = self.agent.replay_buffer.recorded
        return with_prefixes({"here": {"step": torch.tensor(self.step), "recorded": recorded}})

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Reads the same episodes again; ConfigError where the data are others now."""
        step, recorded = int(state["here.step"]), state["here.recorded"].cpu()
        while self.step < min(step, self.total):
            self.update()
        if not self.agent.replay_buffer.recorded.equal(recorded):
            raise ConfigError(
                "the recorded data are not those with which the run began: it can't be resumed"
            )
