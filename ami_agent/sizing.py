"""An estimate of the memory that a Config needs, before anything is allocated: the agent is built
without storage (on torch's meta device), and the outputs of its layers are counted."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ami_agent.adapters.env import EnvironmentSpec
from ami_agent.agent import Agent
from ami_agent.config import Config, buffer_size, buffer_steps, build, override
from ami_agent.config_io import flag_of
from ami_agent.resources import check_memory
from ami_agent.training import (
    CollectWithPlanner,
    DistillPlanner,
    DistillShortestPaths,
    FinetuneDynamics,
    GoalConditionedBC,
    SelectLandmarks,
    TrainJEPA,
    TrainValue,
)
from ami_agent.training.actor_critic import ActorCriticStage
from modules.actor.planning import (
    CEMConfig,
    CollocationConfig,
    GradientPlannerConfig,
    MPPIConfig,
)
from modules.actor.subgoals import (
    ImaginedLandmarkGraphConfig,
    LandmarkGraphConfig,
)
from modules.types import MapShape

EVAL_EPISODES_AT_ONCE = 100
"""Plans at once in an evaluation."""
FLOAT_BYTES = 4
COPIES_PER_WEIGHT = 4
"""The weight, its gradient and the two moments of AdamW."""
OUTPUTS_PER_LAYER = 2
"""The output of the layer, and of the nonlinearity after it."""


class MemoryUse(NamedTuple):
    """A use of memory, its size in bytes and the settings that decide it."""

    what: str
    size: float
    settings: str


def check_size(config: Config, spec: EnvironmentSpec) -> Agent:
    """Raises ConfigError for the first part of a run that needs more memory than is free, and for
    parts that do so together. Returns the agent, with shapes but no storage."""
    with torch.device("meta"):
        agent = build(config, spec, device="meta")
    parts = list(_permanent_parts(config, spec, agent))
    temporary = list(_temporary_parts(config, spec, agent))
    for part in (*parts, *temporary):
        check_memory(part.size, part.what, part.settings)
    largest_first = sorted([*parts, max(temporary, key=_size)], key=_size, reverse=True)
    check_memory(
        sum(map(_size, largest_first)),
        f"{largest_first[0].what} and {largest_first[1].what} together",
        f"{largest_first[0].settings}, or {largest_first[1].settings},",
    )
    return agent


def check_planning(config: Config, spec: EnvironmentSpec, agent: Agent) -> None:
    """Raises ConfigError where an evaluation would take more memory than is free: as many plans
    at once as it has episodes at once."""
    offline_config = override(
        config,
        {
            "stages.distill_policy": None,
            "stages.planner_rollouts": None,
            "stages.actor_critic": None,
        },
    )
    plan = next(_plan_parts(offline_config, spec, agent, _imagination_bytes(agent)))
    check_memory(
        EVAL_EPISODES_AT_ONCE * plan.size, f"{EVAL_EPISODES_AT_ONCE} plans at once", plan.settings
    )


def _size(part: MemoryUse) -> float:
    return part.size


def _permanent_parts(config: Config, spec: EnvironmentSpec, agent: Agent) -> Iterator[MemoryUse]:
    """The memory that is in use during the whole run."""
    weight_bytes = sum(map(_bytes, agent.parameters()))
    buffer_bytes = sum(map(_bytes, agent.buffers()))
    num_envs, rows = config.collect.num_envs, buffer_steps(config) + 1
    yield MemoryUse(
        "the agent's weights with their gradients and moments",
        COPIES_PER_WEIGHT * weight_bytes + buffer_bytes,
        "the layers (--*.hidden, .channels, .state-dim, .num-frequencies, .members) or "
        "--num-reference-obs",
    )  # fmt: skip
    states = rows * num_envs * FLOAT_BYTES * prod(agent.shape)  # those that stages encode once
    yield MemoryUse(
        "the replay buffer", buffer_size(config, spec) + states,
        "--collect.num-envs, --collect.steps or --actor-critic.steps",
    )  # fmt: skip
    landmarks = config.find(SelectLandmarks)
    if landmarks and isinstance(config.actor.subgoals, LandmarkGraphConfig):
        num_landmarks, size = config.actor.subgoals.num_landmarks, prod(agent.shape)
        num_states = landmarks.num_candidates + landmarks.num_windows * (landmarks.length + 1)
        outcomes = (
            config.actor.subgoals.num_outcomes if agent.world_model.level(0).latent.noise_dim else 1
        )
        yield MemoryUse(
            "the graph of landmarks",
            FLOAT_BYTES * (4 * num_landmarks**2 + size * (num_states + num_landmarks * outcomes)),
            "--subgoals.num-landmarks, --subgoals.num-outcomes, --select-landmarks.num-candidates, "
            "--select-landmarks.num-windows or --select-landmarks.length",
        )
    if isinstance(config.actor.subgoals, ImaginedLandmarkGraphConfig):
        graph = config.actor.subgoals
        num_landmarks = graph.num_landmarks + graph.frontier_size
        num_grown = graph.nodes_per_round * graph.branches * graph.branch_steps
        yield MemoryUse(
            "the graph of imagined landmarks",
            FLOAT_BYTES * (num_landmarks + num_grown) * (2 * num_landmarks + prod(agent.shape)),
            "--subgoals.num-landmarks, .frontier-size, .nodes-per-round, .branches or "
            ".branch-steps",
        )
    if paths := config.find(DistillShortestPaths):
        graphs, nodes = paths.num_graphs, paths.nodes_per_graph
        yield MemoryUse(
            "the graphs of shortest paths",
            graphs * nodes * (2 * nodes + 2 * FLOAT_BYTES * prod(agent.shape))
            + 2 * FLOAT_BYTES * nodes**2,
            "--distill-paths.num-graphs or --distill-paths.nodes-per-graph",
        )


def _temporary_parts(config: Config, spec: EnvironmentSpec, agent: Agent) -> Iterator[MemoryUse]:
    """The memory that one update, or one plan, needs."""
    perceived_bytes, imagined_bytes = _perception_bytes(spec, agent), _imagination_bytes(agent)
    state = FLOAT_BYTES * prod(agent.shape)
    covariance_bytes = FLOAT_BYTES * agent.shape[0] ** 2
    for name, jepa_stage in (
        ("train_jepa", config.find(TrainJEPA)),
        ("actor_critic.train_jepa", _online_model_stage(config)),
    ):
        if jepa_stage is not None:
            batch, steps = jepa_stage.optim.batch_size, jepa_stage.context_steps + jepa_stage.length
            yield MemoryUse(
                f"a batch of {name}",
                batch * (steps + 1) * (perceived_bytes + _observation_bytes(spec))
                + batch * jepa_stage.length * (jepa_stage.context_steps + 1) * imagined_bytes
                + covariance_bytes,
                f"{flag_of(name)}.optim.batch-size, .length or the layers of perception",
            )  # fmt: skip
    for name, some_stage in config.stages.items():
        stage: Any = some_stage
        if isinstance(stage, (TrainJEPA, FinetuneDynamics, DistillShortestPaths)):
            continue
        batch = stage.optim.batch_size if hasattr(stage, "optim") else 0
        steps = getattr(stage, "length", getattr(stage, "horizon", 1))
        imagines = isinstance(stage, ActorCriticStage) or name == "amortize_policy"
        imagined_per_step = imagined_bytes if imagines else 0
        if isinstance(stage, GoalConditionedBC):
            steps = stage.max_goal_offset
        if isinstance(stage, TrainValue):
            imagined_per_step = imagined_bytes * stage.num_imagined
            steps = max(stage.length, stage.horizon)
        yield MemoryUse(
            f"a batch of {name}", batch * ((steps + 1) * state + steps * imagined_per_step),
            f"{flag_of(name)}.optim.batch-size or the steps of its windows",
        )  # fmt: skip
    yield from _plan_parts(config, spec, agent, imagined_bytes)


def _online_model_stage(config: Config) -> TrainJEPA | None:
    actor_critic = config.find(ActorCriticStage)
    return actor_critic.train_jepa if actor_critic else None


def _plan_parts(
    config: Config, spec: EnvironmentSpec, agent: Agent, imagined_bytes: float
) -> Iterator[MemoryUse]:
    planner, num_envs = config.actor.planner, 1
    if distillation := config.find(DistillPlanner):
        num_envs = max(num_envs, distillation.num_envs)
    if config.find(CollectWithPlanner):
        num_envs = max(num_envs, config.collect.num_envs)
    scenarios = (
        config.actor.risk.num_scenarios if agent.world_model.level(0).latent.noise_dim else 1
    )
    state: float = FLOAT_BYTES * (prod(agent.shape) + spec.action_dim + len(spec.interoception))
    if isinstance(planner, (CEMConfig, MPPIConfig)):  # no gradient: only states are kept
        num_candidates, step = planner.num_samples, float(state)
    elif isinstance(planner, (GradientPlannerConfig, CollocationConfig)):
        num_candidates = planner.num_proposals + planner.num_warm_starts
        step = imagined_bytes
    else:  # of a planner of the user's own it is not known
        num_candidates, step = 1, imagined_bytes
    if isinstance(planner, CollocationConfig):
        step += 4 * state
    yield MemoryUse(
        "planning",
        num_envs * scenarios * num_candidates * (planner.horizon * step + imagined_bytes),
        "--planner.horizon, --planner.num-proposals or .num-samples, --risk.num-scenarios or "
        "--distill-policy.num-envs",
    )  # fmt: skip
    if distillation:
        labels = distillation.rounds * distillation.num_envs * distillation.steps
        yield MemoryUse(
            "the labels of distill_policy", labels * (2 * state),
            "--distill-policy.rounds, --distill-policy.num-envs or --distill-policy.steps",
        )  # fmt: skip


def _perception_bytes(spec: EnvironmentSpec, agent: Agent) -> float:
    """Bytes that perception keeps of one observation for the gradient."""
    images = [shape for shape in spec.shapes.values() if len(shape) == 3]
    largest_image = max(images, key=prod, default=(1, 1, 1))
    numbers = sum(map(prod, spec.shapes.values()))
    return FLOAT_BYTES * (numbers + OUTPUTS_PER_LAYER * _outputs(agent.perception, largest_image))


def _imagination_bytes(agent: Agent) -> float:
    """Bytes that the world model keeps of one imagined step from one state for the gradient."""
    outputs = _outputs(agent.world_model, agent.shape)
    return FLOAT_BYTES * (2 * prod(agent.shape) + OUTPUTS_PER_LAYER * outputs)


def _outputs(model: nn.Module, shape: MapShape) -> float:
    """Numbers that the layers of a model output for one input; `shape`: that of an image or map,
    `[C, h, w]`, which every stack of convolutions reads."""
    total, sizes = 0.0, dict[str, float]()
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear):
            total += layer.out_features
        elif isinstance(layer, nn.Conv2d):
            stack = name.rpartition(".")[0]
            size = sizes.get(stack, shape[1] * shape[2]) / prod(layer.stride)
            sizes[stack] = size
            total += layer.out_channels * size
    return total


def _observation_bytes(spec: EnvironmentSpec) -> int:
    return sum(map(_bytes, spec.zeros(1).values() if len(spec.modalities) > 1 else [spec.zeros(1)]))


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
