"""Small settings: everything real, nothing long."""

from __future__ import annotations

import gc
import inspect
import signal
from dataclasses import replace
from functools import cache
from typing import Any

import ami_agent  # noqa: F401  # isort: skip  # before PyTorch, whose threads then wait asleep
import pytest
import torch
from torch import Tensor

from ami_agent import recipes
from ami_agent.adapters.env import EnvConfig
from ami_agent.cli.main import main
from ami_agent.config import Config, override
from ami_agent.evaluation import evaluate
from ami_agent.training import (
    AmortizePlanning,
    CollectBehaviour,
    CollectWithPlanner,
    DistillLandmarkPaths,
    DistillPlanner,
    DistillShortestPaths,
    GoalConditionedBC,
    LoadDataset,
    OfflineActorCritic,
    OnlineActorCritic,
    SelectLandmarks,
    TrainJEPA,
    TrainQuasimetric,
)
from ami_agent.training.optim import OptimConfig
from modules.actor.subgoals import LandmarkGraphConfig
from modules.types import PlannerCarry, PolicyFn, PolicyRolloutFn, Rollout, RolloutFn, TaskContext
from modules.world_model.hjepa import HierarchicalJEPAConfig

# a suite that is started in the background ignores Ctrl-C, and so would the processes it tests
signal.signal(signal.SIGINT, signal.default_int_handler)

OWN_RECIPES = [name for name in recipes.RECIPES if name not in ("ogbench", "gymnasium-robotics")]
"""Those that need neither another package nor recorded data."""


@pytest.fixture(autouse=True)
def _one_thread():
    """Tiny tensors: a second thread only waits for the first."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _few_timed_actions(monkeypatch):
    """An evaluation times some actions alone; what it times is no test's business but its own."""
    monkeypatch.setattr(evaluate, "TIMED_ACTIONS", 4)
    monkeypatch.setattr(evaluate, "WARM_UP_ACTIONS", 1)


@pytest.fixture(scope="session", autouse=True)
def _coarse_and_read_once():
    """Critic maps are coarse, and the source of a class, which every command line reads for the
    help of its settings, is looked up once."""
    find = inspect.findsource
    find_class = cache(find)

    def findsource(found):
        return (find_class if isinstance(found, type) else find)(found)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ami_agent.viewer.projectors.GRID_SIZE", 11)
        patch.setattr(inspect, "findsource", findsource)
        yield


def pytest_collection_finish():
    """What was imported stays: the garbage collector, which takes a fifth of the time of tests that
    read a command line, need not walk over it, nor come that often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)


def pytest_collection_modifyitems(items):
    """The longest first: where several processes share the work, none is left alone with them."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def make_context(goal: Tensor, **output: Any) -> TaskContext:
    """The configurator's context of goals `[B, D]`, with defaults for all that is not given."""
    plain = TaskContext(
        mode="plan",
        goal=goal,
        weights={},
        limits={},
        modality_weights={},
        task_vector=goal[:, :0],
        horizon=3,
        iterations=8,
        cvar_alpha=1.0,
        episode_states=goal[:, None][:, :0],
        reference_states=goal[:0],
        step_scale=goal.new_ones(len(goal)),
        upper_plans=goal[:, None, None][:, :0],
    )
    return plain._replace(**output)


def stepwise(imagine: RolloutFn) -> PolicyRolloutFn:
    """A closed-loop rollout, one imagined step after the other."""

    def pursue(state: Tensor, decide: PolicyFn, others: Tensor) -> Rollout:
        here, own = state, []
        for _ in range(others.shape[2]):
            own.append(decide(here))
            here = imagine(here, own[-1][:, None, None]).states[:, 0, -1]
        return imagine(state, torch.cat([torch.stack(own, 1)[:, None], others], 1))

    return pursue


def unexpected_query(state, free):
    """The imagination of a level that must not imagine."""
    raise AssertionError("the level imagined without a need")


def small(config: Config, steps: int = 6, iterations: int = 0) -> Config:
    """The same components and stages, with a handful of updates each; and of iterations of the
    planner, if given."""
    planner = {}
    if iterations:
        planner = {"actor.planner.iterations": iterations, "actor.planner.warm_iterations": 1}
    stages = {
        name: stage if isinstance(stage, OfflineActorCritic) else small_stage(stage, config, steps)
        for name, stage in config.stages.items()
    }
    subgoals = {}
    if isinstance(config.actor.subgoals, LandmarkGraphConfig):
        subgoals = {"actor.subgoals.num_landmarks": 6, "actor.subgoals.max_edges": 3}
    elif isinstance(config.actor.subgoals, HierarchicalJEPAConfig):
        subgoals = {"actor.subgoals.memory_size": 40}
    return override(config, {"stages": stages, **planner, **subgoals})


def tiny_gym(env: EnvConfig) -> Config:
    """The recipe `gym` for an environment, with plans of two steps and a training of seconds."""
    optim = OptimConfig(steps=2, batch_size=8)
    return override(
        recipes.gym(env),
        {
            "actor.planner.horizon": 2,
            "actor.planner.iterations": 1,
            "actor.planner.warm_iterations": 1,
            "stages.collect": CollectBehaviour(num_envs=1, steps=30),
            "stages.train_jepa.optim": optim,
            "stages.actor_critic.steps": 3,
            "stages.actor_critic.optim": replace(optim, steps=0),
            "stages.actor_critic.train_jepa.optim": replace(optim, steps=0),
        },
    )


FEW: dict[type, dict[str, Any]] = {
    TrainQuasimetric: {"group_size": 4},
    AmortizePlanning: {"group_size": 4},
    DistillShortestPaths: {"num_graphs": 2, "nodes_per_graph": 20, "group_size": 4},
    DistillLandmarkPaths: {
        "num_landmarks": 12,
        "num_candidates": 40,
        "num_windows": 20,
        "length": 4,
        "num_states": 40,
    },
    GoalConditionedBC: {"max_goal_offset": 10},
    DistillPlanner: {"rounds": 2, "num_envs": 4, "steps": 3},
}


def small_stage(stage: Any, config: Config, steps: int) -> Any:
    def shorter(stage, **changes):
        optim = replace(stage.optim, steps=steps, batch_size=8, warmup_steps=1)
        return replace(stage, optim=optim, **changes)

    jepa = config.find(TrainJEPA)
    match stage:
        case CollectBehaviour() | LoadDataset():
            collected = max(24, jepa.context_steps + jepa.length + 1)
            return CollectBehaviour(num_envs=8, steps=collected, options=config.collect.options)
        case CollectWithPlanner():
            return CollectWithPlanner(steps=7)
        case SelectLandmarks():
            return replace(stage, num_candidates=40, num_windows=20, length=8)
        case OnlineActorCritic():
            return shorter(stage, steps=steps, train_jepa=shorter(jepa))
    return shorter(stage, **FEW.get(type(stage), {}))


@pytest.fixture
def tiny() -> Config:
    """The default recipe, trained in a second and evaluated in short episodes."""
    config = small(recipes.two_rooms())
    return replace(config, eval_env=replace(config.eval_env, options={"max_episode_steps": 40}))


def error_line(capsys, *argv: object) -> str:
    """The one line that such input gets; exit code 2."""
    assert main([str(a) for a in argv]) == 2
    message = capsys.readouterr().err
    assert message.startswith("ami: ")
    assert message.count("\n") == 1
    assert "Traceback" not in message
    return message


class Stepping:
    """A planner, an actor or a level above, with what it carries from step to step of an
    episode."""

    def __init__(self, component: Any, seed: int = 0) -> None:
        self.component = component
        self.reset(seed)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.component, name)

    def reset(self, seed: int = 0) -> None:
        begin = getattr(self.component, "initial_carry", PlannerCarry.initial)
        self.carry = begin(seed)

    def set_warm_start(self, actions: Tensor) -> None:
        self.carry = self.carry._replace(warm_start=actions)

    def __call__(self, state: Tensor, context: TaskContext) -> Any:
        result, self.carry = self.component(state, context, self.carry)
        return result
