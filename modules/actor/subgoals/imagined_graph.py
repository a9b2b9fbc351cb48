"""A level above that plans on a graph of imagined states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from modules.actor.subgoals.base import (
    Endpoints,
    LandmarkLevel,
    LandmarkLevelConfig,
    gather_waypoints,
)
from modules.actor.subgoals.edge_feedback import MIN_PROGRESS, EdgeFeedback, initial_feedback
from modules.actor.subgoals.shortest_paths import (
    MIN_EDGE_COST,
    Edges,
    bellman_ford,
    greedy_path,
    subsample_path,
)
from modules.types import (
    COUNT,
    HORIZON,
    LatentRolloutFn,
    MapShape,
    QuasimetricFns,
    TaskContext,
)

CHUNK_SIZE = 16
"""Landmarks that are compared with all others at once; bounds memory."""


@dataclass(frozen=True, kw_only=True)
class ImaginedLandmarkGraphConfig(LandmarkLevelConfig):
    num_landmarks: Annotated[int, (2, 100_000)] = 97
    """K, the initial state included."""
    nodes_per_round: Annotated[int, COUNT] = 8
    """Landmarks added in each round of growth."""
    branches: Annotated[int, COUNT] = 12
    """Futures imagined from each new landmark."""
    branch_steps: Annotated[int, HORIZON] = 6
    """Steps of each of these futures, under one repeated action."""
    min_spacing: Annotated[float, (0.0, 1e6)] = 2.0
    """Least distance between landmarks in steps, the longer of both directions, as long as
    candidates that far apart exist."""
    frontier_size: Annotated[int, COUNT] = 64
    """Imagined states that are kept as candidates for the next rounds."""

    def build(
        self,
        shape: MapShape,
        action_dim: int,
        distance: QuasimetricFns | None,
        imagine: LatentRolloutFn,
    ) -> ImaginedLandmarkGraph:
        return ImaginedLandmarkGraph(self, action_dim, distance, imagine)


class ImaginedGraph(NamedTuple):
    """Landmarks of B environments, and the costs between them and to the goal."""

    landmarks: Tensor  # [B, K, D]
    embeddings: Tensor  # [B, K, F]
    edge_lengths: Tensor  # [B, K, K] steps
    edge_costs: Tensor  # [B, K, K]
    goal_lengths: Tensor  # [B, K] steps
    goal_costs: Tensor  # [B, K]
    cost_to_go: Tensor  # [B, K]


class ImaginedGraphCarry(NamedTuple):
    """What the level carries from step to step."""

    seed: int
    calls: int = 0
    graph: ImaginedGraph | None = None
    edge_feedback: EdgeFeedback | None = None


class ImaginedLandmarkGraph(LandmarkLevel):
    """A level that plans as `LandmarkGraph` does, in places that were never visited. When an
    episode begins, its landmarks grow from the present state as a tree (RRT, LaValle 1998; in a
    learnt state, Ichter & Pavone 2019): the world model imagines futures from the newest landmarks,
    and some that end far from all landmarks become landmarks too. Dynamic programming then finds
    the cheapest path over them to the goal. A stuck agent takes another path (`EdgeFeedback`). Only
    the world model and the critic are learnt, which hold in any layout."""

    config: ImaginedLandmarkGraphConfig
    description = (
        "When an episode begins, the level above imagines which states the agent can reach and "
        "keeps some of them as landmarks. It takes the cheapest path over them to the goal. The "
        "next subgoals on it are drawn; the level below plans for the first."
    )

    def __init__(
        self,
        config: ImaginedLandmarkGraphConfig,
        action_dim: int,
        distance: QuasimetricFns | None,
        imagine: LatentRolloutFn,
    ) -> None:
        super().__init__(config, distance)
        self.action_dim, self.imagine = action_dim, imagine

    def initial_carry(self, seed: int) -> ImaginedGraphCarry:
        """The next call imagines landmarks; random draws depend on the seed alone."""
        return ImaginedGraphCarry(seed)

    def forward(
        self, state: Tensor, context: TaskContext, carry: ImaginedGraphCarry
    ) -> tuple[TaskContext, ImaginedGraphCarry]:
        """`[B, D]` -> the context with a subgoal as its goal. Landmarks and their costs to the
        goals are computed once and carried."""
        if not context.pursues_goal:
            return context, carry
        _, calls, graph, feedback = carry
        ends = self.endpoints(state, context.goal)
        if graph is None or feedback is None or len(graph.landmarks) != len(state):
            graph, calls = self.build(state, context.goal, carry.seed), 0
            feedback = initial_feedback(ends.state_embedding, self.config.num_landmarks)
        if calls and calls % self.config.stuck_after == 0:
            feedback = self.check_progress(feedback, ends, graph.edge_lengths)
        subgoals, chosen = self._path(graph, feedback, ends)
        feedback = feedback._replace(chosen_edge=chosen)
        context = context._replace(goal=subgoals[:, 0], upper_plans=subgoals[:, None])
        return context, ImaginedGraphCarry(carry.seed, calls + 1, graph, feedback)

    @torch.no_grad()
    def build(self, state: Tensor, goal: Tensor, seed: int = 0) -> ImaginedGraph:
        """Imagines landmarks from states `[B, D]` and computes the costs from each to the goals
        `[B, D]`."""
        from_embeddings = self.distance.from_embeddings
        landmarks = self._grow_tree(state, torch.Generator().manual_seed(seed))
        embeddings = self.distance.embed(landmarks)
        edge_lengths = torch.cat(
            [
                from_embeddings(part[:, :, None], embeddings[:, None])
                for part in embeddings.split(CHUNK_SIZE, 1)
            ],
            1,
        )
        goal_lengths = from_embeddings(embeddings, self.distance.embed(goal)[:, None])
        goal_costs = self.edge_cost(goal_lengths)
        edge_costs = self.edge_cost(edge_lengths).clamp_min(MIN_EDGE_COST)
        return ImaginedGraph(
            landmarks, embeddings, edge_lengths, edge_costs, goal_lengths, goal_costs,
            bellman_ford(edge_costs, goal_costs),
        )  # fmt: skip

    def _grow_tree(self, state: Tensor, rng: torch.Generator) -> Tensor:
        """`[B, D]` -> landmarks `[B, K, D]`. Random draws are the same in all environments, so that
        the landmarks of one do not depend on the number of others."""
        config, rows = self.config, torch.arange(len(state), device=state.device)[:, None]
        nodes = new_nodes = state[:, None]
        node_embeddings = self.distance.embed(nodes)
        frontier, frontier_embeddings = nodes[:, :0], node_embeddings[:, :0]
        while nodes.shape[1] < config.num_landmarks:
            outcome = self._expand(new_nodes, rng)
            frontier = torch.cat([frontier, outcome], 1)  # [B, W, D]
            frontier_embeddings = torch.cat([frontier_embeddings, self.distance.embed(outcome)], 1)
            spacing = self._spacing(frontier_embeddings, node_embeddings)  # [B, W]
            chosen = []
            for _ in range(min(config.nodes_per_round, config.num_landmarks - nodes.shape[1])):
                chosen.append(self._priority(spacing, rng).argmax(1, keepdim=True))
                added = frontier_embeddings[rows, chosen[-1]]
                spacing = torch.minimum(spacing, self._spacing(frontier_embeddings, added))
            index = torch.cat(chosen, 1)
            new_nodes = frontier[rows, index]
            nodes = torch.cat([nodes, new_nodes], 1)
            node_embeddings = torch.cat([node_embeddings, frontier_embeddings[rows, index]], 1)
            num_kept = min(config.frontier_size, spacing.shape[1])
            kept = self._priority(spacing, rng).topk(num_kept).indices
            frontier, frontier_embeddings = frontier[rows, kept], frontier_embeddings[rows, kept]
        return nodes

    def _expand(self, state: Tensor, rng: torch.Generator) -> Tensor:
        """`[B, N, D]` -> the states half way and at the end of the futures imagined from each,
        `[B, M, D]`."""
        config = self.config
        shape = (state.shape[1], config.branches, 1, self.action_dim)
        raw = torch.randn(shape, generator=rng).to(state, non_blocking=True)
        held = raw.expand(-1, -1, config.branch_steps, -1).repeat(len(state), 1, 1, 1)
        path = self.imagine(state.flatten(0, 1), held)  # [B * N, branches, branch_steps, D]
        kept_steps = [config.branch_steps // 2, config.branch_steps - 1]
        return path[:, :, kept_steps].flatten(1, 2).unflatten(0, state.shape[:2]).flatten(1, 2)

    def _spacing(self, embeddings: Tensor, nodes: Tensor) -> Tensor:
        """Embeddings `[B, W, F]`, nodes `[B, K, F]` -> steps to the nearest node, the longer of
        both directions, `[B, W]`."""
        from_embeddings, sources = self.distance.from_embeddings, embeddings[:, :, None]
        nearest = embeddings.new_full(embeddings.shape[:2], torch.inf)
        for part in nodes[:, None].split(CHUNK_SIZE, 2):
            there, back = from_embeddings(sources, part), from_embeddings(part, sources)
            nearest = torch.minimum(nearest, torch.maximum(there, back).amin(-1))
        return nearest

    def _priority(self, spacing: Tensor, rng: torch.Generator) -> Tensor:
        """Priorities `[B, W]` of candidates by their spacing: random among those that are far
        enough, because the farthest are often errors of the world model; below those the farther
        the higher."""
        noise = torch.rand(spacing.shape[1], generator=rng).to(spacing, non_blocking=True)
        near = spacing / (self.config.min_spacing + MIN_EDGE_COST)
        return torch.where(spacing >= self.config.min_spacing, 1 + noise, near)

    def _path(
        self, graph: ImaginedGraph, feedback: EdgeFeedback, ends: Endpoints
    ) -> tuple[Tensor, Tensor]:
        """The subgoals of the cheapest path, `[B, H, D]`, and its first edge `[B]`: K where it
        leads directly to the goal."""
        config = self.config
        nodes, travelled = greedy_path(
            *self.first_edges(feedback, ends, graph.embeddings),
            Edges(graph.edge_lengths, graph.edge_costs),
            Edges(graph.goal_lengths, graph.goal_costs),
            graph.cost_to_go,
            config.max_edges,
        )
        # a landmark at the present state is no subgoal, however far the next one is
        index = subsample_path(travelled, config.subgoal_spacing, config.num_subgoals)
        next_node = (travelled <= MIN_PROGRESS).sum(1).clamp_max(config.max_edges - 1)
        index = torch.maximum(index, next_node[:, None])
        index[:, 0] = torch.where(feedback.follow_closely, next_node, index[:, 0])
        return gather_waypoints(graph.landmarks, nodes.gather(1, index), ends.goal), nodes[:, 0]
