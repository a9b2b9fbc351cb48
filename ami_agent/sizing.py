"""How much memory a Config would take, estimated before anything is allocated: the agent is built
without storage (torch's meta device), and the outputs of its layers are counted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ami_agent.agent import Agent
from ami_agent.build import Config, buffer_size, build, capacity
from ami_agent.lessons import (
    Distil,
    Foresee,
    Interact,
    NoLesson,
    Practise,
    Retrace,
    ShortestPaths,
    Survey,
)
from ami_agent.lessons.rehearse import Improve
from ami_agent.life import Spec
from ami_agent.resources import check_memory
from modules.hierarchy import ImaginedGraph, LandmarkGraph
from modules.planners import CEM, MPPI, Collocation
from modules.types import Shape

AT_ONCE = 100
"""Episodes of an evaluation."""
FLOAT = 4
COPIES = 4
"""Of every weight: the weight, its gradient and the two moments of AdamW."""
OUTPUTS = 2
"""Of every layer: its own, and that of the nonlinearity behind it."""


class Part(NamedTuple):
    """Something that takes memory, and the settings that decide how much."""

    what: str
    size: float
    settings: str


def check_size(config: Config, spec: Spec) -> Agent:
    """Raises UnusableInput for the first part of a run that would take more memory than is free,
    and for parts that do so together; the agent that it returns has shapes, but no storage."""
    with torch.device("meta"):
        agent = build(config, spec, device="meta")
    parts = list(_lasting(config, spec, agent))
    passing = list(_passing(config, spec, agent))
    for part in (*parts, *passing):
        check_memory(part.size, part.what, part.settings)
    together = sorted([*parts, max(passing, key=_size)], key=_size, reverse=True)
    check_memory(
        sum(map(_size, together)),
        f"{together[0].what} and {together[1].what} together",
        f"{together[0].settings}, or {together[1].settings},",
    )
    return agent


def check_planning(config: Config, spec: Spec, agent: Agent) -> None:
    """Raises UnusableInput where an evaluation would take more memory than is free: as many plans
    at once as it has episodes at once."""
    alone = replace(config, distil=NoLesson(), practice=NoLesson(), interact=NoLesson())
    plan = next(_plans(alone, spec, agent, _imagined(agent)))
    check_memory(AT_ONCE * plan.size, f"{AT_ONCE} plans at once", plan.settings)


def _size(part: Part) -> float:
    return part.size


def _lasting(config: Config, spec: Spec, agent: Agent) -> Iterator[Part]:
    """What is there as long as the run is."""
    learnt = sum(map(_bytes, agent.parameters()))
    kept = sum(map(_bytes, agent.buffers()))
    worlds, rows = config.life.worlds, capacity(config) + 1
    yield Part(
        "the agent's weights with their gradients and moments", COPIES * learnt + kept,
        "the layers (--*.hidden, .channels, .state, .waves, .members) or --landmarks",
    )  # fmt: skip
    states = rows * worlds * FLOAT * prod(agent.shape)  # those that stages encode once
    yield Part(
        "the replay buffer", buffer_size(config, spec) + states,
        "--life.worlds, --life.steps or --interact.steps",
    )  # fmt: skip
    if isinstance(config.survey, Survey) and isinstance(config.hierarchy, LandmarkGraph.Config):
        marks, size = config.hierarchy.landmarks, prod(agent.shape)
        chosen = config.survey.remembered + config.survey.walks * (config.survey.length + 1)
        futures = config.hierarchy.futures if agent.world_model.level(0).latent.chances else 1
        yield Part(
            "the graph of landmarks",
            FLOAT * (4 * marks**2 + size * (chosen + marks * futures)),
            "--hierarchy.landmarks, --hierarchy.futures, --survey.remembered, --survey.walks or "
            "--survey.length",
        )
    if isinstance(config.hierarchy, ImaginedGraph.Config):
        marks = config.hierarchy.landmarks + config.hierarchy.waiting
        grown = config.hierarchy.grow * config.hierarchy.ways * config.hierarchy.length
        yield Part(
            "the graph of imagined landmarks",
            FLOAT * (marks + grown) * (2 * marks + prod(agent.shape)),
            "--hierarchy.landmarks, .waiting, .grow, .ways or .length",
        )
    if isinstance(config.paths, ShortestPaths):
        graphs, nodes = config.paths.layouts, config.paths.nodes
        yield Part(
            "the graphs of shortest paths",
            graphs * nodes * (2 * nodes + 2 * FLOAT * prod(agent.shape)) + 2 * FLOAT * nodes**2,
            "--paths.layouts or --paths.nodes",
        )


def _passing(config: Config, spec: Spec, agent: Agent) -> Iterator[Part]:
    """What one update, or one plan, takes."""
    seen, ahead = _perceived(spec, agent), _imagined(agent)
    state = FLOAT * prod(agent.shape)
    spread = FLOAT * agent.shape[0] ** 2
    for name, model in (("objective", config.objective), ("interact.objective", _online(config))):
        if model is not None:
            batch, steps = model.learning.batch, model.context + model.length
            yield Part(
                f"a batch of {name}",
                batch * (steps + 1) * (seen + _of_observation(spec))
                + batch * model.length * (model.context + 1) * ahead + spread,
                f"--{name}.learning.batch, --{name}.length or the layers of perception",
            )  # fmt: skip
    for name in ("teacher", "foresee", "interact", "ascend", "retrace", "amortise", "distil"):
        stage: Any = getattr(config, name)
        batch = stage.learning.batch if hasattr(stage, "learning") else 0
        steps = getattr(stage, "length", getattr(stage, "horizon", 1))
        rolled = ahead if isinstance(stage, Improve) or name == "amortise" else 0
        if isinstance(stage, Retrace):
            steps = stage.ahead
        if isinstance(stage, Foresee):
            rolled, steps = ahead * stage.futures, max(stage.length, stage.horizon)
        yield Part(
            f"a batch of {name}", batch * ((steps + 1) * state + steps * rolled),
            f"--{name}.learning.batch or the steps of its windows",
        )  # fmt: skip
    yield from _plans(config, spec, agent, ahead)


def _online(config: Config) -> Any:
    return config.interact.objective if isinstance(config.interact, Improve) else None


def _plans(config: Config, spec: Spec, agent: Agent, ahead: float) -> Iterator[Part]:
    planner, worlds = config.planner, 1
    if isinstance(config.distil, Distil):
        worlds = max(worlds, config.distil.worlds)
    planned = isinstance(config.interact, Interact) and config.interact.mode == "plan"
    if isinstance(config.practice, Practise) or planned:
        worlds = max(worlds, config.life.worlds)
    futures = config.futures.count if agent.world_model.level(0).latent.chances else 1
    state: float = FLOAT * (prod(agent.shape) + spec.action_dim + len(spec.interoception))
    if isinstance(planner, (CEM.Config, MPPI.Config)):  # no gradient: only the paths are kept
        tried, step = planner.samples, float(state)
    else:
        tried, step = planner.proposals + planner.carried, ahead
    if isinstance(planner, Collocation.Config):
        step += 4 * state
    yield Part(
        "planning", worlds * futures * tried * (planner.horizon * step + ahead),
        "--planner.horizon, --planner.proposals or .samples, --futures.count or --distil.worlds",
    )  # fmt: skip
    if isinstance(config.distil, Distil):
        labels = config.distil.rounds * config.distil.worlds * config.distil.steps
        yield Part(
            "the labels of distil", labels * (2 * state),
            "--distil.rounds, --distil.worlds or --distil.steps",
        )  # fmt: skip


def _perceived(spec: Spec, agent: Agent) -> float:
    """Bytes that perception keeps of one observation while it learns."""
    images = [shape for shape in spec.shapes.values() if len(shape) == 3]
    largest = max(images, key=prod, default=(1, 1, 1))
    numbers = sum(map(prod, spec.shapes.values()))
    return FLOAT * (numbers + OUTPUTS * _outputs(agent.perception, largest))


def _imagined(agent: Agent) -> float:
    """Bytes that the world model keeps of one imagined step from one state."""
    outputs = _outputs(agent.world_model, agent.shape)
    return FLOAT * (2 * prod(agent.shape) + OUTPUTS * outputs)


def _outputs(model: nn.Module, shape: Shape) -> float:
    """Numbers that the layers of a model return for one input; of images and maps, `[C, h, w]`,
    those of one stack of convolutions after the other."""
    found, places = 0.0, dict[str, float]()
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear):
            found += layer.out_features
        elif isinstance(layer, nn.Conv2d):
            stack = name.rpartition(".")[0]
            left = places.get(stack, shape[1] * shape[2]) / prod(layer.stride)
            places[stack] = left
            found += layer.out_channels * left
    return found


def _of_observation(spec: Spec) -> int:
    return sum(map(_bytes, spec.blank(1).values() if len(spec.senses) > 1 else [spec.blank(1)]))


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
