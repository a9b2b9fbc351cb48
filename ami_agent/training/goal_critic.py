"""The critic learns how many steps are still to go."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ami_agent.adapters.env import EnvConfig
from ami_agent.losses import (
    LagrangeMultiplier,
    path_regression_loss,
    quasimetric_loss,
    temporal_difference_loss,
)
from ami_agent.training.base import OfflineStage, SGDStageRun, StageRun, encode_buffer
from ami_agent.training.optim import OptimConfig
from modules.actor.subgoals.edges import edge_costs, shortest_paths
from modules.cost.cost import GoalCritic
from modules.cost.quasimetric import Quasimetric
from modules.memory.short_term import unroll_memory
from modules.perception.target_encoder import EMATarget
from modules.types import BATCH, FRACTION, HORIZON, ConfigError, tree_map, validate_ranges

if TYPE_CHECKING:
    from ami_agent.agent import Agent


def critic_of(agent: Agent) -> Quasimetric:
    """The distance that is to learn; raises ConfigError if the agent has no critic."""
    if not isinstance(agent.cost.goal_critic, GoalCritic):
        raise ConfigError("an agent without a critic can't teach it: teacher must be NoLesson")
    return agent.cost.goal_critic.distance


@dataclass(frozen=True, kw_only=True)
class TrainQuasimetric(OfflineStage):
    """The critic by quasimetric reinforcement learning: apart as far as lived steps allow."""

    optim: OptimConfig = field(default_factory=lambda: OptimConfig(steps=1200, batch_size=256))
    max_distance: float = 30.0
    """Distances much beyond this, in steps, are not pushed further."""
    epsilon: float = 0.05
    log_push: bool = False
    """Whether states are pushed apart the harder the nearer they are, `far` being how hard: two
    dead ends of one crossing are as far from all else, and are told apart by this."""
    group_size: int = 1
    """So many states of one episode are pushed apart from each other; 1: the whole batch, for
    worlds whose layout never changes."""
    length: int = 1
    """Steps of life that are one step of the distance: more where a body is slow."""

    def __post_init__(self) -> None:
        validate_ranges(
            self, max_distance=(0.0, 1e6), epsilon=(0.0, 1e3), group_size=BATCH, length=HORIZON
        )
        self.optim.num_groups(self.group_size)

    def start(self, agent: Agent, env: EnvConfig, seed: int) -> StageRun:
        buffer, distance = encode_buffer(agent), critic_of(agent)
        multiplier = LagrangeMultiplier().to(agent.device)
        push_group = self.group_size if self.group_size > 1 else self.optim.batch_size

        def loss(generator: torch.Generator) -> dict[str, Tensor]:
            batch = buffer.sample(self.optim.batch_size, self.length, generator, self.group_size)
            states = batch.states
            last_state = states[torch.arange(len(states)), batch.num_valid.to(states.device)]
            ends = torch.stack([states[:, 0], last_state], 1)
            state, next_state = ends.unflatten(0, (-1, push_group)).unbind(2)
            return quasimetric_loss(
                distance, multiplier, state, next_state, max_distance=self.max_distance, epsilon=self.epsilon,
                log_push=self.log_push,
            )  # fmt: skip

        stage_run = SGDStageRun(
            nn.ModuleList([distance, multiplier]), loss, self.optim, weights={}, seed=seed
        )
        stage_run.log_drawn_fraction(buffer, "the critic", self.length)
        return stage_run


@dataclass(frozen=True, kw_only=True)
class TrainTDDistance(OfflineStage):
    """The critic by temporal differences with goals met later in the same episode or at random."""

    optim: OptimConfig = field(default_factory=lambda: OptimConfig(steps=3000, batch_size=256))
    ema_decay: float = 0.99
    length: int = 16
    """How much later in the episode a goal may lie."""

    def __post_init__(self) -> None:
        validate_ranges(self, ema_decay=FRACTION, length=HORIZON)

    def start(self, agent: Agent, env: EnvConfig, seed: int) -> StageRun:
        buffer, distance = encode_buffer(agent), critic_of(agent)
        target_critic = EMATarget(distance, self.ema_decay)

        def loss(generator: torch.Generator) -> dict[str, Tensor]:
            batch = buffer.sample(self.optim.batch_size, self.length, generator)
            states = batch.states
            offsets = torch.randint(1, self.length + 1, (len(states),), generator=generator)
            future = states[
                torch.arange(len(states)), batch.wrap_to_valid(offsets).to(states.device)
            ]
            use_future = torch.rand(len(states), 1, generator=generator).to(future) < 0.5
            goal = torch.where(use_future, future, future.roll(1, 0))
            return temporal_difference_loss(
                distance, target_critic.average.module, states[:, 0], states[:, 1], goal
            )

        stage_run = SGDStageRun(
            nn.ModuleList([distance, target_critic]), loss, self.optim, weights={}, seed=seed,
            post_step=lambda: target_critic.update(distance),
        )  # fmt: skip
        stage_run.log_drawn_fraction(buffer, "the critic", self.length)
        return stage_run


@dataclass(frozen=True, kw_only=True)
class DistillShortestPaths(OfflineStage):
    """The critic taught by dynamic programming: in every layout that memory knows, the remembered
    states are the nodes of a graph, and the pupil learns its shortest paths."""

    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(steps=2000, batch_size=256, lr=2e-3)
    )
    num_graphs: int = 200
    """Episodes that become a graph."""
    nodes_per_graph: int = 640
    """States of each."""
    group_size: int = 32
    """States and goals of one layout in a batch; each is compared with each."""
    edge_length: float = 2.0
    """States that the critic so far calls this close, in steps, are joined."""
    imagined_fraction: float = 0.5
    """Share of the states that are predicted from the one before instead of perceived."""

    def __post_init__(self) -> None:
        validate_ranges(
            self, num_graphs=(1, 1_000_000), nodes_per_graph=(2, 100_000), group_size=BATCH
        )
        validate_ranges(self, edge_length=(0.0, 1e6), imagined_fraction=FRACTION)
        self.optim.num_groups(self.group_size)

    def start(self, agent: Agent, env: EnvConfig, seed: int) -> StageRun:
        return PathRegressionRun(self, agent, seed)


class PathRegressionRun(SGDStageRun):
    """Learns from the graph; the critic it was made with stays the teacher until the end."""

    def __init__(self, config: DistillShortestPaths, agent: Agent, seed: int) -> None:
        self.critic, self.stage, self.agent = critic_of(agent), config, agent
        student = deepcopy(self.critic)
        self.states, self.imagined_states, self.steps = self._graphs()
        super().__init__(student, self._loss, config.optim, weights={}, seed=seed)

    @torch.no_grad()
    def _graphs(self) -> tuple[Tensor, Tensor, Tensor]:
        """States seen and imagined `[E, N, D]`, steps from each to each `[E, N, N]`."""
        graphs = [self._graph(episode) for episode in self._episodes()]
        states, imagined_states, steps = (torch.stack(parts) for parts in zip(*graphs, strict=True))
        return states, imagined_states, steps

    def _episodes(self) -> Tensor:
        episodes = self.agent.replay_buffer.episode_ids(self.stage.nodes_per_graph - 1)
        if not len(episodes):
            raise ConfigError(
                f"memory has no episode of {self.stage.nodes_per_graph} states for a graph"
            )
        return episodes[: self.stage.num_graphs]

    def _graph(self, episode: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        trajectory, num_nodes = (
            self.agent.replay_buffer.get_episode(episode),
            self.stage.nodes_per_graph,
        )
        device = self.agent.device
        obs = tree_map(lambda part: part[0, :num_nodes].to(device), trajectory.obs)
        features = self.agent.perception(obs, self.agent.configurator.default_modality_weights)
        states = unroll_memory(self.agent.short_term_memory, features[None])[
            0
        ]  # an episode, from its beginning
        actions = trajectory.actions[0, : num_nodes - 1].to(states)
        imagined_states = self.agent.world_model.level(0).step(states[:-1], actions).state
        steps = shortest_paths(edge_costs(self.critic, states, self.stage.edge_length)).half()
        return states, torch.cat([states[:1], imagined_states]), steps

    def _loss(self, generator: torch.Generator) -> dict[str, Tensor]:
        num_graphs, num_nodes = self.states.shape[:2]
        group_size = self.stage.group_size
        groups = self.stage.optim.num_groups(group_size)

        def draw(below: int, *shape: int) -> Tensor:
            drawn = torch.randint(below, (groups, *shape), generator=generator)
            return drawn.to(self.states.device, non_blocking=True)

        graph, start, goal = (
            draw(num_graphs, 1),
            draw(num_nodes, group_size),
            draw(num_nodes, group_size),
        )
        is_imagined = (
            torch.rand(groups, group_size, 1, generator=generator).to(self.states)
            < self.stage.imagined_fraction
        )
        state = torch.where(
            is_imagined, self.imagined_states[graph, start], self.states[graph, start]
        )
        steps = self.steps[graph[..., None], start[..., None], goal[:, None]].to(state.dtype)
        goal_state = self.states[graph, goal]
        return path_regression_loss(self.module, state[:, :, None], goal_state[:, None], steps)

    def finish(self) -> None:
        """The student becomes the critic."""
        self.critic.load_state_dict(self.module.state_dict())
