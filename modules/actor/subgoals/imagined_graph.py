"""A level above that goes by a graph of imagined states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from modules.actor.subgoals.base import LevelInfo, gather_waypoints
from modules.actor.subgoals.edge_feedback import MIN_PROGRESS, EdgeFeedback, initial_feedback
from modules.actor.subgoals.edges import (
    Edges,
    bellman_ford,
    distance_penalty,
    greedy_path,
    subsample_path,
)
from modules.types import (
    ENV_STEPS,
    GOAL_COSTS,
    HORIZON,
    ConfigError,
    LatentRolloutFn,
    MapShape,
    QuasimetricFns,
    Stateful,
    TaskContext,
    validate_ranges,
)

CHUNK_SIZE = 16
"""Landmarks that all else is compared with in one go: all at once may be too much to hold."""

MIN_EDGE_COST = 1e-3
"""Price of a hop, at least."""


@dataclass(frozen=True, kw_only=True)
class ImaginedLandmarkGraphConfig:
    num_landmarks: int = 97
    """K, that where it is among them."""
    nodes_per_round: int = 8
    """How many become landmarks at a time."""
    branches: int = 12
    """Imagined from each of them."""
    branch_steps: int = 6
    """Steps of each, an action that is held."""
    min_spacing: float = 2.0
    """Steps between landmarks, there or back, at least, while there is anything so far."""
    frontier_size: int = 64
    """Imagined states that may still become landmarks when others have."""
    trusted_edge_length: float = 2.0
    """Steps from where on hops are distrusted."""
    subgoal_spacing: float = 10.0
    """Steps along the way at which the subgoal lies."""
    num_subgoals: int = 4
    """Strides hoped for, H."""
    max_edges: int = 32
    """How many landmarks ahead the way is looked at."""
    stuck_after: int = 8
    """Plans after which whoever has got nowhere looks for another way."""

    def __post_init__(self) -> None:
        many = (1, 100_000)
        validate_ranges(
            self,
            num_landmarks=(2, 100_000),
            nodes_per_round=many,
            branches=many,
            branch_steps=HORIZON,
        )
        validate_ranges(
            self,
            min_spacing=(0.0, 1e6),
            frontier_size=many,
            trusted_edge_length=(1e-3, 1e6),
            subgoal_spacing=(1e-3, 1e6),
        )
        validate_ranges(self, num_subgoals=HORIZON, max_edges=many, stuck_after=ENV_STEPS)

    def build(
        self,
        shape: MapShape,
        action_dim: int,
        distance: QuasimetricFns | None,
        imagine: LatentRolloutFn,
    ) -> ImaginedLandmarkGraph:
        if distance is None:
            raise ConfigError(
                "hierarchy ImaginedLandmarkGraph needs the critic's distance, and there is no critic"
            )
        return ImaginedLandmarkGraph(self, action_dim, distance, imagine)


class ImaginedLandmarkGraph(nn.Module, Stateful):
    """A level that plans as `LandmarkGraph` does, in places where nobody has been: when an episode
    begins, its landmarks grow in imagination from where it is, as a tree grows into open space
    (RRT, LaValle 1998; in a learnt state, Ichter & Pavone 2019). The world model is asked where
    many ways lead from the newest landmarks, and some that come out far from all there are become
    landmarks as well. Then the cheapest way over them to the goal is found by dynamic programming,
    where a hop of d steps, as the critic has it, costs d (1 + (d / hop)^2). Who gets nowhere looks
    for another way (`EdgeFeedback`). Nothing is remembered but what is true of all places: what actions
    do, and how far it is near by."""

    episode_state = (
        "seed", "calls", "landmarks", "edge_feedback", "embeddings", "edge_lengths", "goal_lengths", "goal_costs", "edge_costs",
        "cost_to_go",
    )  # fmt: skip
    learned_levels: Sequence[LevelInfo] = ()  # imagined, not learnt
    description = (
        "When an episode begins, the level above imagines where its body could go from here, step "
        "by step, and keeps some of these places as landmarks. It takes the cheapest way over them "
        "to the goal. The next places on it are drawn; the first, a stride away, is the subgoal "
        "that the level below plans for."
    )

    def __init__(
        self,
        config: ImaginedLandmarkGraphConfig,
        action_dim: int,
        distance: QuasimetricFns,
        imagine: LatentRolloutFn,
    ) -> None:
        super().__init__()
        self.config, self.action_dim = config, action_dim
        self.distance, self.imagine = distance, imagine
        self.reset()

    def reset(self, seed: int = 0) -> None:
        """The next call imagines landmarks; what chance does in that depends on the seed alone."""
        self.seed, self.calls = seed, 0
        self.landmarks = torch.empty(0, 0, 0)  # [B, K, D]

    def forward(self, state: Tensor, context: TaskContext) -> TaskContext:
        """`[B, D]` -> the same focus, the goal a stride ahead; landmarks, and what it costs from
        them to the goals, stand until `reset`."""
        if not any(context.weights.get(name) for name in GOAL_COSTS):
            return context
        if len(self.landmarks) != len(state):
            self.build(state, context.goal)
        start, target = self.distance.embed(state), self.distance.embed(context.goal)
        if self.calls and self.calls % self.config.stuck_after == 0:
            self.edge_feedback = self._update_feedback(start, target)
        self.calls += 1
        subgoals, chosen = self._path(start, context.goal, target)
        self.edge_feedback = self.edge_feedback._replace(chosen_edge=chosen)
        return context._replace(goal=subgoals[:, 0], upper_plans=subgoals[:, None])

    @torch.no_grad()
    def build(self, state: Tensor, goal: Tensor) -> None:
        """Landmarks are imagined from states `[B, D]`, and the price of the way from each to goals
        `[B, D]`."""
        from_embeddings = self.distance.from_embeddings
        self.landmarks = self._grow_tree(state)
        self.edge_feedback = initial_feedback(self.distance.embed(state), self.config.num_landmarks)
        self.embeddings = self.distance.embed(self.landmarks)  # [B, K, F]
        self.edge_lengths = torch.cat(
            [
                from_embeddings(part[:, :, None], self.embeddings[:, None])
                for part in self.embeddings.split(CHUNK_SIZE, 1)
            ],
            1,
        )  # [B, K, K]
        self.goal_lengths = from_embeddings(
            self.embeddings, self.distance.embed(goal)[:, None]
        )  # [B, K]
        self.goal_costs = distance_penalty(self.goal_lengths, self.config.trusted_edge_length)
        self.edge_costs = distance_penalty(
            self.edge_lengths, self.config.trusted_edge_length
        ).clamp_min(MIN_EDGE_COST)
        self.cost_to_go = bellman_ford(self.edge_costs, self.goal_costs)

    def _grow_tree(self, state: Tensor) -> Tensor:
        """`[B, D]` -> `[B, K, D]`. Chance is the same in all worlds, so that what is imagined in
        one does not depend on how many others there are."""
        config, rows = self.config, torch.arange(len(state), device=state.device)[:, None]
        rng = torch.Generator().manual_seed(self.seed)
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
                spacing = torch.minimum(
                    spacing,
                    self._spacing(frontier_embeddings, frontier_embeddings[rows, chosen[-1]]),
                )
            index = torch.cat(chosen, 1)
            new_nodes = frontier[rows, index]
            nodes, node_embeddings = (
                torch.cat([nodes, new_nodes], 1),
                torch.cat([node_embeddings, frontier_embeddings[rows, index]], 1),
            )
            kept = (
                self._priority(spacing, rng)
                .topk(min(config.frontier_size, spacing.shape[1]))
                .indices
            )
            frontier, frontier_embeddings = frontier[rows, kept], frontier_embeddings[rows, kept]
        return nodes

    def _expand(self, state: Tensor, rng: torch.Generator) -> Tensor:
        """`[B, N, D]` -> where some ways lead from each, half way and at their end, `[B, M, D]`."""
        config = self.config
        shape = (state.shape[1], config.branches, 1, self.action_dim)
        raw = torch.randn(shape, generator=rng).to(state, non_blocking=True)
        held = raw.expand(-1, -1, config.branch_steps, -1).repeat(len(state), 1, 1, 1)
        path = self.imagine(state.flatten(0, 1), held)  # [B * N, ways, length, D]
        kept_steps = [config.branch_steps // 2, config.branch_steps - 1]
        return path[:, :, kept_steps].flatten(1, 2).unflatten(0, state.shape[:2]).flatten(1, 2)

    def _spacing(self, embeddings: Tensor, nodes: Tensor) -> Tensor:
        """`[B, W, F]`, `[B, K, F]` -> steps to the nearest of these, there or back, `[B, W]`."""
        from_embeddings, sources = self.distance.from_embeddings, embeddings[:, :, None]
        nearest = embeddings.new_full(embeddings.shape[:2], torch.inf)
        for part in nodes[:, None].split(CHUNK_SIZE, 2):
            spacing = torch.maximum(
                from_embeddings(sources, part), from_embeddings(part, sources)
            ).amin(-1)
            nearest = torch.minimum(nearest, spacing)
        return nearest

    def _priority(self, spacing: Tensor, rng: torch.Generator) -> Tensor:
        """The larger the sooner, `[B, W]`: any of those that are far enough, for the very farthest
        are where imagination errs; and where there are none, the farthest."""
        noise = torch.rand(spacing.shape[1], generator=rng).to(spacing, non_blocking=True)
        return torch.where(
            spacing >= self.config.min_spacing,
            1 + noise,
            spacing / (self.config.min_spacing + MIN_EDGE_COST),
        )

    def _update_feedback(self, start: Tensor, target: Tensor) -> EdgeFeedback:
        """Who has got nowhere trusts the hop that it took less."""
        from_embeddings, trusted_length = (
            self.distance.from_embeddings,
            self.config.trusted_edge_length,
        )
        moved = from_embeddings(self.edge_feedback.last_embedding, start)
        return self.edge_feedback.update(
            start,
            moved,
            from_embeddings(start, target) > trusted_length,
            self.edge_lengths < trusted_length,
        )

    def _path(self, start: Tensor, goal: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """From embedded states `[B, F]` to goals `[B, D]`, embedded `[B, F]`: the way, stride by
        stride, `[B, H, D]`, the goal itself where going there directly is no dearer; and its first
        hop `[B]`, K where it leads straight to the goal."""
        config, from_embeddings, feedback = (
            self.config,
            self.distance.from_embeddings,
            self.edge_feedback,
        )
        first, direct = (
            from_embeddings(start[:, None], self.embeddings),
            from_embeddings(start, target),
        )
        nodes, travelled = greedy_path(
            Edges(first, feedback.penalty[:, :-1] + distance_penalty(first, config.trusted_edge_length)),
            Edges(direct, feedback.penalty[:, -1] + distance_penalty(direct, config.trusted_edge_length)),
            Edges(self.edge_lengths, self.edge_costs), Edges(self.goal_lengths, self.goal_costs), self.cost_to_go, config.max_edges,
        )  # fmt: skip
        # where it is already is no subgoal, however far the next landmark is
        index = subsample_path(travelled, config.subgoal_spacing, config.num_subgoals)
        next_node = (travelled <= MIN_PROGRESS).sum(1).clamp_max(config.max_edges - 1)
        index = torch.maximum(index, next_node[:, None])
        index[:, 0] = torch.where(feedback.follow_closely, next_node, index[:, 0])
        return gather_waypoints(self.landmarks, nodes.gather(1, index), goal), nodes[:, 0]
