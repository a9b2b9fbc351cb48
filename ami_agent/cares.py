"""What in a state the tasks of an agent care for."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ami_agent import measures
from ami_agent.agent import Agent
from ami_agent.probe import states_of
from ami_agent.strolls import Strolls
from modules.configurator import Assignment
from modules.types import each


def shared(agent: Agent, walked: Strolls) -> dict[str, float]:
    """How much its tasks care for the same directions of the state; nothing where there are no two
    tasks."""
    tasks: list[Assignment] = []
    for assignment in agent.assignments.values():
        bare = replace(assignment, options={}, horizon=0)
        if bare not in tasks:  # the same in another world
            tasks.append(bare)
    if len(tasks) < 2:
        return {}
    return {"shared": measures.overlap([slope(agent, walked, task) for task in tasks])}


def slope(agent: Agent, walked: Strolls, assignment: Assignment) -> Tensor:
    """How the energy of resting for a step changes with the state at the end of walks, in units of
    how much each of its numbers varies; `[B, D]`. The goal is where the walk began, or, if it is
    the world's to name, where another one did."""
    count = len(walked.actions)
    shift = 1 if assignment.aim == "world" else 0
    goal = each(lambda part: part[:count].roll(shift, 0), walked.obs)
    task = assignment.task(None if assignment.aim == "none" else goal, "plan")
    gains = agent.configurator.primed(task)
    states = states_of(agent, walked.obs, gains).to(agent.device)
    lived = states.unflatten(0, (-1, count)).transpose(0, 1)  # [B, T + 1, D]
    here = lived[:, -1].clone().requires_grad_()
    focus = agent.configurator.focus(task, lived[:, 0].roll(shift, 0))
    focus = focus._replace(
        lived=lived[:, :-1], pace=agent.world_model.pace(here.detach()),
        known=agent.perceive(agent.landmarks.seen(), gains).detach(),
    )  # fmt: skip
    rest = here.new_zeros(count, 1, 1, agent.spec.action_dim)
    terms = agent.cost(agent.world_model.imagine(here, rest), focus)
    (slopes,) = torch.autograd.grad(sum(t.sum() for t in terms.values()) + 0 * here.sum(), here)
    return (slopes * states.std(0)).cpu()
