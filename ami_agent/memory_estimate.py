"""An estimate of the memory that a Config needs, before anything is allocated: the agent is built
without storage (on torch's meta device), and the outputs of its layers are counted."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any, NamedTuple

import torch
from torch import nn

from ami_agent import components, training
from ami_agent.adapters.env import EnvironmentSpec
from ami_agent.agent import Agent
from ami_agent.config import Config, buffer_steps, build
from ami_agent.config_io import flag_of
from ami_agent.hardware import available_memory, check_memory, format_bytes
from ami_agent.training.actor_critic import ActorCriticStage
from modules.actor.planning.gradient import MAX_EVALUATIONS
from modules.memory.replay_buffer import ReplayBuffer
from modules.types import MapShape, as_dict

EVAL_EPISODES_AT_ONCE = 100  # plans at once in an evaluation
FLOAT_BYTES = 4
COPIES_PER_WEIGHT = 4  # the weight, its gradient and the two moments of AdamW
OUTPUTS_PER_LAYER = 2  # the output of the layer, and of the nonlinearity after it


class MemoryUse(NamedTuple):
    """A use of memory, its size in bytes and the settings that decide it."""

    size: float
    what: str
    settings: str


def check_size(config: Config, spec: EnvironmentSpec) -> Agent:
    """Raises ConfigError for the first part of a run that needs more memory than is free, and for
    parts that do so together. Returns the agent, with shapes but no storage."""
    with torch.device("meta"):
        agent = build(config, spec, device="meta")
    parts = list(_permanent_parts(config, spec, agent))
    temporary = list(_temporary_parts(config, spec, agent))
    for part in (*parts, *temporary):
        check_memory(*part)
    first, second, *_ = largest_first = sorted([*parts, max(temporary)], reverse=True)
    check_memory(
        sum(part.size for part in largest_first),
        f"{first.what} and {second.what} together",
        f"{first.settings}, or {second.settings},",
    )
    return agent


def check_planning(config: Config, spec: EnvironmentSpec, agent: Agent) -> None:
    """Raises ConfigError where all plans of an evaluation at once exceed the free memory."""
    size, _, settings = _planning(config, spec, agent, EVAL_EPISODES_AT_ONCE)
    check_memory(size, f"{EVAL_EPISODES_AT_ONCE} plans at once", settings)


def buffer_size(config: Config, spec: EnvironmentSpec) -> int:
    """Bytes that the replay buffer of a run takes."""
    example, stack = spec.empty_transition(1), config.env.frame_stack
    return config.collect.num_envs * ReplayBuffer.num_bytes(buffer_steps(config), example, stack)


def is_in_file(config: Config, spec: EnvironmentSpec) -> bool:
    """Whether the replay buffer of a run lies in a file: where its data are recorded, and more than
    half of the free memory would be needed, or the user says so."""
    data = config.collect
    if not isinstance(data, training.LoadDataset) or data.in_memory == "yes":
        return False
    free = available_memory()
    return data.in_memory == "no" or (free is not None and 2 * buffer_size(config, spec) > free)


def describe_buffer(config: Config, spec: EnvironmentSpec) -> str:
    """The size of the replay buffer as a line: steps, modalities, bytes."""
    stack = config.env.frame_stack
    parts = []
    for name, (shape, dtype) in spec.modalities.items():
        size = "x".join(map(str, (shape[0] // stack, *shape[1:])))
        parts.append(f"{'' if name == 'obs' else f'{name} '}{size} {str(dtype)[6:]}")
    frames = f" (one of {stack} frames; the stack is rebuilt when it is read)" if stack > 1 else ""
    steps = buffer_steps(config) * config.collect.num_envs
    size = format_bytes(buffer_size(config, spec))
    where = ", in a file" if is_in_file(config, spec) else ""
    return f"replay buffer: {steps:,} steps of {', '.join(parts)}{frames} = {size}{where}"


def _permanent_parts(config: Config, spec: EnvironmentSpec, agent: Agent) -> Iterator[MemoryUse]:
    """The memory that is in use during the whole run."""
    state_bytes = FLOAT_BYTES * prod(agent.shape)
    yield MemoryUse(
        COPIES_PER_WEIGHT * sum(part.nbytes for part in agent.parameters())
        + sum(part.nbytes for part in agent.buffers()),
        "the agent's weights with their gradients and moments",
        "the layers (--*.hidden, .channels, .state-dim, .num-frequencies, .members) or "
        "--num-reference-obs",
    )
    encoded = (buffer_steps(config) + 1) * config.collect.num_envs * state_bytes  # once, by stages
    if not is_in_file(config, spec):
        yield MemoryUse(
            buffer_size(config, spec) + encoded,
            "the replay buffer",
            "--data.steps or --actor-critic.steps"
            if isinstance(config.collect, training.LoadDataset)
            else "--collect.num-envs, --collect.steps or --actor-critic.steps",
        )
    graph, landmarks = config.actor.subgoals, config.find(training.SelectLandmarks)
    if landmarks and isinstance(graph, components.LandmarkGraphConfig):
        num_states = landmarks.num_candidates + landmarks.num_windows * (landmarks.length + 1)
        num_outcomes = graph.num_outcomes if agent.world_model.latent.noise_dim else 1
        yield MemoryUse(
            4 * FLOAT_BYTES * graph.num_landmarks**2
            + state_bytes * (num_states + graph.num_landmarks * num_outcomes),
            "the graph of landmarks",
            "--subgoals.num-landmarks, --subgoals.num-outcomes, --select-landmarks.num-candidates, "
            "--select-landmarks.num-windows or --select-landmarks.length",
        )
    if isinstance(graph, components.ImaginedLandmarkGraphConfig):
        num_landmarks = graph.num_landmarks + graph.frontier_size
        num_grown = graph.nodes_per_round * graph.branches * graph.branch_steps
        yield MemoryUse(
            (num_landmarks + num_grown) * (2 * FLOAT_BYTES * num_landmarks + state_bytes),
            "the graph of imagined landmarks",
            "--subgoals.num-landmarks, .frontier-size, .nodes-per-round, .branches or "
            ".branch-steps",
        )
    if paths := config.find(training.DistillShortestPaths):
        graphs, nodes = paths.num_graphs, paths.nodes_per_graph
        yield MemoryUse(
            2 * graphs * nodes * (nodes + state_bytes) + 2 * FLOAT_BYTES * nodes**2,
            "the graphs of shortest paths",
            "--distill-paths.num-graphs or --distill-paths.nodes-per-graph",
        )
    if over_landmarks := config.find(training.DistillLandmarkPaths):
        stage, count = over_landmarks, over_landmarks.num_landmarks
        num_states = stage.num_candidates + stage.num_windows * (stage.length + 1)
        numbers = 6 * count + 3 * stage.num_states + 4 * stage.optim.batch_size
        yield MemoryUse(
            FLOAT_BYTES * count * numbers + state_bytes * num_states,
            "the paths over landmarks",
            "--distill-landmark-paths.num-landmarks, .num-states, .num-candidates, .num-windows, "
            ".length or .optim.batch-size",
        )


def _temporary_parts(config: Config, spec: EnvironmentSpec, agent: Agent) -> Iterator[MemoryUse]:
    """The memory that one update, or one plan, needs."""
    state_bytes, imagined_bytes = FLOAT_BYTES * prod(agent.shape), _imagination_bytes(agent)
    images = [shape for shape in spec.shapes.values() if len(shape) == 3]
    outputs = _outputs(agent.perception, max(images, key=prod, default=(1, 1, 1)))
    obs_bytes = FLOAT_BYTES * (sum(map(prod, spec.shapes.values())) + OUTPUTS_PER_LAYER * outputs)
    obs_bytes += sum(part.nbytes for part in as_dict(spec.zeros(1)).values())
    actor_critic = config.find(ActorCriticStage)
    for name, jepa in (
        ("train_jepa", config.find(training.TrainJEPA)),
        ("actor_critic.train_jepa", actor_critic.train_jepa if actor_critic else None),
    ):
        if jepa is not None:
            steps_per_window = jepa.context_steps + jepa.length + 1
            imagined_per_window = jepa.length * (jepa.context_steps + 1)
            yield MemoryUse(
                jepa.optim.batch_size
                * (steps_per_window * obs_bytes + imagined_per_window * imagined_bytes)
                + FLOAT_BYTES * agent.shape[0] ** 2,  # of the covariance
                f"a batch of {name}",
                f"{flag_of(name)}.optim.batch-size, .length or the layers of perception",
            )
    if pretraining := config.find(training.PretrainMasked):
        # of context, targets and copies; the predictor reads the tokens of each target block
        num_blocks = pretraining.masks.num_targets
        perception: Any = agent.perception
        tokens = sum(prod(image.grid) for image in perception.maskable_images().values())
        width, depth = pretraining.predictor.width, pretraining.predictor.depth
        predictor_bytes = FLOAT_BYTES * num_blocks * tokens * depth * 12 * width
        yield MemoryUse(
            pretraining.optim.batch_size
            * pretraining.num_frames
            * (3 * obs_bytes + predictor_bytes),
            "a batch of pretrain",
            "--pretrain.optim.batch-size, .num-frames, .predictor.width or layers of perception",
        )
    for name, some_stage in config.stages.items():
        stage: Any = some_stage
        others = (
            training.PretrainMasked, training.TrainJEPA, training.FinetuneDynamics,
            training.DistillShortestPaths, training.DistillLandmarkPaths,
        )  # fmt: skip
        if isinstance(stage, others):
            continue
        steps = getattr(stage, "length", getattr(stage, "horizon", 1))
        imagines = isinstance(stage, ActorCriticStage) or name == "amortize_policy"
        imagined_per_step = imagined_bytes if imagines else 0
        if isinstance(stage, training.GoalConditionedBC):
            steps = stage.max_goal_offset
        if isinstance(stage, training.TrainValue):
            imagined_per_step = imagined_bytes * stage.num_imagined
            steps = max(stage.length, stage.horizon)
        batch_size = stage.optim.batch_size if hasattr(stage, "optim") else 0
        yield MemoryUse(
            batch_size * ((steps + 1) * state_bytes + steps * imagined_per_step),
            f"a batch of {name}",
            f"{flag_of(name)}.optim.batch-size or the steps of its windows",
        )
    distillation = config.find(training.DistillPlanner)
    num_plans = distillation.num_envs if distillation else 1
    if config.find(training.CollectWithPlanner):
        num_plans = max(num_plans, config.collect.num_envs)
    yield _planning(config, spec, agent, num_plans)
    if distillation:
        labels = distillation.rounds * distillation.num_envs * distillation.steps
        yield MemoryUse(
            2 * labels * _step_bytes(spec, agent),
            "the labels of distill_policy",
            "--distill-policy.rounds, --distill-policy.num-envs or --distill-policy.steps",
        )


def _planning(config: Config, spec: EnvironmentSpec, agent: Agent, num_plans: int) -> MemoryUse:
    """The memory of so many plans at once."""
    planner, imagined_bytes = config.actor.planner, _imagination_bytes(agent)
    is_random = agent.world_model.latent.noise_dim
    num_scenarios = config.actor.risk.num_scenarios if is_random else 1
    num_candidates, step_bytes = 1, imagined_bytes  # of a planner of the user's own it isn't known
    samplers = components.CEMConfig, components.MPPIConfig
    if isinstance(planner, (*samplers, components.TreeSearchConfig)):
        num_candidates = (
            planner.num_samples if isinstance(planner, samplers) else planner.iterations + 1
        )
        # no gradient: states are kept, and modulations of the dynamics for all steps
        layer_bytes = FLOAT_BYTES * _outputs(agent.world_model, agent.shape)
        step_bytes = _step_bytes(spec, agent) + layer_bytes
    elif isinstance(planner, (components.GradientPlannerConfig, components.CollocationConfig)):
        num_candidates = planner.num_proposals + planner.num_warm_starts
        # evaluations are kept, and stacked, until the best of each candidate is chosen
        kept = min(MAX_EVALUATIONS, max(planner.iterations, planner.warm_iterations) + 1)
        step_bytes += 2 * kept * _step_bytes(spec, agent)
    if isinstance(planner, components.CollocationConfig):
        step_bytes += 4 * _step_bytes(spec, agent)
    rollout_bytes = planner.horizon * step_bytes + imagined_bytes
    return MemoryUse(
        num_plans * num_scenarios * num_candidates * rollout_bytes,
        "planning",
        "--planner.horizon, --planner.num-proposals or .num-samples, --risk.num-scenarios or "
        "--distill-policy.num-envs",
    )


def _step_bytes(spec: EnvironmentSpec, agent: Agent) -> float:
    """Bytes of one imagined step: state, action and interoception."""
    return FLOAT_BYTES * (prod(agent.shape) + spec.action_dim + len(spec.interoception))


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
