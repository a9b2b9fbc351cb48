"""A level above that plans on a graph of remembered states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from modules.actor.subgoals.base import LevelInfo, gather_waypoints
from modules.actor.subgoals.edges import (
    MIN_PROGRESS,
    EdgeFeedback,
    Edges,
    distance_penalty,
    greedy_path,
    initial_feedback,
    shortest_paths,
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
    TaskContext,
    validate_ranges,
)

CHUNK_SIZE = 64
"""Landmarks or windows that are processed at once; bounds memory."""

MIN_EDGE_COST = 1e-3
"""Least cost of an edge in steps."""


class RiskGraph(NamedTuple):
    """The costs of the graph at one CVaR level."""

    edge_costs: Tensor  # [K, K]
    path_costs: Tensor  # [K, K] of the shortest paths
    expected_setback: Tensor  # [K] steps lost by random outcomes in one step at each landmark


@dataclass(frozen=True, kw_only=True)
class LandmarkGraphConfig:
    num_landmarks: int = 300
    """K"""
    trusted_edge_length: float = 2.0
    """Steps beyond which the cost of an edge grows faster than its length."""
    unvisited_edge_factor: float = 4.0
    """Factor on the cost of an edge that the data never traverse."""
    subgoal_spacing: float = 10.0
    """Steps along the path between subgoals."""
    num_subgoals: int = 4
    """Subgoals of a plan, H; the first is the goal of the level below."""
    max_edges: int = 32
    """Longest path that is followed, in landmarks."""
    replan_every: int = 1
    """Environment steps between two plans of this level."""
    num_outcomes: int = 256
    """Sampled next states of each landmark that estimate its setbacks, J."""
    stuck_after: int = 8
    """Plans between two checks of progress (`EdgeFeedback`)."""

    def __post_init__(self) -> None:
        many = (1, 100_000)
        validate_ranges(
            self,
            num_landmarks=(2, 100_000),
            trusted_edge_length=(1e-3, 1e6),
            unvisited_edge_factor=(1.0, 1e6),
        )
        validate_ranges(
            self,
            subgoal_spacing=(1e-3, 1e6),
            num_subgoals=HORIZON,
            max_edges=many,
            replan_every=HORIZON,
        )
        validate_ranges(self, num_outcomes=many, stuck_after=ENV_STEPS)

    def build(
        self,
        shape: MapShape,
        action_dim: int,
        distance: QuasimetricFns | None,
        imagine: LatentRolloutFn,
    ) -> LandmarkGraph:
        if distance is None:
            raise ConfigError(
                "subgoals LandmarkGraph needs the critic's distance: goal_critic must not be None"
            )
        return LandmarkGraph(self, prod(shape), distance)


class LandmarkCarry(NamedTuple):
    """What the level carries from step to step."""

    calls: int = 0
    subgoals: Tensor | None = None  # [B, H, D]
    embeddings: Tensor | None = None  # [K, F]: the landmarks, by the critic as it is now
    risk_graph: RiskGraph | None = None  # at the task's CVaR level
    edge_feedback: EdgeFeedback | None = None


class LandmarkGraph(nn.Module):
    """A level that plans by dynamic programming over remembered states (search on the replay
    buffer, Eysenbach et al. 2019; landmarks, Huang et al. 2019).

    An edge of d steps, as the critic estimates them, costs d (1 + (d / trusted_edge_length)^2),
    because the estimate is reliable for near states only. An edge that the data never traverse
    costs more: it may lead through a wall. Where random outcomes set the agent back, every step
    costs the steps lost as well, on average or in the worst cases (CVaR), as the task demands.

    The subgoal lies `subgoal_spacing` steps along the cheapest path; it is the goal itself where
    the direct edge is no more expensive. A stuck agent takes another path (`EdgeFeedback`)."""

    learned_levels: Sequence[LevelInfo] = ()
    description = (
        "The level above keeps visited states as landmarks, with the cost from each to every other "
        "one. It takes the cheapest path over them to the goal. The next subgoals on it are drawn; "
        "the level below plans for the first."
    )
    states: Tensor
    edge_lengths: Tensor
    setback_samples: Tensor
    edge_costs: Tensor
    path_costs: Tensor

    def __init__(self, config: LandmarkGraphConfig, size: int, distance: QuasimetricFns) -> None:
        super().__init__()
        count = config.num_landmarks
        self.config, self.distance = config, distance
        self.register_buffer("states", torch.zeros(count, size))
        self.register_buffer("setback_samples", torch.zeros(count, config.num_outcomes))
        for name in ("edge_lengths", "edge_costs", "path_costs"):
            self.register_buffer(name, torch.zeros(count, count))
        self.built = False

    def initial_carry(self, seed: int) -> LandmarkCarry:
        """The next call plans, with the present parameters of the critic."""
        return LandmarkCarry()

    def is_built(self) -> bool:
        """Whether there are landmarks; reads from the device only until there are."""
        self.built = self.built or bool(self.path_costs.any())
        return self.built

    @torch.no_grad()
    def build(self, states: Tensor, windows: Tensor, outcomes: Tensor) -> None:
        """Makes `states` `[K, D]` the landmarks. `windows` `[N, T, D]` of recorded states tell
        which edges were traversed: from the landmark nearest to a state to the one nearest to a
        later state. `outcomes` `[K, J, D]`: sampled next states of each landmark under one action;
        `[K, 1, D]` for a deterministic model."""
        embed, from_embeddings = self.distance
        embeddings = embed(states)
        edge_lengths = from_embeddings(embeddings[:, None], embeddings)
        self.states.copy_(states)
        self.edge_lengths.copy_(edge_lengths)
        return_lengths = from_embeddings(embed(outcomes), embeddings[:, None])  # [K, J]
        setbacks = return_lengths - return_lengths.amin(1, keepdim=True)
        self.setback_samples.copy_(setbacks.sort(1, descending=True).values)
        visited = self._visited_edges(embeddings, windows)
        factor = torch.where(visited, 1, self.config.unvisited_edge_factor)
        edge_costs = factor * self._edge_cost(edge_lengths)
        # only staying is free, or two landmarks at the same place would lead to each other forever
        self.edge_costs.copy_(edge_costs.clamp_min(MIN_EDGE_COST).fill_diagonal_(0))
        risk_adjusted = self._risk_adjusted_costs(self._expected_setback(1.0))
        self.path_costs.copy_(shortest_paths(risk_adjusted))

    def _visited_edges(self, embeddings: Tensor, windows: Tensor) -> Tensor:
        """Landmarks `[K, F]`, states `[N, T, D]` -> which edges were traversed, `[K, K]` bool."""
        indices = [
            torch.cdist(self.distance.embed(part), embeddings).argmin(-1)
            for part in windows.split(CHUNK_SIZE)
        ]
        nearest = torch.cat(indices)  # [N, T]
        visited = torch.zeros_like(self.edge_costs, dtype=torch.bool)
        for offset in range(1, nearest.shape[1]):
            visited[nearest[:, :-offset], nearest[:, offset:]] = True
        return visited

    def forward(
        self, state: Tensor, context: TaskContext, carry: LandmarkCarry
    ) -> tuple[TaskContext, LandmarkCarry]:
        """`[B, D]` -> the context with a subgoal as its goal; unchanged before `build`."""
        if not (any(context.weights.get(name) for name in GOAL_COSTS) and self.is_built()):
            return context, carry
        calls, subgoals, embeddings, graph, feedback = carry
        if subgoals is None or len(subgoals) != len(state):
            calls, feedback = 0, None
        if calls % self.config.replan_every == 0:
            if embeddings is None or graph is None:
                embeddings = self.distance.embed(self.states).detach()
                graph = self._risk_graph(context.cvar_alpha)
            start, target = self.distance.embed(state), self.distance.embed(context.goal)
            feedback = self._update_feedback(feedback, calls, start, target)
            subgoals, chosen = self._path(embeddings, graph, feedback, start, context.goal, target)
            feedback = feedback._replace(chosen_edge=chosen)
        assert subgoals is not None
        context = context._replace(goal=subgoals[:, 0], upper_plans=subgoals[:, None])
        return context, LandmarkCarry(calls + 1, subgoals, embeddings, graph, feedback)

    def plan(self, state: Tensor, goal: Tensor, cvar_alpha: float = 1.0) -> Tensor:
        """States, goals `[B, D]` -> the subgoals of the cheapest path `[B, H, D]` at this CVaR
        level, without feedback."""
        start, embeddings = self.distance.embed(state), self.distance.embed(self.states).detach()
        feedback = initial_feedback(start, len(self.states))
        graph, target = self._risk_graph(cvar_alpha), self.distance.embed(goal)
        return self._path(embeddings, graph, feedback, start, goal, target)[0]

    def _risk_graph(self, cvar_alpha: float) -> RiskGraph:
        """The costs at this CVaR level."""
        expected_setback = self._expected_setback(cvar_alpha)
        edge_costs = self._risk_adjusted_costs(expected_setback)
        path_costs = self.path_costs if cvar_alpha == 1 else shortest_paths(edge_costs)
        return RiskGraph(edge_costs, path_costs, expected_setback)

    def _expected_setback(self, cvar_alpha: float) -> Tensor:
        """The mean of the worst fraction of the sampled setbacks, `[K]` steps."""
        count = max(1, round(cvar_alpha * self.config.num_outcomes))
        return self.setback_samples[:, :count].mean(1)

    def _risk_adjusted_costs(self, expected_setback: Tensor) -> Tensor:
        """Edge costs plus the expected setback of every step, `[K, K]`. States along an edge are
        unknown, so the worse one of its two ends counts for all its steps."""
        setback = torch.maximum(expected_setback[:, None], expected_setback)
        return self.edge_costs + self.edge_lengths * setback

    def _update_feedback(
        self, feedback: EdgeFeedback | None, calls: int, start: Tensor, target: Tensor
    ) -> EdgeFeedback:
        """The feedback from the steps so far, for embedded states and goals `[B, F]`."""
        if feedback is None:
            return initial_feedback(start, len(self.states))
        if calls // self.config.replan_every % self.config.stuck_after:
            return feedback
        from_embeddings = self.distance.from_embeddings
        trusted_length = self.config.trusted_edge_length
        moved = from_embeddings(feedback.last_embedding, start)
        away_from_goal = from_embeddings(start, target) > trusted_length
        neighbours = self.edge_lengths < trusted_length
        return feedback.update(start, moved, away_from_goal, neighbours)

    def _path(
        self, embeddings: Tensor, graph: RiskGraph, feedback: EdgeFeedback, start: Tensor,
        goal: Tensor, target: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Embedded states `[B, F]`, goals `[B, D]`, embedded goals `[B, F]` -> the subgoals of the
        cheapest path, `[B, H, D]`, and its first edge `[B]`: K where it leads directly to the
        goal."""
        from_embeddings = self.distance.from_embeddings
        goal_lengths = from_embeddings(embeddings, target[:, None])  # [B, K]
        goal_costs = self._edge_cost(goal_lengths)
        cost_to_go = goal_costs  # [B, K]
        for total, left in zip(
            graph.path_costs.split(CHUNK_SIZE, 1), goal_costs.split(CHUNK_SIZE, 1), strict=True
        ):
            cost_to_go = torch.minimum(cost_to_go, (total + left[:, None]).amin(-1))
        first = from_embeddings(start[:, None], embeddings)  # [B, K]
        direct = from_embeddings(start, target)
        setbacks = first * graph.expected_setback
        leaving_costs = feedback.penalty[:, :-1] + self._edge_cost(first) + setbacks
        nodes, travelled = greedy_path(
            Edges(first, leaving_costs),
            Edges(direct, feedback.penalty[:, -1] + self._edge_cost(direct)),
            Edges(self.edge_lengths, graph.edge_costs),
            Edges(goal_lengths, goal_costs),
            cost_to_go,
            self.config.max_edges,
        )
        index = subsample_path(travelled, self.config.subgoal_spacing, self.config.num_subgoals)
        next_node = (travelled <= MIN_PROGRESS).sum(-1).clamp_max(self.config.max_edges - 1)
        index[:, 0] = torch.where(feedback.follow_closely, next_node, index[:, 0])
        return gather_waypoints(self.states, nodes.gather(1, index), goal), nodes[:, 0]

    def _edge_cost(self, steps: Tensor) -> Tensor:
        return distance_penalty(steps, self.config.trusted_edge_length)
