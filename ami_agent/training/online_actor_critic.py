"""Training of policy, value critics and world model while the agent acts in environments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from ami_agent.adapters.env import ActFn, EnvConfig
from ami_agent.evaluation.policies import EpisodeStart, PolicyFactory, agent_policy_factory
from ami_agent.training.actor_critic import ActorCriticStage, OfflineRun
from ami_agent.training.base import StageRun, with_prefixes, without_prefix
from ami_agent.training.collect import EPISODE_METRICS, Collector
from modules.actor.action_space import ActionSpace
from modules.types import ENV_STEPS, Observation, validate_ranges

if TYPE_CHECKING:
    from ami_agent.agent import Agent


CHECK_UNITS_EVERY = 10
"""Steps in each environment between checks of the latest steps for outliers in their units. Checks
of the whole buffer become rarer as it grows, so that their cost per step stays the same."""


@dataclass(frozen=True, kw_only=True)
class OnlineActorCritic(ActorCriticStage):
    """Trains the agent on a task while it acts, with noise on its actions; its steps are added to
    the replay buffer."""

    steps: int = 10_000
    """Steps in each environment."""
    updates_per_step: float = 1.0
    """Updates per step in an environment."""
    mode: Literal["react", "plan"] = "react"
    """The mode in which the agent acts: by its policy or by planning."""
    action_noise: float = 0.2
    """Standard deviation of the noise on actions, which lie in [-1, 1]."""

    def __post_init__(self) -> None:
        super().__post_init__()
        validate_ranges(self, steps=ENV_STEPS, updates_per_step=(0.0, 1e3), action_noise=(0.0, 1e3))

    @property
    def env_steps(self) -> int:
        return self.steps

    def start(self, agent: Agent, env: EnvConfig, seed: int) -> StageRun:
        return OnlineRun(self, agent, env, seed)


def with_action_noise(
    make_policy: PolicyFactory, action_noise: float, action_space: ActionSpace
) -> PolicyFactory:
    """The same policy with Gaussian noise on its actions. The noise depends on the seed and on the
    number of actions so far alone, so a run can be resumed at any step."""

    def make_noisy_policy(start: EpisodeStart, seed: int) -> ActFn:
        act_fn, step = make_policy(start, seed), [seed]

        def noisy_act(obs: Observation) -> Tensor:
            action = act_fn(obs)
            generator = torch.Generator().manual_seed(step[0])
            step[0] += 1
            noise = torch.randn(action.shape, generator=generator).to(action)
            return action_space.project(action + action_noise * noise)

        return noisy_act

    return make_noisy_policy


class OnlineRun:
    """Alternates between a step in every environment and updates. When it is resumed in the middle
    of an episode, it repeats the recorded actions to bring the environments to where they were. A
    reactive agent without short-term memory then continues exactly as if there had been no
    interruption; a planner starts without a warm start."""

    def __init__(self, stage: OnlineActorCritic, agent: Agent, env: EnvConfig, seed: int) -> None:
        self.stage, self.agent, self.total, self.updates_due = stage, agent, stage.steps, 0.0
        task_spec, num_envs = agent.task_spec(stage.task), agent.replay_buffer.num_envs
        updates = int(stage.steps * num_envs * stage.updates_per_step) + 1
        self.learner = OfflineRun(stage, agent, env, updates, seed)
        policy = with_action_noise(
            agent_policy_factory(agent, stage.mode, task_spec),
            stage.action_noise,
            agent.policy.action_space,
        )
        self.build_env = partial(env.build, num_envs, agent.device)
        self.collector = Collector(agent, self.build_env(), stage, [policy], seed)

    @property
    def step(self) -> int:
        return self.collector.step

    @property
    def eval_mode_due(self) -> str:
        return "" if self.step % self.stage.eval_every else self.stage.mode

    def update(self) -> dict[str, Tensor]:
        """One step in every environment, and the updates that are due after it."""
        if self.eval_mode_due:
            self.collector.start_policy()  # an evaluation gave the agent other tasks
        metrics = self.collector.update()
        if self.step % CHECK_UNITS_EVERY == 0:
            every = CHECK_UNITS_EVERY * 2 ** max(0, (self.step // 200).bit_length() - 1)
            self.learner.actor.refresh_units(CHECK_UNITS_EVERY, whole=self.step % every == 0)
        self.updates_due += self.stage.updates_per_step * self.agent.replay_buffer.num_envs
        update_metrics: dict[str, Tensor] = {}
        while self.updates_due >= 1:
            update_metrics = self.learner.update()
            self.updates_due -= 1
        return update_metrics | {n: metrics[n] for n in EPISODE_METRICS if n in metrics}

    def close_envs(self) -> None:
        self.collector.env.close()

    def reopen_envs(self) -> None:
        self.collector.env = self.build_env()
        self.collector.reset_envs()

    def finish(self) -> None:
        self.collector.finish()

    def state_dict(self) -> dict[str, Tensor]:
        updates_due = torch.tensor(self.updates_due).double()
        own_state = {"step": torch.tensor(self.step), "debt": updates_due}
        own_state |= self.collector.episodes.state_dict()
        own = with_prefixes({"memory": self.agent.replay_buffer.state_dict(), "here": own_state})
        return {**self.learner.state_dict(), **own}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.learner.load_state_dict(state)
        self.agent.replay_buffer.load_state_dict(without_prefix(state, "memory"))
        own_state = without_prefix(state, "here")
        self.updates_due = float(own_state["debt"])
        if self.collector.replay(int(own_state["step"])):
            self.collector.episodes.load_state_dict(own_state)
