"""The agent in a user's own loop: a Controller acts on what a Gymnasium environment delivers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ami_agent import episode_state
from ami_agent.arguments import check_count
from modules.configurator import Task
from modules.types import ConfigError, Observation, Plan

if TYPE_CHECKING:
    from ami_agent.adapters.env_spec import Interface
    from ami_agent.agent import Agent


class Controller:
    """Holds everything that its episodes change: short-term memory, warm starts, the rest of plans
    that are executed open loop, feedback on edges, random streams. The weights are the agent's.
    Controllers of one agent don't disturb each other, if they act one after the other.

        controller = agent.controller(num_envs=2, task=ami.Task(goal=info["goal"]))
        plan = controller.act(obs)  # plan.env_action is what env.step takes
        controller.reset(done)  # before the first observation of new episodes is acted on
    """

    def __init__(
        self, agent: Agent, num_envs: int | None, task: Task | None = None, seed: int = 0
    ) -> None:
        if num_envs is not None:
            check_count("num_envs", num_envs, 1)
        check_count("seed", seed, 0)
        self.agent, self.num_envs, self.seed = agent, num_envs, seed
        parts = agent.stateful_parts()
        before = episode_state.take(parts)
        try:
            agent.clear()
            self._carry = episode_state.take(parts)
        finally:
            episode_state.restore(parts, before)
        if task is not None:
            self.set_task(task)

    def set_task(self, task: Task, seed: int | None = None) -> None:
        """Sets the task, in the middle of an episode too: plans are made anew, the short-term
        memory stays. Its goal is an observation as the environment delivers it, one for each
        environment or one for all. ConfigError for a task that this agent can't pursue; the old one
        stays."""
        if not isinstance(task, Task):
            raise ConfigError(f"the task is a {type(task).__name__}; it must be an ami.Task")
        if seed is not None:
            check_count("seed", seed, 0)
            self.seed = seed
        if task.goal is not None:
            sizes = None if self.num_envs is None else {self.num_envs, 1}
            task = replace(task, goal=self._interface().read(task.goal, sizes, "goal"))
        self.agent.configurator.check_goal(task)
        with self.active():
            self.agent.set_task(task, self.seed)

    def reset(self, done: Any = None) -> None:
        """Begins an episode in all environments, or where `done` `[B]` is True: the short-term
        memory of those is emptied, and all plans are made anew."""
        mask = None if done is None else self._mask(done)
        if mask is None or mask.any():
            with self.active():
                self.agent.reset(mask)

    def act(self, obs: Any) -> Plan:
        """What `env.reset` or `env.step` returned -> the plan; its `env_action` is what `env.step`
        takes. ConfigError for what is not of the observation space or not finite; the controller
        is then as it was before."""
        interface = self._interface()
        sizes = None if self.num_envs is None else {self.num_envs}
        read = interface.read(obs, sizes)
        with self.active():
            plan = self.agent.act(read)
        env_action = interface.env_action(plan.action, batch=self.num_envs is not None)
        return plan._replace(env_action=env_action)

    def plan(self, obs: Observation) -> Plan:
        """Like `act`, for observations as the agent's encoders take them, `[B, *O]`."""
        with self.active():
            return self.agent.act(obs)

    @contextmanager
    def active(self) -> Iterator[Agent]:
        """Within the block, the agent has this controller's state in place of its own."""
        parts = self.agent.stateful_parts()
        before = episode_state.take(parts)
        episode_state.restore(parts, self._carry)
        try:
            yield self.agent
        finally:
            self._carry = episode_state.take(parts)
            episode_state.restore(parts, before)

    def _interface(self) -> Interface:
        interface = self.agent.spec.interface
        if interface is None:
            raise ConfigError(
                "this agent was built without the spaces of an environment, so it can't read its "
                "observations: build it with the spec of an environment"
            )
        return interface

    def _mask(self, done: Any) -> Tensor:
        mask = done.detach().cpu().numpy() if isinstance(done, Tensor) else np.asarray(done)
        expected_shape = () if self.num_envs is None else (self.num_envs,)
        if mask.dtype != np.bool_ or mask.shape != expected_shape:
            raise ConfigError(
                f"done is {mask.dtype} of shape {mask.shape}; it must be bool of shape "
                f"{expected_shape}"
            )
        return torch.as_tensor(mask.reshape(-1))
