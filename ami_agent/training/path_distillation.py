"""Dynamic programming for the critics: distances learn the lengths of shortest paths over
graphs of recorded states."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Annotated

import torch
from torch import Tensor, nn

from ami_agent.adapters.env import EnvConfig
from ami_agent.agent import Agent
from ami_agent.training.base import SGDStage, SGDStageRun, StageRun
from ami_agent.training.critics import TrainQuasimetric, check_goal_critic, critic_of
from ami_agent.training.distributed import split_states
from ami_agent.training.hierarchy import LandmarkSelector, SelectLandmarks
from ami_agent.training.optim import OptimConfig
from ami_agent.training.precision import exact
from modules.actor.subgoals import LandmarkGraphConfig
from modules.actor.subgoals.landmark_graph import CHUNK_SIZE, LandmarkGraph
from modules.actor.subgoals.shortest_paths import (
    edge_costs,
    shortest_paths,
    shortest_paths_with_lengths,
)
from modules.cost.goal_critic import Quasimetric
from modules.memory.short_term import unroll_memory
from modules.types import BATCH, HORIZON, ConfigError, QuasimetricFns, tree_map
from modules.world_model.hjepa import HierarchicalJEPA, HierarchicalJEPAConfig

if TYPE_CHECKING:
    from ami_agent.config import Config

FIRST_LANDMARKS = 32
"""A path that is not direct leads first to one of so many landmarks nearest to its start."""
IMAGINED_FRACTION = 0.5
"""Fraction of the states on shortest paths that the world model predicts from the state before, in
place of those that perception encodes."""


def path_regression_loss(
    distance: Callable[[Tensor, Tensor], Tensor], state: Tensor, goal: Tensor, steps: Tensor
) -> dict[str, Tensor]:
    """Regression on known numbers of steps `[B]`; the squared error is divided by 1 + steps, so
    that short distances are learnt as well. Pairs with infinite steps, which no known path joins,
    don't count."""
    is_known = steps.isfinite()
    steps = steps.masked_fill(~is_known, 0)
    error = (distance(state, goal) - steps).square() / (1 + steps)
    return {"regression": (error * is_known).sum() / is_known.sum().clamp_min(1)}


def exact_distance(distance: Quasimetric, state: Tensor, goal: Tensor) -> Tensor:
    """The distance in float32, in any precision: states, goals `[..., D]` -> `[...]`."""
    with exact(state.device):
        return distance.from_embeddings(*split_states(distance.embed, state, goal))


@dataclass(frozen=True, kw_only=True)
class DistillShortestPaths(SGDStage):
    """Trains the goal critic by dynamic programming: the states of each of some recorded episodes
    are the nodes of a graph, and the critic learns the lengths of its shortest paths."""

    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(steps=2000, batch_size=256, lr=2e-3)
    )
    num_graphs: Annotated[int, (1, 1_000_000)] = 200
    """Episodes that become a graph."""
    nodes_per_graph: Annotated[int, (2, 100_000)] = 640
    """States of each graph."""
    group_size: Annotated[int, BATCH] = 32
    """States, and as many goals, of one graph in a batch; each state is paired with each goal."""
    edge_length: Annotated[float, (0.0, 1e6)] = 1.5
    """Distance in steps, by the critic before this stage, up to which two states are joined. A
    longer edge may lead through a thin wall, and one wrong edge makes the wall passable."""

    def check(self, config: Config, name: str) -> None:
        check_goal_critic(config, name)
        steps = config.collect.steps
        if self.nodes_per_graph > steps + 1:
            raise ConfigError(
                f"{name}.nodes_per_graph is {self.nodes_per_graph}, but an episode of {steps} "
                f"steps has {steps + 1} observations"
            )

    def start(self, agent: Agent, env: EnvConfig, seed: int) -> StageRun:
        return PathRegressionRun(self, agent, seed)


class PathRegressionRun(SGDStageRun):
    """Trains a copy of the critic on shortest paths; the graphs' edges are of the critic itself,
    which doesn't change until the end."""

    def __init__(self, stage: DistillShortestPaths, agent: Agent, seed: int) -> None:
        self.critic, self.stage, self.agent = critic_of(agent), stage, agent
        self.student = deepcopy(self.critic)
        episodes = agent.replay_buffer.episode_ids(stage.nodes_per_graph - 1)
        if not len(episodes):
            raise ConfigError(
                f"the replay buffer has no episode of {stage.nodes_per_graph} states, the "
                "distill_paths.nodes_per_graph"
            )
        episodes = episodes[: stage.num_graphs]
        with torch.no_grad():
            parts = self._graph(episodes[0])
            # made at once: lists of graphs, to be stacked, would take the memory twice
            stacks = [part.new_empty(len(episodes), *part.shape) for part in parts]
            for index, episode in enumerate(episodes):
                for stack, part in zip(stacks, self._graph(episode), strict=True):
                    stack[index] = part
        # encoded and imagined states, each [E, N, D], and steps from each to each [E, N, N]
        self.states, self.imagined_states, self.steps = stacks
        super().__init__(self.student, self._loss, stage.optim, seed=seed)

    def _graph(self, episode: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        agent, num_nodes = self.agent, self.stage.nodes_per_graph
        trajectory = agent.replay_buffer.get_episode(episode)
        obs = tree_map(lambda part: part[0, :num_nodes].to(agent.device), trajectory.obs)
        features = agent.perception(obs, agent.configurator.default_modality_weights)
        states = unroll_memory(agent.short_term_memory, features[None])[0]
        actions = trajectory.actions[0, : num_nodes - 1].to(states)
        imagined_states = agent.world_model.step(states[:-1], actions).state
        steps = shortest_paths(edge_costs(self.critic, states, self.stage.edge_length)).half()
        return states, torch.cat([states[:1], imagined_states]), steps

    def _loss(self, generator: torch.Generator) -> dict[str, Tensor]:
        num_graphs, num_nodes = self.states.shape[:2]
        size = self.stage.group_size
        groups = self.stage.optim.num_groups(size)

        def draw(below: int, *shape: int) -> Tensor:
            drawn = torch.randint(below, (groups, *shape), generator=generator)
            return drawn.to(self.states.device, non_blocking=True)

        graph, start, goal = draw(num_graphs, 1), draw(num_nodes, size), draw(num_nodes, size)
        random = torch.rand(groups, size, 1, generator=generator).to(self.states)
        state = torch.where(
            random < IMAGINED_FRACTION,
            self.imagined_states[graph, start],
            self.states[graph, start],
        )
        steps = self.steps[graph[..., None], start[..., None], goal[:, None]].to(state.dtype)
        goal_state = self.states[graph, goal]
        distance = partial(exact_distance, self.student)
        return path_regression_loss(distance, state[:, :, None], goal_state[:, None], steps)

    def finish(self) -> None:
        """The trained copy becomes the critic."""
        self.critic.load_state_dict(self.student.state_dict())


@dataclass(frozen=True, kw_only=True)
class DistillLandmarkPaths(SGDStage):
    """Trains the goal critic, and the distances of the levels of a HierarchicalJEPA, by dynamic
    programming: landmarks among the recorded states are the nodes of one graph, with the edges of a
    LandmarkGraph, and the distances learn how long the cheapest paths over it are. For environments
    whose layout never changes. Recorded steps of chance count as steps, with what the world model
    expects of them."""

    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(steps=1500, batch_size=1024, lr=2e-3)
    )
    num_landmarks: Annotated[int, (2, 100_000)] = 300
    """Nodes of the graph, K."""
    num_candidates: Annotated[int, (1, 10_000_000)] = 6000
    """Recorded states among which the landmarks are chosen (`SelectLandmarks`)."""
    num_windows: Annotated[int, (1, 10_000_000)] = 3000
    """Recorded windows from which the graph knows which of its edges were travelled."""
    length: Annotated[int, HORIZON] = 8
    """Steps of such a recorded window."""
    trusted_edge_length: Annotated[float, (1e-3, 1e6)] = 2.0
    """Steps beyond which the cost of an edge grows faster than its length."""
    unvisited_edge_factor: Annotated[float, (1.0, 1e6)] = 4.0
    """Factor on the cost of an edge that the data never traverse."""
    num_states: Annotated[int, (2, 1_000_000)] = 4000
    """Recorded states, of the candidates, whose distances are learnt, M."""

    @property
    def graph(self) -> LandmarkGraphConfig:
        """The graph of landmarks."""
        return LandmarkGraphConfig(
            num_landmarks=self.num_landmarks,
            trusted_edge_length=self.trusted_edge_length,
            unvisited_edge_factor=self.unvisited_edge_factor,
        )

    @property
    def selection(self) -> SelectLandmarks:
        """How its landmarks are chosen."""
        return SelectLandmarks(
            num_candidates=self.num_candidates, num_windows=self.num_windows, length=self.length
        )

    def check(self, config: Config, name: str) -> None:
        check_goal_critic(config, name)
        self.selection.check_graph(self.graph, config, name)
        if self.num_states > self.num_candidates:
            raise ConfigError(
                f"{name}.num_states is {self.num_states}, but it takes them from the "
                f"{self.num_candidates} {name}.num_candidates"
            )
        earlier = list(config.stages)[: list(config.stages).index(name)]
        if "train_goal_critic" not in earlier:
            raise ConfigError(
                f"the stage {name} measures edges by the goal critic, which must be trained "
                "before: there is no train_goal_critic before it"
            )
        levels, critic = config.actor.subgoals, config.stages["train_goal_critic"]
        if not isinstance(levels, HierarchicalJEPAConfig):
            return
        if "train_hierarchy" not in earlier:
            raise ConfigError(
                f"the stage {name} trains the distances of levels, which must be trained before: "
                "there is no train_hierarchy before it"
            )
        if isinstance(critic, TrainQuasimetric) and critic.length > 1:
            raise ConfigError(
                f"train_goal_critic.length is {critic.length}, so that many recorded steps make a "
                f"distance of 1; where the stage {name} trains levels, which count single "
                "steps, it must be 1"
            )

    def start(self, agent: Agent, env: EnvConfig, seed: int) -> StageRun:
        return LandmarkPathRun(self, agent, seed)


class LandmarkPaths:
    """The lengths of the cheapest paths over landmarks between M recorded states `[M, D]`. A path
    that costs less is not always shorter: an edge that no recorded episode contains may lead
    through a wall."""

    @torch.no_grad()
    def __init__(self, graph: LandmarkGraph, states: Tensor) -> None:
        embed, from_embeddings = graph.distance
        self.graph = graph
        landmarks, self.embedded = embed(graph.states), embed(states)
        lengths = graph.edge_lengths.clone().fill_diagonal_(0)
        costs, lengths = shortest_paths_with_lengths(graph.mean_edge_costs(), lengths)
        self.costs_from, self.lengths_from = states.new_empty(2, len(states), len(landmarks))
        self.lengths_to = states.new_empty(len(states), len(landmarks))
        for rows in torch.arange(len(states), device=states.device).split(CHUNK_SIZE):
            embedded = self.embedded[rows, None]
            first, near = from_embeddings(embedded, landmarks).topk(
                min(FIRST_LANDMARKS, len(landmarks)), largest=False
            )
            cost, via = (graph.edge_cost(first)[..., None] + costs[near]).min(1)  # [N, K]
            self.costs_from[rows] = cost
            self.lengths_from[rows] = first.gather(1, via) + lengths[near].gather(
                1, via[:, None]
            ).squeeze(1)
            self.lengths_to[rows] = from_embeddings(landmarks, embedded)

    @torch.no_grad()
    def __call__(self, start: Tensor, goal: Tensor) -> Tensor:
        """The steps from states to goals, by their numbers `[B]` each -> `[B]`."""
        last = self.lengths_to[goal]
        cost, via = (self.costs_from[start] + self.graph.edge_cost(last)).min(1)
        over_landmarks = (self.lengths_from[start] + last).gather(1, via[:, None]).squeeze(1)
        direct = self.graph.distance.from_embeddings(self.embedded[start], self.embedded[goal])
        return torch.where(self.graph.edge_cost(direct) <= cost, direct, over_landmarks)


class LandmarkPathRun(SGDStageRun):
    """Trains copies of the distances, which replace them at the end: the edges of the graph are of
    the goal critic as it was."""

    def __init__(self, stage: DistillLandmarkPaths, agent: Agent, seed: int) -> None:
        critic = critic_of(agent)
        distance = QuasimetricFns(critic.embed, critic.from_embeddings)
        graph = LandmarkGraph(stage.graph, prod(agent.shape), distance).to(agent.device)
        selector = LandmarkSelector(stage.selection, agent, graph, seed)
        while selector.step < selector.total:
            selector.update()
        selector.finish()
        states = selector.states[: stage.num_states].clone()  # not a view of all candidates
        self.paths, self.batch_size = LandmarkPaths(graph, states), stage.optim.batch_size
        self.trained, self.states, self.units = [critic], [states], [1]
        if isinstance(agent.subgoals, HierarchicalJEPA):
            for index, level in enumerate(agent.subgoals.learned_levels):
                level_distance = agent.subgoals.level_planners[index].level.distance
                if isinstance(level_distance, Quasimetric):  # not the goal critic's
                    self.trained.append(level_distance)
                    with torch.no_grad():
                        self.states.append(level.encode(states))
                    self.units.append(level.num_steps)
        self.students = deepcopy(self.trained)
        super().__init__(nn.ModuleList(self.students), self._loss, stage.optim, seed=seed)

    def _loss(self, generator: torch.Generator) -> dict[str, Tensor]:
        pairs = torch.randint(len(self.states[0]), (2, self.batch_size), generator=generator)
        start, goal = pairs.to(self.states[0].device, non_blocking=True)
        steps, terms = self.paths(start, goal), {}
        for index, (student, states) in enumerate(zip(self.students, self.states, strict=True)):
            loss = path_regression_loss(
                partial(exact_distance, student), states[start], states[goal],
                steps / self.units[index],
            )  # fmt: skip
            terms[f"regression {index}" if index else "regression"] = loss["regression"]
        return terms

    def finish(self) -> None:
        """The trained copies become the distances."""
        for trained, student in zip(self.trained, self.students, strict=True):
            trained.load_state_dict(student.state_dict())
