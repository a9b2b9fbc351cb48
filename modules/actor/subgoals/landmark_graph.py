"""A level above that plans on a graph of remembered states."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
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
    follow_nodes,
    greedy_path,
    shortest_paths,
    subsample_path,
)
from modules.actor.subgoals.stochastic_edges import (
    ChanceEvents,
    Halves,
    ShortestEdges,
    StochasticPaths,
    estimate_events,
)
from modules.types import (
    COUNT,
    HORIZON,
    LatentRolloutFn,
    MapShape,
    QuasimetricFns,
    TaskContext,
)

CHUNK_SIZE = 64
"""Landmarks or windows that are processed at once; bounds memory."""

STATES_CHUNK = 16_384
"""States whose nearest landmark is looked for at once; bounds memory."""

FAST_STEP = 0.95
"""The quantile of recorded step lengths that counts as a fast step."""

LOST_FACTOR = 20.0
"""What a goal that can't be reached costs on stochastic edges, in typical paths that can be
travelled."""


class RecordedChance(NamedTuple):
    """Recorded chance events, among how many steps."""

    before: Tensor  # [M, D]
    after: Tensor  # [M, D]
    visited: Tensor  # [N, D] a sample of all states
    num_steps: int  # recorded steps


class Routes(NamedTuple):
    """What to do at each landmark to reach the goals of B environments, on stochastic edges."""

    goal_node: Tensor  # [B] the landmark nearest to the goal
    goal_lengths: Tensor  # [B, K] steps
    cost_to_go: Tensor  # [B, K]
    after_event: Tensor  # [B, K] the cost after a chance event at each landmark
    next_node: Tensor  # [B, K] where K is the goal


class RiskGraph(NamedTuple):
    """The costs of the graph at one CVaR level, and the landmarks as the critic is now."""

    embeddings: Tensor  # [K, F]
    edge_costs: Tensor  # [K, K]
    path_costs: Tensor  # [K, K] of the shortest paths
    expected_setback: Tensor  # [K] steps lost by random outcomes in one step at each landmark
    stochastic: StochasticPaths | None  # where edges are stochastic


@dataclass(frozen=True, kw_only=True)
class LandmarkGraphConfig(LandmarkLevelConfig):
    unvisited_edge_factor: Annotated[float, (1.0, 1e6)] = 4.0
    """Factor on the cost of an edge that the data never traverse."""
    replan_every: Annotated[int, HORIZON] = 1
    """Environment steps between two plans of this level."""
    num_outcomes: Annotated[int, COUNT] = 256
    """Sampled next states of each landmark that estimate its setbacks, J."""
    stochastic_edges: bool = False
    """Whether edges carry where chance led from them: paths then are the cheapest on average, or in
    the worst cases as the task demands, over what may happen on the way. Recorded chance events
    count, in place of the world model's setbacks."""

    def build(
        self,
        shape: MapShape,
        action_dim: int,
        distance: QuasimetricFns | None,
        imagine: LatentRolloutFn,
    ) -> LandmarkGraph:
        return LandmarkGraph(self, prod(shape), distance)


class LandmarkCarry(NamedTuple):
    """What the level carries from step to step."""

    calls: int = 0
    subgoals: Tensor | None = None  # [B, H, D]
    risk_graph: RiskGraph | None = None  # at the task's CVaR level
    edge_feedback: EdgeFeedback | None = None
    routes: Routes | None = None  # where edges are stochastic


class LandmarkGraph(LandmarkLevel):
    """A level that plans by dynamic programming over remembered states (search on the replay
    buffer, Eysenbach et al. 2019; landmarks, Huang et al. 2019).

    An edge that the data never traverse costs more: it may lead through a wall. Where random
    outcomes set the agent back, every step costs the steps lost as well, on average or in the worst
    cases (CVaR), as the task demands.

    The subgoal lies `subgoal_spacing` steps along the cheapest path; it is the goal itself where
    the direct edge is no more expensive. A stuck agent takes another path (`EdgeFeedback`)."""

    config: LandmarkGraphConfig
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
    event_rates: Tensor
    event_outcomes: Tensor
    lost_cost: Tensor

    def __init__(
        self, config: LandmarkGraphConfig, size: int, distance: QuasimetricFns | None
    ) -> None:
        super().__init__(config, distance)
        count = config.num_landmarks
        self.register_buffer("states", torch.zeros(count, size))
        self.register_buffer("setback_samples", torch.zeros(count, config.num_outcomes))
        for name in ("edge_lengths", "edge_costs", "path_costs"):
            self.register_buffer(name, torch.zeros(count, count))
        if config.stochastic_edges:
            self.register_buffer("event_rates", torch.zeros(count))
            self.register_buffer("event_outcomes", torch.eye(count))
            self.register_buffer("lost_cost", torch.zeros(()))
        self.built = False

    def initial_carry(self, seed: int) -> LandmarkCarry:
        """The next call plans, with the present parameters of the critic."""
        return LandmarkCarry()

    def is_built(self) -> bool:
        """Whether there are landmarks; reads from the device only until there are."""
        self.built = self.built or bool(self.path_costs.any())
        return self.built

    @torch.no_grad()
    def build(
        self, states: Tensor, windows: Tensor, outcomes: Tensor,
        recorded: RecordedChance | None = None,
    ) -> None:  # fmt: skip
        """Makes `states` `[K, D]` the landmarks. `windows` `[N, T, D]` of recorded states tell
        which edges were traversed: from the landmark nearest to a state to the one nearest to a
        later state. `outcomes` `[K, J, D]`: sampled next states of each landmark under one action;
        `[K, 1, D]` for a deterministic model. `recorded`: the chance events of stochastic edges."""
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
        edge_costs = factor * self.edge_cost(edge_lengths)
        # only staying is free, or two landmarks at the same place would lead to each other forever
        self.edge_costs.copy_(edge_costs.clamp_min(MIN_EDGE_COST).fill_diagonal_(0))
        if self.config.stochastic_edges:
            self.setback_samples.zero_()
            if recorded is not None:
                events = self._estimate_events(windows, recorded)
                self.event_rates.copy_(events.rate)
                self.event_outcomes.copy_(events.outcomes)
        self.path_costs.copy_(shortest_paths(self.mean_edge_costs()))
        if self.config.stochastic_edges:
            self.lost_cost.copy_(LOST_FACTOR * self._typical_path(visited))

    def _typical_path(self, visited: Tensor) -> Tensor:
        """The median cost of the paths between landmarks that traversed edges join, scalar."""
        travelled = shortest_paths(
            self.edge_costs.masked_fill(~visited, torch.inf).fill_diagonal_(0)
        )
        joined = travelled[travelled.isfinite() & (travelled > 0)]
        return (joined if len(joined) else self.path_costs).median()

    def _estimate_events(self, windows: Tensor, recorded: RecordedChance) -> ChanceEvents:
        """The chance events at each landmark. `windows` `[N, T, D]` are of steps without any."""
        visits = self._nearest(recorded.visited).bincount(minlength=len(self.states))
        visits = visits.to(windows) * (recorded.num_steps / len(recorded.visited))
        embeddings = torch.cat([self.distance.embed(part) for part in windows.split(CHUNK_SIZE)])
        step_lengths = self.distance.from_embeddings(embeddings[:, :-1], embeddings[:, 1:])
        return estimate_events(
            visits,
            self._nearest(recorded.before),
            self._nearest(recorded.after),
            step_lengths.flatten().quantile(FAST_STEP),
        )

    def _nearest(self, states: Tensor) -> Tensor:
        """The landmark nearest to each state `[N, D]`, as states: the critic does not know where
        states belong from which chance leads away in every direction. `[N]`"""
        parts = [torch.cdist(part, self.states).argmin(-1) for part in states.split(STATES_CHUNK)]
        return torch.cat(parts)

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
        if not (context.pursues_goal and self.is_built()):
            return context, carry
        calls, subgoals, graph, feedback, routes = carry
        if subgoals is None or len(subgoals) != len(state):
            calls, feedback, routes = 0, None, None
        if calls % self.config.replan_every == 0:
            graph = graph or self._risk_graph(context.cvar_alpha)
            ends = self.endpoints(state, context.goal)
            feedback = self._update_feedback(feedback, calls, ends)
            routes = routes or self._routes(graph, ends)
            subgoals, chosen = self._path(graph, feedback, ends, routes)
            feedback = feedback._replace(chosen_edge=chosen)
        assert subgoals is not None
        context = context._replace(goal=subgoals[:, 0], upper_plans=subgoals[:, None])
        return context, LandmarkCarry(calls + 1, subgoals, graph, feedback, routes)

    def plan(self, state: Tensor, goal: Tensor, cvar_alpha: float = 1.0) -> Tensor:
        """States, goals `[B, D]` -> the subgoals of the cheapest path `[B, H, D]` at this CVaR
        level, without feedback."""
        ends, graph = self.endpoints(state, goal), self._risk_graph(cvar_alpha)
        feedback = initial_feedback(ends.state_embedding, len(self.states))
        return self._path(graph, feedback, ends, self._routes(graph, ends))[0]

    def _risk_graph(self, cvar_alpha: float) -> RiskGraph:
        """The costs at this CVaR level."""
        embeddings = self.distance.embed(self.states).detach()
        expected_setback = self._expected_setback(cvar_alpha)
        edge_costs = self._risk_adjusted_costs(expected_setback)
        is_built = cvar_alpha == 1 or self.config.stochastic_edges  # there are no setbacks then
        path_costs = self.path_costs if is_built else shortest_paths(edge_costs)
        stochastic = None
        if self.config.stochastic_edges:
            events = ChanceEvents(self.event_rates, self.event_outcomes)
            stochastic = StochasticPaths(events, cvar_alpha, self.lost_cost)
        return RiskGraph(embeddings, edge_costs, path_costs, expected_setback, stochastic)

    def mean_edge_costs(self) -> Tensor:
        """The costs of edges with the mean of what random outcomes cost on them, `[K, K]`."""
        return self._risk_adjusted_costs(self._expected_setback(1.0))

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
        self, feedback: EdgeFeedback | None, calls: int, ends: Endpoints
    ) -> EdgeFeedback:
        """The feedback from the steps so far."""
        if feedback is None:
            return initial_feedback(ends.state_embedding, len(self.states))
        if calls // self.config.replan_every % self.config.stuck_after:
            return feedback
        return self.check_progress(feedback, ends, self.edge_lengths)

    def _path(
        self, graph: RiskGraph, feedback: EdgeFeedback, ends: Endpoints, routes: Routes | None
    ) -> tuple[Tensor, Tensor]:
        """The subgoals of the cheapest path, `[B, H, D]`, and its first edge `[B]`: K where it
        leads directly to the goal. `routes`: where edges are stochastic."""
        if routes is None:
            nodes, travelled = self._shortest_path(graph, feedback, ends)
        else:
            nodes, travelled = self._stochastic_path(graph, feedback, ends, routes)
        index = subsample_path(travelled, self.config.subgoal_spacing, self.config.num_subgoals)
        next_node = (travelled <= MIN_PROGRESS).sum(-1).clamp_max(self.config.max_edges - 1)
        index[:, 0] = torch.where(feedback.follow_closely, next_node, index[:, 0])
        return gather_waypoints(self.states, nodes.gather(1, index), ends.goal), nodes[:, 0]

    def _shortest_path(
        self, graph: RiskGraph, feedback: EdgeFeedback, ends: Endpoints
    ) -> tuple[Tensor, Tensor]:
        """The nodes of the cheapest path, and the steps up to each (`greedy_path`)."""
        goal_lengths = self.distance.from_embeddings(graph.embeddings, ends.goal_embedding[:, None])
        goal_costs = self.edge_cost(goal_lengths)  # [B, K]
        cost_to_go = goal_costs
        for total, left in zip(
            graph.path_costs.split(CHUNK_SIZE, 1), goal_costs.split(CHUNK_SIZE, 1), strict=True
        ):
            cost_to_go = torch.minimum(cost_to_go, (total + left[:, None]).amin(-1))
        leaving, direct = self.first_edges(feedback, ends, graph.embeddings)
        setbacks = leaving.length * graph.expected_setback
        return greedy_path(
            Edges(leaving.length, leaving.cost + setbacks),
            direct,
            Edges(self.edge_lengths, graph.edge_costs),
            Edges(goal_lengths, goal_costs),
            cost_to_go,
            self.config.max_edges,
        )

    @torch.no_grad()
    def _routes(self, graph: RiskGraph, ends: Endpoints) -> Routes | None:
        """What to do at each landmark, where edges are stochastic."""
        paths = graph.stochastic
        if paths is None:
            return None
        goal_lengths = self.distance.from_embeddings(graph.embeddings, ends.goal_embedding[:, None])
        goal_node = self._nearest(ends.goal)
        last = Edges(goal_lengths, self.edge_cost(goal_lengths))
        shortest = ShortestEdges.of(Edges(self.edge_lengths, graph.edge_costs), graph.path_costs)
        return Routes(goal_node, goal_lengths, *paths.solve(shortest, last, goal_node))

    def _stochastic_path(
        self, graph: RiskGraph, feedback: EdgeFeedback, ends: Endpoints, routes: Routes
    ) -> tuple[Tensor, Tensor]:
        """The nodes of the path that costs least over what may happen, where nothing happens, and
        the steps up to each (`follow_nodes`)."""
        from_embeddings, paths = self.distance.from_embeddings, graph.stochastic
        assert paths is not None
        here = self._nearest(ends.state)[:, None]
        there, rate = routes.goal_node[:, None], self.event_rates
        after_here = routes.after_event.gather(1, here)
        first = from_embeddings(ends.state_embedding[:, None], graph.embeddings)  # [B, K]
        direct = from_embeddings(ends.state_embedding, ends.goal_embedding)
        costs = feedback.penalty[:, :-1] + paths.edge_costs(
            Edges(first, self.edge_cost(first)),
            routes.cost_to_go,
            Halves(rate[here], rate),
            Halves(after_here, routes.after_event),
        )
        direct_cost = feedback.penalty[:, -1] + paths.edge_costs(
            Edges(direct[:, None], self.edge_cost(direct[:, None])),
            torch.zeros_like(after_here),
            Halves(rate[here], rate[there]),
            Halves(after_here, routes.after_event.gather(1, there)),
        ).squeeze(1)
        cost, node = costs.min(1)
        is_direct = direct_cost <= cost
        length = torch.where(is_direct, direct, first.gather(1, node[:, None]).squeeze(1))
        return follow_nodes(
            node.masked_fill(is_direct, len(self.states)), length, routes.next_node,
            self.edge_lengths, routes.goal_lengths, self.config.max_edges,
        )  # fmt: skip
