"""Policies: the agent, random actions, and those that an environment has of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ami_agent.adapters.env import ActFn, EnvAdapter, Info, behaviour_policy, expert_policy
from ami_agent.adapters.vector_env import reported
from ami_agent.agent import Agent, Controller
from modules.configurator import Task, TaskSpec
from modules.types import ConfigError, Observation, Plan, as_dict, batch_size


class EpisodeStart(NamedTuple):
    """Environments in which episodes begin, with their first observations and infos."""

    env: EnvAdapter
    obs: Observation  # [B, *O]
    info: Info
    reset_mask: Tensor | None = None  # [B] bool: where an episode begins; everywhere if None
    same_task: bool = False  # a task without a goal stays, and the plans in the other environments


PolicyFactory = Callable[[EpisodeStart, int], ActFn]
"""The start of episodes and a seed -> a policy for them."""


class EnvGoals:
    """The goal that each environment named last; some name it only in the info of a reset."""

    goal: Observation | None = None  # [B, *O]

    def __call__(self, start: EpisodeStart) -> Observation:
        """The goals of the episodes now in progress; ConfigError where an environment should name
        one and doesn't."""
        named = torch.as_tensor(reported(start.info, "goal", batch_size(start.obs)))
        if named.all() or (self.goal is None and not named.any()):
            self.goal = start.env.goal(start.info)
            return self.goal
        missing = ~named
        if self.goal is not None and start.reset_mask is not None:
            missing = missing & start.reset_mask.cpu()
        if missing.any():
            raise ConfigError(
                f"environment {int(missing.nonzero()[0])} names no goal in the info of its reset; "
                "the agent needs one"
            )
        assert self.goal is not None
        if named.any():
            self.goal = _where_reset(self.goal, start.env.goal(start.info), named)
        return self.goal


class TaskTracker:
    """A task in environments whose episodes end at different times. `goals`: those of tasks that
    take turns within an episode."""

    def __init__(self, task_spec: TaskSpec, goals: EnvGoals | None = None) -> None:
        self.task_spec = task_spec
        self.start: Observation | None = None  # [B, *O]: the first of each episode
        self.goals = EnvGoals() if goals is None and task_spec.goal_source == "env" else goals

    def task(self, start: EpisodeStart, mode: str) -> Task:
        """The task of the episodes now in progress; ConfigError where an environment should name a
        goal and doesn't."""
        # read for tasks without a goal too: the next task may begin within this episode
        goal = None if self.goals is None else self.goals(start)
        if self.task_spec.goal_source == "none":
            goal = None
        elif self.task_spec.goal_source == "current":
            goal = self.start = _where_reset(self.start, start.obs, start.reset_mask)
        return self.task_spec.to_task(goal, mode)


def _where_reset(
    old: Observation | None, new: Observation, reset_mask: Tensor | None
) -> Observation:
    """The new observation where `reset_mask` `[B]`, else the old one."""
    if old is None or reset_mask is None:
        return new
    old_parts, parts = as_dict(old), {}
    for name, part in as_dict(new).items():
        mask = reset_mask.to(part.device).reshape(-1, *[1] * (part.ndim - 1))
        parts[name] = torch.where(mask, part, old_parts[name])
    return parts["obs"] if isinstance(new, Tensor) else parts


def agent_policy_factory(
    agent: Agent,
    mode: str,
    task_spec: TaskSpec,
    on_plan: Callable[[Plan], None] = lambda plan: None,
    controller: Controller | None = None,
    goals: EnvGoals | None = None,
) -> PolicyFactory:
    """The agent as a policy; `on_plan` is called with every plan. `controller`: one that takes
    tensors; every new policy resets it. `goals`: as in `TaskTracker`."""
    controller = controller or agent.controller(tensors=True)
    task_tracker, lasting = TaskTracker(task_spec, goals), agent.lasting_memory

    def make_policy(start: EpisodeStart, seed: int) -> ActFn:
        if start.reset_mask is None:
            controller.forget()  # these are other environments
        if start.same_task and task_spec.goal_source == "none":
            controller.reset(start.reset_mask, keep_plans=True)
        else:
            controller.reset(start.reset_mask)
            controller.set_task(task_tracker.task(start, mode), seed)

        def act_fn(obs: Observation) -> Tensor:
            signals = start.env.interoception
            plan = controller.act(obs) if lasting is None else controller.act(obs, signals)
            on_plan(plan)
            return plan.action

        return act_fn

    return make_policy


def make_behaviour_policy(start: EpisodeStart, seed: int) -> ActFn:
    """Goalless experience: the environment's own behaviour policy, where it has one."""
    return behaviour_policy(start.env)


def make_random_policy(start: EpisodeStart, seed: int) -> ActFn:
    """The random baseline: actions drawn uniformly from the action space."""
    return lambda obs: start.env.random_action()


def make_expert_policy(start: EpisodeStart, seed: int) -> ActFn:
    """The oracle baseline."""
    return expert_policy(start.env)
