"""The protocol of every hierarchy, and what the levels that plan on landmarks share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from modules.actor.subgoals.edge_feedback import EdgeFeedback
from modules.actor.subgoals.shortest_paths import Edges, distance_penalty
from modules.types import (
    COUNT,
    ENV_STEPS,
    HORIZON,
    ConfigError,
    QuasimetricFns,
    Settings,
    TaskContext,
)


class LevelInfo(NamedTuple):
    """A learnt level above, for probing and display."""

    num_steps: int  # environment steps that one step of the level spans
    has_own_states: bool  # False if it shares the states of the level below
    encode: Callable[[Tensor], Tensor]  # states of the lowest level `[..., D]` -> its own
    predict: Callable[[Tensor, Tensor], Tensor]
    """Its states `[N, D]`, environment actions `[N, T, A]` -> `[N, T // num_steps + 1, D]`."""


class Hierarchy(Protocol):
    """State `[B, D]`, context and what the levels carry from step to step -> the context of the
    lowest level, and what they carry on. `learned_levels`: the learnt levels above it, the lowest
    first. `description`: how it finds subgoals, for display. `initial_carry`: at the beginning of
    an episode; `seed` is that of the random draws."""

    description: str

    @property
    def learned_levels(self) -> Sequence[LevelInfo]: ...
    def initial_carry(self, seed: int) -> Any: ...
    def __call__(
        self, state: Tensor, context: TaskContext, carry: Any
    ) -> tuple[TaskContext, Any]: ...


def gather_waypoints(landmarks: Tensor, nodes: Tensor, goal: Tensor) -> Tensor:
    """Landmarks `[K, D]` or `[B, K, D]`, node indices `[B, H]` where K is the goal, goals `[B, D]`
    -> the states of these nodes, `[B, H, D]`."""
    count, rows = landmarks.shape[-2], torch.arange(len(nodes), device=nodes.device)[:, None]
    found = landmarks.expand(len(nodes), -1, -1)[rows, nodes.clamp_max(count - 1)]
    return torch.where((nodes == count)[..., None], goal[:, None], found)


@dataclass(frozen=True, kw_only=True)
class LandmarkLevelConfig(Settings):
    """Settings of every level that plans on landmarks."""

    num_landmarks: Annotated[int, (2, 100_000)] = 300
    """K"""
    trusted_edge_length: Annotated[float, (1e-3, 1e6)] = 2.0
    """Steps beyond which the cost of an edge grows faster than its length."""
    subgoal_spacing: Annotated[float, (1e-3, 1e6)] = 10.0
    """Steps along the path between subgoals."""
    num_subgoals: Annotated[int, HORIZON] = 4
    """Subgoals of a plan, H; the first is the goal of the level below."""
    max_edges: Annotated[int, COUNT] = 32
    """Longest path that is followed, in landmarks."""
    stuck_after: Annotated[int, ENV_STEPS] = 8
    """Plans between two checks of progress (`EdgeFeedback`)."""


class Endpoints(NamedTuple):
    """States and goals of B environments, and their embeddings by the critic."""

    state: Tensor  # [B, D]
    goal: Tensor  # [B, D]
    state_embedding: Tensor  # [B, F]
    goal_embedding: Tensor  # [B, F]


class LandmarkLevel(nn.Module):
    """A level that takes the cheapest path over landmarks to the goal. An edge of d steps, as the
    critic estimates them, costs d (1 + (d / trusted_edge_length)^2), because the estimate is
    reliable for near states only."""

    learned_levels: Sequence[LevelInfo] = ()

    def __init__(self, config: LandmarkLevelConfig, distance: QuasimetricFns | None) -> None:
        super().__init__()
        if distance is None:
            name = type(self).__name__
            raise ConfigError(
                f"subgoals {name} needs the critic's distance: goal_critic must not be None"
            )
        self.config, self.distance = config, distance

    def edge_cost(self, length: Tensor) -> Tensor:
        """The cost of edges of this length in steps."""
        return distance_penalty(length, self.config.trusted_edge_length)

    def endpoints(self, state: Tensor, goal: Tensor) -> Endpoints:
        """States and goals, `[B, D]` each, with their embeddings."""
        return Endpoints(state, goal, self.distance.embed(state), self.distance.embed(goal))

    def first_edges(
        self, feedback: EdgeFeedback, ends: Endpoints, landmarks: Tensor
    ) -> tuple[Edges, Edges]:
        """The edges from each state to the embedded landmarks `[B, K]`, and to its goal `[B]`."""
        to_landmarks = self.distance.from_embeddings(ends.state_embedding[:, None], landmarks)
        to_goal = self.distance.from_embeddings(ends.state_embedding, ends.goal_embedding)
        return (
            Edges(to_landmarks, feedback.penalty[:, :-1] + self.edge_cost(to_landmarks)),
            Edges(to_goal, feedback.penalty[:, -1] + self.edge_cost(to_goal)),
        )

    def check_progress(
        self, feedback: EdgeFeedback, ends: Endpoints, edge_lengths: Tensor
    ) -> EdgeFeedback:
        """The feedback after a check of progress; `edge_lengths`: between landmarks."""
        from_embeddings, trusted_length = (
            self.distance.from_embeddings,
            self.config.trusted_edge_length,
        )
        current = ends.state_embedding
        moved = from_embeddings(feedback.last_embedding, current)
        away_from_goal = from_embeddings(current, ends.goal_embedding) > trusted_length
        return feedback.update(current, moved, away_from_goal, edge_lengths < trusted_length)
