"""Small settings: everything real, nothing long."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ami_agent import recipes
from ami_agent.cli.main import main
from ami_agent.config import Config
from ami_agent.training import (
    CollectRandom,
    CollectWithPlanner,
    DistillPlanner,
    NoStage,
    OnlineActorCritic,
    TrainQuasimetric,
)
from modules.actor.subgoals import LandmarkGraphConfig
from modules.types import PolicyFn, PolicyRolloutFn, Rollout, RolloutFn, TaskContext
from modules.world_model.hjepa import HierarchicalJEPAConfig


@pytest.fixture(autouse=True)
def _one_thread():
    """Tiny tensors: a second thread only waits for the first."""
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    """The longest first: where several processes share the work, none is left alone with them."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def make_context(goal: Tensor, **output: Any) -> TaskContext:
    """The Configurator's word about goals `[B, D]`, as plain as can be but for what is told."""
    plain = TaskContext(
        mode="plan", goal=goal, weights={}, limits={}, modality_weights={}, task_vector=goal[:, :0],
        horizon=3, iterations=8, cvar_alpha=1.0, episode_states=goal[:, None][:, :0], reference_states=goal[:0],
        step_scale=goal.new_ones(len(goal)), upper_plans=goal[:, None, None][:, :0],
    )  # fmt: skip
    return plain._replace(**output)


def stepwise(imagine: RolloutFn) -> PolicyRolloutFn:
    """Deciding as one goes, one imagined step after the other."""

    def pursue(state: Tensor, decide: PolicyFn, others: Tensor) -> Rollout:
        here, own = state, []
        for _ in range(others.shape[2]):
            own.append(decide(here))
            here = imagine(here, own[-1][:, None, None]).states[:, 0, -1]
        return imagine(state, torch.cat([torch.stack(own, 1)[:, None], others], 1))

    return pursue


def unexpected_query(state, free):
    """What a level is told of where actions lead, when it has no business to ask."""
    raise AssertionError("nobody was to ask where actions lead")


def small(config: Config, steps: int = 6) -> Config:
    """The same boxes and lessons, with a handful of updates each."""

    def shorter(stage, **changes):
        if isinstance(stage, NoStage):
            return stage
        optim = replace(stage.optim, steps=steps, batch_size=8, warmup_steps=1)
        return replace(stage, optim=optim, **changes)

    steps_lived = max(24, config.train_jepa.context_steps + config.train_jepa.length + 1)
    paths = (
        {}
        if isinstance(config.distill_paths, NoStage)
        else {"num_graphs": 2, "nodes_per_graph": 20, "group_size": 4}
    )
    practice = (
        config.planner_rollouts
        if isinstance(config.planner_rollouts, NoStage)
        else CollectWithPlanner(steps=7)
    )
    amortise = {} if isinstance(config.amortize_policy, NoStage) else {"group_size": 4}
    retrace = {} if isinstance(config.goal_bc, NoStage) else {"max_goal_offset": 10}
    teacher = {"group_size": 4} if isinstance(config.train_goal_critic, TrainQuasimetric) else {}
    mapped = isinstance(config.subgoals, LandmarkGraphConfig)
    if isinstance(config.subgoals, HierarchicalJEPAConfig):
        config = replace(config, subgoals=replace(config.subgoals, memory_size=40))
    return replace(
        config,
        subgoals=replace(
            config.subgoals, **({"num_landmarks": 6, "max_edges": 3} if mapped else {})
        ),
        select_landmarks=replace(
            config.select_landmarks,
            **({"num_candidates": 40, "num_windows": 20, "length": 8} if mapped else {}),
        ),
        collect=CollectRandom(num_envs=8, steps=steps_lived, options=config.collect.options),
        train_jepa=shorter(config.train_jepa),
        train_goal_critic=shorter(config.train_goal_critic, **teacher),
        distill_paths=shorter(config.distill_paths, **paths),
        train_values=shorter(config.train_values),
        actor_critic=shorter(
            config.actor_critic, steps=steps, train_jepa=shorter(config.train_jepa)
        )
        if isinstance(config.actor_critic, OnlineActorCritic)
        else config.actor_critic,
        train_hierarchy=shorter(config.train_hierarchy),
        planner_rollouts=practice,
        finetune_dynamics=shorter(config.finetune_dynamics),
        goal_bc=shorter(config.goal_bc, **retrace),
        amortize_policy=shorter(config.amortize_policy, **amortise),
        distill_policy=shorter(config.distill_policy, rounds=2, num_envs=4, steps=3)
        if isinstance(config.distill_policy, DistillPlanner)
        else config.distill_policy,
    )


@pytest.fixture
def tiny() -> Config:
    """The default recipe, trained in a second and judged in short episodes."""
    config = small(recipes.two_rooms())
    return replace(config, eval_env=replace(config.eval_env, options={"max_episode_steps": 40}))


def error_line(capsys, *argv: object) -> str:
    """The one line that such input is answered with; exit code 2."""
    assert main([str(a) for a in argv]) == 2
    message = capsys.readouterr().err
    assert message.startswith("ami: ")
    assert message.count("\n") == 1
    assert "Traceback" not in message
    return message
