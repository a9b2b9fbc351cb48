"""What in a state the tasks of an agent care for."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ami_agent.agent import Agent
from ami_agent.probing import metrics
from ami_agent.probing.data import ProbeTrajectories
from ami_agent.probing.probe import states_of
from modules.configurator import TaskSpec
from modules.types import tree_map


def task_gradient_overlap(agent: Agent, trajectories: ProbeTrajectories) -> dict[str, float]:
    """How much its tasks care for the same directions of the state; nothing where there are no two
    tasks."""
    tasks: list[TaskSpec] = []
    for task_spec in agent.tasks.values():
        core_spec = replace(task_spec, options={}, horizon=0)
        if core_spec not in tasks:  # the same in another world
            tasks.append(core_spec)
    if len(tasks) < 2:
        return {}
    return {
        "task_gradient_overlap": metrics.gradient_overlap(
            [energy_gradient(agent, trajectories, task) for task in tasks]
        )
    }


def energy_gradient(agent: Agent, trajectories: ProbeTrajectories, task_spec: TaskSpec) -> Tensor:
    """How the energy of resting for a step changes with the state at the end of walks, in units of
    how much each of its numbers varies; `[B, D]`. The goal is where the walk began, or, if it is
    the world's to name, where another one did."""
    count = len(trajectories.actions)
    shift = 1 if task_spec.goal_source == "env" else 0
    goal = tree_map(lambda part: part[:count].roll(shift, 0), trajectories.obs)
    task = task_spec.to_task(None if task_spec.goal_source == "none" else goal, "plan")
    modality_weights = agent.configurator.modality_weights(task)
    states = states_of(agent, trajectories.obs, modality_weights).to(agent.device)
    episode_states = states.unflatten(0, (-1, count)).transpose(0, 1)  # [B, T + 1, D]
    last_state = episode_states[:, -1].clone().requires_grad_()
    context = agent.configurator.context(task, episode_states[:, 0].roll(shift, 0))
    context = context._replace(
        episode_states=episode_states[:, :-1], step_scale=agent.world_model.step_scale(last_state.detach()),
        reference_states=agent.encode(agent.reference_obs.observations(), modality_weights).detach(),
    )  # fmt: skip
    no_action = last_state.new_zeros(count, 1, 1, agent.spec.action_dim)
    terms = agent.cost(agent.world_model.imagine(last_state, no_action), context)
    (gradient,) = torch.autograd.grad(
        sum(t.sum() for t in terms.values()) + 0 * last_state.sum(), last_state
    )
    return (gradient * states.std(0)).cpu()
