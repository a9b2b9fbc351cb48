"""A level above that goes by a graph of remembered states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from modules.actor.subgoals.base import LevelInfo, gather_waypoints
from modules.actor.subgoals.edge_feedback import MIN_PROGRESS, EdgeFeedback, initial_feedback
from modules.actor.subgoals.edges import (
    Edges,
    distance_penalty,
    greedy_path,
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
    Stateful,
    TaskContext,
    validate_ranges,
)

CHUNK_SIZE = 64
"""Last landmarks that are looked at in one go: [B, K, K] at once may be too large to hold."""

MIN_EDGE_COST = 1e-3
"""Price of a hop, at least."""


class RiskGraph(NamedTuple):
    """The landmarks for who fears as much as it does."""

    edge_costs: Tensor  # [K, K] of each hop
    path_costs: Tensor  # [K, K] of the cheapest way
    expected_setback: Tensor  # [K] steps that luck costs in a step there


@dataclass(frozen=True, kw_only=True)
class LandmarkGraphConfig:
    num_landmarks: int = 300
    """K"""
    trusted_edge_length: float = 2.0
    """Steps from where on hops are distrusted."""
    unvisited_edge_factor: float = 4.0
    """How many times as dear a hop is that nobody has made."""
    subgoal_spacing: float = 10.0
    """Steps along the way at which the subgoal lies."""
    num_subgoals: int = 4
    """Strides hoped for, H."""
    max_edges: int = 32
    """How many landmarks ahead the way is looked at."""
    replan_every: int = 1
    """Steps of the level below for which a subgoal stands."""
    num_outcomes: int = 256
    """How many next states of each landmark tell what luck may cost there, J."""
    stuck_after: int = 8
    """Plans after which whoever has got nowhere looks for another way."""

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
                "hierarchy LandmarkGraph needs the critic's distance, and there is no critic"
            )
        return LandmarkGraph(self, prod(shape), distance)


class LandmarkGraph(nn.Module, Stateful):
    """A level that plans by dynamic programming over remembered states (search on the replay
    buffer, Eysenbach et al. 2019; landmarks, Huang et al. 2019).

    A hop from one to another of d steps, as the critic has it, costs d (1 + (d / hop)^2): near by
    it can be trusted, and the further the less. A hop that nobody has ever made is dearer still: it
    may lead through a wall. And where luck may throw one back, in its pit for instance, every step
    costs as much more as the way back is long, on the mean or at the worst as the task has it.

    The subgoal lies a stride along the cheapest way; it is the goal itself where going there
    directly is no dearer, so short ways are flat. Who gets nowhere looks for another way
    (`EdgeFeedback`)."""

    episode_state = ("calls", "subgoals", "embeddings", "edge_feedback", "risk_graphs")
    learned_levels: Sequence[LevelInfo] = ()  # remembered, not learnt
    description = (
        "The level above keeps landmarks, places where life has been, with what it costs to get "
        "from each to each. It takes the cheapest way over them to the goal. The next places on it "
        "are drawn; the first, a stride away, is the subgoal that the level below plans for."
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
        self.reset()

    def reset(self, seed: int = 0) -> None:
        """The next call plans, with the critic as it is by then."""
        self.calls, self.subgoals = 0, torch.empty(0, 0, 0)
        self.embeddings: Tensor | None = None  # the landmarks, [K, F]
        self.edge_feedback: EdgeFeedback | None = None
        self.risk_graphs: dict[float, RiskGraph] = {}  # by the share of the worst that counts

    def is_built(self) -> bool:
        """Whether there are landmarks yet; asked of the device only until there are."""
        self.built = self.built or bool(self.path_costs.any())
        return self.built

    @torch.no_grad()
    def build(self, states: Tensor, windows: Tensor, outcomes: Tensor) -> None:
        """These `[K, D]` are the landmarks. Stretches of life `[N, T, D]` tell which hops were
        made: from the landmark nearest to a state to the one nearest to a later state. `futures`
        `[K, J, D]`: where each landmark may lead in one and the same step; `[K, 1, D]` where all
        can be known."""
        embeddings = self.distance.embed(states)
        edge_lengths = self.distance.from_embeddings(embeddings[:, None], embeddings)
        self.reset()  # no way of another chart
        self.states.copy_(states)
        self.edge_lengths.copy_(edge_lengths)
        return_lengths = self.distance.from_embeddings(
            self.distance.embed(outcomes), embeddings[:, None]
        )  # [K, J]
        self.setback_samples.copy_(
            (return_lengths - return_lengths.amin(1, keepdim=True)).sort(1, descending=True).values
        )
        edge_costs = torch.where(
            self._visited_edges(embeddings, windows), 1, self.config.unvisited_edge_factor
        ) * self._edge_cost(edge_lengths)
        # nothing is for nothing but to stay, or two landmarks in one place would lead to each other
        self.edge_costs.copy_(edge_costs.clamp_min(MIN_EDGE_COST).fill_diagonal_(0))
        self.path_costs.copy_(
            shortest_paths(self._risk_adjusted_costs(self._expected_setback(1.0)))
        )

    def _visited_edges(self, embeddings: Tensor, windows: Tensor) -> Tensor:
        """`[K, F]`, `[N, T, D]` -> which hops were made, `[K, K]` bool."""
        nearest = torch.cat(
            [
                torch.cdist(self.distance.embed(part), embeddings).argmin(-1)
                for part in windows.split(CHUNK_SIZE)
            ]
        )  # [N, T]
        visited = torch.zeros_like(self.edge_costs, dtype=torch.bool)
        for offset in range(1, nearest.shape[1]):
            visited[nearest[:, :-offset], nearest[:, offset:]] = True
        return visited

    def forward(self, state: Tensor, context: TaskContext) -> TaskContext:
        """`[B, D]` -> the same focus, the goal a stride ahead; flat before there are landmarks."""
        if not (any(context.weights.get(name) for name in GOAL_COSTS) and self.is_built()):
            return context
        if len(self.subgoals) != len(state):
            self.reset()
        if self.calls % self.config.replan_every == 0:
            self.subgoals = self._replan(state, context.goal, self._risk_graph(context.cvar_alpha))
        self.calls += 1
        return context._replace(goal=self.subgoals[:, 0], upper_plans=self.subgoals[:, None])

    def plan(self, state: Tensor, goal: Tensor, cvar_alpha: float = 1.0) -> Tensor:
        """States, goals `[B, D]` -> where the cheapest way leads, stride by stride `[B, H, D]`,
        when the worst share `cvar_alpha` of what may come counts."""
        start = self.distance.embed(state)
        return self._path(
            start, goal, initial_feedback(start, len(self.states)), self._risk_graph(cvar_alpha)
        )[0]

    def _risk_graph(self, cvar_alpha: float) -> RiskGraph:
        """For who fears so much; found once an episode."""
        if cvar_alpha not in self.risk_graphs:
            expected_setback = self._expected_setback(cvar_alpha)
            edge_costs = self._risk_adjusted_costs(expected_setback)
            path_costs = self.path_costs if cvar_alpha == 1 else shortest_paths(edge_costs)
            self.risk_graphs[cvar_alpha] = RiskGraph(edge_costs, path_costs, expected_setback)
        return self.risk_graphs[cvar_alpha]

    def _expected_setback(self, cvar_alpha: float) -> Tensor:
        """`[K]`"""
        return self.setback_samples[:, : max(1, round(cvar_alpha * self.config.num_outcomes))].mean(
            1
        )

    def _risk_adjusted_costs(self, expected_setback: Tensor) -> Tensor:
        """The price of every hop, `[K, K]`: who leaps over a place does not land there, so the
        worse of its two ends counts for all of it."""
        return self.edge_costs + self.edge_lengths * torch.maximum(
            expected_setback[:, None], expected_setback
        )

    def _replan(self, state: Tensor, goal: Tensor, graph: RiskGraph) -> Tensor:
        """The same, by a map that is repaired where it led nowhere."""
        start, from_embeddings = self.distance.embed(state), self.distance.from_embeddings
        feedback = self.edge_feedback or initial_feedback(start, len(self.states))
        planned = self.calls // self.config.replan_every
        if planned and planned % self.config.stuck_after == 0:
            moved, left = (
                from_embeddings(feedback.last_embedding, start),
                from_embeddings(start, self.distance.embed(goal)),
            )
            trusted_length = self.config.trusted_edge_length
            feedback = feedback.update(
                start, moved, left > trusted_length, self.edge_lengths < trusted_length
            )
        subgoals, chosen = self._path(start, goal, feedback, graph)
        self.edge_feedback = feedback._replace(chosen_edge=chosen)
        return subgoals

    def _path(
        self, start: Tensor, goal: Tensor, feedback: EdgeFeedback, graph: RiskGraph
    ) -> tuple[Tensor, Tensor]:
        """From embedded states `[B, F]` to goals `[B, D]`: the way `[B, H, D]`, and its first hop
        `[B]`, K where it leads straight to the goal."""
        if self.embeddings is None:
            self.embeddings = self.distance.embed(self.states).detach()
        target = self.distance.embed(goal)
        goal_lengths = self.distance.from_embeddings(self.embeddings, target[:, None])  # [B, K]
        goal_costs = self._edge_cost(goal_lengths)
        cost_to_go = goal_costs  # [B, K]
        for total, left in zip(
            graph.path_costs.split(CHUNK_SIZE, 1), goal_costs.split(CHUNK_SIZE, 1), strict=True
        ):
            cost_to_go = torch.minimum(cost_to_go, (total + left[:, None]).amin(-1))
        first = self.distance.from_embeddings(start[:, None], self.embeddings)  # [B, K]
        direct = self.distance.from_embeddings(start, target)
        leaving = feedback.penalty[:, :-1] + self._edge_cost(first) + first * graph.expected_setback
        nodes, travelled = greedy_path(
            Edges(first, leaving), Edges(direct, feedback.penalty[:, -1] + self._edge_cost(direct)),
            Edges(self.edge_lengths, graph.edge_costs), Edges(goal_lengths, goal_costs), cost_to_go, self.config.max_edges,
        )  # fmt: skip
        index = subsample_path(
            travelled, self.config.subgoal_spacing, self.config.num_subgoals
        )  # [B, H]
        next_node = (travelled <= MIN_PROGRESS).sum(-1).clamp_max(self.config.max_edges - 1)
        index[:, 0] = torch.where(feedback.follow_closely, next_node, index[:, 0])
        return gather_waypoints(self.states, nodes.gather(1, index), goal), nodes[:, 0]

    def _edge_cost(self, steps: Tensor) -> Tensor:
        return distance_penalty(steps, self.config.trusted_edge_length)
