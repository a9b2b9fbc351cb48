"""Chance on the way over a graph of landmarks: where it strikes, where it leads, and the cost of a
path as an expectation, or as a risk, over what may happen (a Markov decision process)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from modules.actor.subgoals.shortest_paths import Edges

PRIOR_STEPS = 1.0
"""Steps without a chance event, and chance events without effect, that count as recorded at each
landmark beside those that were: neither one event nor one safe step makes a certainty."""

MIN_SPEED = 1e-3
"""Least distance of a fast step."""

CHUNK_SIZE = 64
"""Landmarks whose edges are evaluated at once; bounds memory."""

MAX_SWEEPS = 10_000
TOLERANCE = 1e-6
"""Relative change of the costs at which value iteration ends."""

MIN_ALPHA = 1e-6
"""The CVaR level of the worst case, as a divisor."""


class ChanceEvents(NamedTuple):
    """Chance events at K landmarks, each of which stands for the states nearest to it."""

    rate: Tensor  # [K] events per step of distance
    outcomes: Tensor  # [K, K] the probability that an event at the first ends at the second


class Halves(NamedTuple):
    """What holds in the first and in the second half of edges, `[...]` each, broadcast."""

    first: Tensor
    second: Tensor


def estimate_events(visits: Tensor, before: Tensor, after: Tensor, speed: Tensor) -> ChanceEvents:
    """Counts -> rates and outcomes. `visits` `[K]`: recorded steps from the states of each
    landmark; `before` and `after` `[N]`: the landmarks on either side of the chance events among
    them; `speed`, scalar: the distance of a fast step."""
    count, ones = len(visits), torch.ones_like(before, dtype=visits.dtype)
    events = torch.zeros_like(visits).index_add(0, before, ones)
    outcomes = torch.diag(torch.full_like(visits, PRIOR_STEPS)).flatten()
    outcomes = outcomes.index_add(0, before * count + after, ones).unflatten(0, (count, count))
    # visits may be estimated from a sample, with fewer steps than there were events
    prob = events / (visits.maximum(events) + PRIOR_STEPS)
    rate = -(-prob).log1p() / speed.clamp_min(MIN_SPEED)
    return ChanceEvents(rate, outcomes / outcomes.sum(1, keepdim=True))


class ShortestEdges(NamedTuple):
    """The edges from each of K landmarks that are on shortest paths, at most M of them."""

    nodes: Tensor  # [K, M] where each leads
    edges: Edges  # [K, M]
    exist: Tensor  # [K, M] bool: some landmarks have fewer

    @classmethod
    def of(cls, onward: Edges, path_costs: Tensor) -> ShortestEdges:
        """Of edges `[K, K]` those that no shorter path replaces: a longer edge leads through the
        same states, and what happens there too. `path_costs`: those of the shortest paths."""
        kept = (onward.cost <= path_costs).fill_diagonal_(False)
        order = onward.cost.masked_fill(~kept, torch.inf)
        nodes = order.topk(int(kept.sum(1).amax()), largest=False).indices.sort(1).values
        edges = Edges(onward.length.gather(1, nodes), onward.cost.gather(1, nodes))
        return cls(nodes, edges, kept.gather(1, nodes))


class StochasticPaths:
    """Paths whose edges may end elsewhere. An edge of d steps leads for d / 2 through the states
    of its first landmark, then through those of its second one. Where a chance event happens the
    edge ends, and the path goes on from the outcome. What counts is the mean over all outcomes, or
    the CVaR, event by event (iterated CVaR, Ruszczynski 2010)."""

    def __init__(self, events: ChanceEvents, cvar_alpha: float, lost_cost: Tensor) -> None:
        """`lost_cost`, scalar: the cost where the goal can't be reached, and the largest there
        is."""
        self.events, self.lost_cost = events, lost_cost
        self.cvar_alpha, self.divisor = cvar_alpha, max(cvar_alpha, MIN_ALPHA)
        self.rows = events.rate.nonzero().squeeze(1)  # [R] landmarks with events
        probs = events.outcomes[self.rows]
        self.columns = (probs > 0).any(0).nonzero().squeeze(1)  # [C] landmarks where those end
        self.probs = probs[:, self.columns]  # [R, C]

    def solve(
        self, shortest: ShortestEdges, last: Edges, goal_node: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Value iteration. Edges between landmarks, from each to the goal `[B, K]`, the landmark
        nearest to each goal `[B]` -> the cost from each landmark and the cost after an event there,
        `[B, K]` each, and the node to go to from each, `[B, K]`: K is the goal."""
        cost_to_go = self.lost_cost.expand_as(last.cost)
        for _ in range(MAX_SWEEPS):
            previous, after_event = cost_to_go, self.after_event(cost_to_go)
            cost_to_go, node = self._sweep(shortest, last, goal_node, previous, after_event)
            if bool(((cost_to_go - previous).abs() <= TOLERANCE * cost_to_go).all()):
                break
        return cost_to_go, self.after_event(cost_to_go), node

    def _sweep(
        self,
        shortest: ShortestEdges,
        last: Edges,
        goal_node: Tensor,
        cost_to_go: Tensor,
        after_event: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """One update of all costs, and the node to go to, `[B, K]` each."""
        count, rate = cost_to_go.shape[1], self.events.rate
        direct = self.edge_costs(
            last,
            torch.zeros_like(last.cost),
            Halves(rate, rate[goal_node, None]),
            Halves(after_event, after_event.gather(1, goal_node[:, None])),
        )
        costs, nodes = [], []
        for rows in torch.arange(count, device=rate.device).split(CHUNK_SIZE):
            ends = shortest.nodes[rows]  # [R, M]
            options = self.edge_costs(
                Edges(shortest.edges.length[rows], shortest.edges.cost[rows]),
                cost_to_go[:, ends],
                Halves(rate[rows, None], rate[ends]),
                Halves(after_event[:, rows, None], after_event[:, ends]),
            )
            cost, best = options.masked_fill(~shortest.exist[rows], torch.inf).min(-1)
            costs.append(cost)
            nodes.append(ends.expand(len(best), -1, -1).gather(2, best[..., None]).squeeze(2))
        cost, node = torch.cat(costs, 1), torch.cat(nodes, 1)
        lowest = torch.minimum(cost, direct).minimum(self.lost_cost)
        return lowest, torch.where(direct <= cost, count, node)

    def edge_costs(
        self, edges: Edges, arrival: Tensor, rates: Halves, after_event: Halves
    ) -> Tensor:
        """The cost of each edge with all that follows: `arrival` from its end, or `after_event` in
        one of its halves, where events have the given `rates`. All broadcast."""
        half = edges.length / 2
        probs = Halves(*(-(-rate * half).expm1() for rate in rates))
        until = Halves(*(torch.minimum(half, 1 / rate) for rate in rates))  # steps
        # the first half was travelled at its full cost: a long edge is no cheap way to an event
        event = edges.cost / 2 + until.second + after_event.second
        goes_on = self._either(probs.second, event, edges.cost + arrival)
        return self._either(probs.first, until.first + after_event.first, goes_on)

    def after_event(self, cost_to_go: Tensor) -> Tensor:
        """Costs from each landmark -> the cost after an event at each, `[B, K]`; where none were
        recorded, the cost itself."""
        costs = cost_to_go[:, self.columns]
        if self.cvar_alpha == 1:
            expected = costs @ self.probs.T
        else:
            worst_first, order = costs.sort(1, descending=True)
            probs = self.probs.T[order].transpose(1, 2)  # [B, R, C], by outcome
            worse = probs.cumsum(-1) - probs
            counted = torch.minimum(probs, (self.divisor - worse).clamp_min(0)) / self.divisor
            expected = (counted * worst_first[:, None]).sum(-1)
        return cost_to_go.index_copy(1, self.rows, expected)

    def _either(self, prob: Tensor, event: Tensor, otherwise: Tensor) -> Tensor:
        """The CVaR of two costs, of which the first has probability `prob`."""
        if self.cvar_alpha == 1:
            return torch.lerp(otherwise, event, prob)
        if_worse = torch.lerp(otherwise, event, (prob / self.divisor).clamp_max(1))
        if_better = torch.lerp(event, otherwise, ((1 - prob) / self.divisor).clamp_max(1))
        return torch.maximum(if_worse, if_better)
