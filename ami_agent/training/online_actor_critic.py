"""Life and learning interleave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from ami_agent.adapters.env import ActFn, EnvConfig
from ami_agent.evaluation.policies import EpisodeStart, PolicyFactory, agent_policy_factory
from ami_agent.training.actor_critic import (
    ActorCriticStage,
    OfflineRun,
    with_prefixes,
    without_prefix,
)
from ami_agent.training.base import StageRun
from ami_agent.training.collect import EPISODE_METRICS, Collector
from modules.actor.action_space import ActionSpace
from modules.types import ENV_STEPS, Observation, validate_ranges

if TYPE_CHECKING:
    from ami_agent.agent import Agent


CHECK_UNITS_EVERY = 10
"""Steps in each env between two looks at whether the latest numbers and rewards have left their
units. Looks at all that is kept become rarer as it grows, so that they cost the same per step."""


@dataclass(frozen=True, kw_only=True)
class OnlineActorCritic(ActorCriticStage):
    """The agent does what it has learnt so far, shaken a little; what comes of it is remembered,
    and it improves."""

    steps: int = 10_000
    """Steps lived in each world."""
    updates_per_step: float = 1.0
    """Updates for each step of life."""
    mode: Literal["react", "plan"] = "react"
    """Who acts."""
    action_noise: float = 0.2
    """How far actions are shaken."""

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
    """The same player with shaken hands. What shakes them depends on the seed and on how often they
    were used, so that it can be taken up again anywhere."""

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
    """One who lives and learns. Put away in the middle of an episode, it brings the world back to
    where it was by doing again what it did. Who reacts, and recalls nothing of the episode, goes on
    as if nothing had been; a planner thinks afresh."""

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
        self.build = partial(env.build, num_envs, agent.device)
        self.collector = Collector(agent, self.build(), stage, [policy], seed)

    @property
    def step(self) -> int:
        return self.collector.step

    @property
    def eval_mode_due(self) -> str:
        return "" if self.step % self.stage.eval_every else self.stage.mode

    def update(self) -> dict[str, Tensor]:
        """One step of life in every world, and what is learnt after it."""
        if self.eval_mode_due:
            self.collector.start_policies()  # somebody may have asked the agent other things meanwhile
        metrics = self.collector.update()
        if self.step % CHECK_UNITS_EVERY == 0:
            check_all = (
                self.step % (CHECK_UNITS_EVERY * 2 ** max(0, (self.step // 200).bit_length() - 1))
                == 0
            )
            self.learner.actor.refresh_units(CHECK_UNITS_EVERY, check_all)
        self.updates_due += self.stage.updates_per_step * self.agent.replay_buffer.num_envs
        update_metrics: dict[str, Tensor] = {}
        while self.updates_due >= 1:
            update_metrics = self.learner.update()
            self.updates_due -= 1
        return {
            **update_metrics,
            **{name: metrics[name] for name in EPISODE_METRICS if name in metrics},
        }

    def close_envs(self) -> None:
        self.collector.env.close()

    def reopen_envs(self) -> None:
        self.collector.env = self.build()
        self.collector.reset_envs()

    def finish(self) -> None:
        self.collector.finish()

    def state_dict(self) -> dict[str, Tensor]:
        own_state = {
            "step": torch.tensor(self.step),
            "debt": torch.tensor(self.updates_due).double(),
        }
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
