"""Training of the goal critic: a quasimetric that predicts the number of steps from a state to a
goal."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ami_agent.adapters.env import EnvConfig
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


class LagrangeMultiplier(nn.Module):
    """The dual variable of a constraint, at least 0; it grows while the constraint is violated."""

    def __init__(self, initial: float = 1.0, speed: float = 100.0) -> None:
        super().__init__()
        self.speed = speed
        self.raw = nn.Parameter(torch.tensor(initial).expm1().log() / speed)

    def forward(self) -> Tensor:
        return nn.functional.softplus(self.speed * self.raw)


def quasimetric_loss(
    distance: Quasimetric, multiplier: LagrangeMultiplier, state: Tensor, next_state: Tensor, *,
    max_distance: float, epsilon: float, log_push: bool = False,
) -> dict[str, Tensor]:  # fmt: skip
    """Quasimetric RL (Wang et al. 2023, equation 10): push all states apart, under the constraint
    that no recorded step is longer than 1.

    States and next states `[..., B, D]`, drawn at random: the goal of a state is its neighbour
    among the B. `max_distance`: in steps. `log_push`: the gradient of the push is
    `max_distance` / (1 + d); the optimum is the same, the largest distances that the constraint
    allows, but short distances are learnt first."""
    embedding, next_embedding = distance.embed(state), distance.embed(next_state)
    distances = distance.from_embeddings(embedding, embedding.roll(1, -2))  # [..., B]
    push = (
        -max_distance * distances.log1p()
        if log_push
        else nn.functional.softplus(max_distance - distances, beta=0.1)
    )
    step_lengths = distance.from_embeddings(embedding, next_embedding)
    violation = (step_lengths - 1).relu().square().mean() - epsilon**2
    value = multiplier()
    return {
        "push": push.mean(),
        "constraint": value.detach() * violation,
        "multiplier": -value * violation.detach(),
    }


def temporal_difference_loss(
    distance: nn.Module, target_critic: nn.Module, state: Tensor, next_state: Tensor, goal: Tensor
) -> dict[str, Tensor]:
    """d(s, g) = 1 + d(s', g), with d = 0 at the goal; states `[B, D]`. `target_critic` is a slow
    copy of `distance`.

    The recorded steps were taken for other goals, so each gives only an upper bound: predictions
    that are too long weigh 0.9, those that are too short 0.1, as in expectile regression (IQL,
    Kostrikov et al. 2022).
    """
    with torch.no_grad():
        at_goal = (next_state - goal).square().sum(-1) < 1e-6
        target = 1 + target_critic(next_state, goal).masked_fill(at_goal, 0)
    error = distance(state, goal) - target
    weight = torch.where(error > 0, 0.9, 0.1)
    return {"td": (weight * error.square()).mean()}


def path_regression_loss(
    distance: nn.Module, state: Tensor, goal: Tensor, steps: Tensor
) -> dict[str, Tensor]:
    """Regression on known numbers of steps `[B]`; the squared error is divided by 1 + steps, so
    that short distances are learnt as well. Pairs with infinite steps, which no known path joins,
    don't count."""
    is_known = steps.isfinite()
    steps = steps.masked_fill(~is_known, 0)
    error = (distance(state, goal) - steps).square() / (1 + steps)
    return {"regression": (error * is_known).sum() / is_known.sum().clamp_min(1)}


def critic_of(agent: Agent) -> Quasimetric:
    """The distance of the agent's goal critic; ConfigError if it has none."""
    if not isinstance(agent.cost.goal_critic, GoalCritic):
        raise ConfigError("an agent without a goal critic has no distances to train or to use")
    return agent.cost.goal_critic.distance


@dataclass(frozen=True, kw_only=True)
class TrainQuasimetric(OfflineStage):
    """Trains the goal critic by quasimetric reinforcement learning: distances are as large as the
    recorded steps allow."""

    optim: OptimConfig = field(default_factory=lambda: OptimConfig(steps=1200, batch_size=256))
    max_distance: float = 30.0
    """Steps beyond which distances are hardly pushed further."""
    epsilon: float = 0.05
    """Root mean square by which recorded steps may exceed a distance of 1."""
    log_push: bool = False
    """Whether the push gets weaker with the distance d, as `max_distance` / (1 + d). Then close
    states are separated first, as the dead ends on either side of a junction."""
    group_size: int = 1
    """States of one episode that are pushed apart from each other. 1: all states of the batch, for
    environments whose layout never changes."""
    length: int = 1
    """Recorded steps that make a distance of 1; more where the agent moves slowly."""

    def __post_init__(self) -> None:
        validate_ranges(
            self, max_distance=(0.0, 1e6), epsilon=(0.0, 1e3), group_size=BATCH, length=HORIZON
        )
        self.optim.num_groups(self.group_size)

    def start(self, agent: Agent, env: EnvConfig, seed: int) -> StageRun:
        distance, buffer = critic_of(agent), encode_buffer(agent)
        multiplier = LagrangeMultiplier().to(agent.device)
        push_group = self.group_size if self.group_size > 1 else self.optim.batch_size

        def loss(generator: torch.Generator) -> dict[str, Tensor]:
            batch = buffer.sample(self.optim.batch_size, self.length, generator, self.group_size)
            states = batch.states
            last_state = states[torch.arange(len(states)), batch.num_valid.to(states.device)]
            ends = torch.stack([states[:, 0], last_state], 1)
            state, next_state = ends.unflatten(0, (-1, push_group)).unbind(2)
            return quasimetric_loss(
                distance, multiplier, state, next_state, max_distance=self.max_distance,
                epsilon=self.epsilon, log_push=self.log_push,
            )  # fmt: skip

        stage_run = SGDStageRun(
            nn.ModuleList([distance, multiplier]), loss, self.optim, weights={}, seed=seed
        )
        stage_run.log_drawn_fraction(buffer, "the critic", self.length)
        return stage_run


@dataclass(frozen=True, kw_only=True)
class TrainTDDistance(OfflineStage):
    """Trains the goal critic by temporal differences; half of the goals are later states of the
    same episode, half are random."""

    optim: OptimConfig = field(default_factory=lambda: OptimConfig(steps=3000, batch_size=256))
    ema_decay: float = 0.99
    """Decay of the slow copy of the critic."""
    length: int = 16
    """Steps by which a goal of the same episode comes later, at most."""

    def __post_init__(self) -> None:
        validate_ranges(self, ema_decay=FRACTION, length=HORIZON)

    def start(self, agent: Agent, env: EnvConfig, seed: int) -> StageRun:
        distance, buffer = critic_of(agent), encode_buffer(agent)
        target_critic = EMATarget(distance, self.ema_decay)

        def loss(generator: torch.Generator) -> dict[str, Tensor]:
            batch = buffer.sample(self.optim.batch_size, self.length, generator)
            states = batch.states
            offsets = torch.randint(1, self.length + 1, (len(states),), generator=generator)
            offsets = batch.wrap_to_valid(offsets).to(states.device)
            future = states[torch.arange(len(states)), offsets]
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
    """Trains the goal critic by dynamic programming: the states of each of some recorded episodes
    are the nodes of a graph, and the critic learns the lengths of its shortest paths."""

    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(steps=2000, batch_size=256, lr=2e-3)
    )
    num_graphs: int = 200
    """Episodes that become a graph."""
    nodes_per_graph: int = 640
    """States of each."""
    group_size: int = 32
    """States, and as many goals, of one graph in a batch; each state is paired with each goal."""
    edge_length: float = 2.0
    """Distance in steps, by the critic before this stage, up to which two states are joined."""
    imagined_fraction: float = 0.5
    """Fraction of the states that the world model predicts from the state before, in place of those
    that perception encodes."""

    def __post_init__(self) -> None:
        validate_ranges(
            self, num_graphs=(1, 1_000_000), nodes_per_graph=(2, 100_000), group_size=BATCH
        )
        validate_ranges(self, edge_length=(0.0, 1e6), imagined_fraction=FRACTION)
        self.optim.num_groups(self.group_size)

    def start(self, agent: Agent, env: EnvConfig, seed: int) -> StageRun:
        return PathRegressionRun(self, agent, seed)


class PathRegressionRun(SGDStageRun):
    """Trains a copy of the critic on shortest paths; the graphs' edges are of the critic itself,
    which doesn't change until the end."""

    def __init__(self, config: DistillShortestPaths, agent: Agent, seed: int) -> None:
        self.critic, self.stage, self.agent = critic_of(agent), config, agent
        student = deepcopy(self.critic)
        self.states, self.imagined_states, self.steps = self._graphs()
        super().__init__(student, self._loss, config.optim, weights={}, seed=seed)

    @torch.no_grad()
    def _graphs(self) -> tuple[Tensor, Tensor, Tensor]:
        """Encoded and imagined states, each `[E, N, D]`, and steps from each to each
        `[E, N, N]`."""
        graphs = [self._graph(episode) for episode in self._episodes()]
        states, imagined_states, steps = (torch.stack(parts) for parts in zip(*graphs, strict=True))
        return states, imagined_states, steps

    def _episodes(self) -> Tensor:
        episodes = self.agent.replay_buffer.episode_ids(self.stage.nodes_per_graph - 1)
        if not len(episodes):
            raise ConfigError(
                f"the replay buffer has no episode of {self.stage.nodes_per_graph} states, the "
                "distill_paths.nodes_per_graph"
            )
        return episodes[: self.stage.num_graphs]

    def _graph(self, episode: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        agent, num_nodes = self.agent, self.stage.nodes_per_graph
        trajectory = agent.replay_buffer.get_episode(episode)
        obs = tree_map(lambda part: part[0, :num_nodes].to(agent.device), trajectory.obs)
        features = agent.perception(obs, agent.configurator.default_modality_weights)
        states = unroll_memory(agent.short_term_memory, features[None])[0]
        actions = trajectory.actions[0, : num_nodes - 1].to(states)
        imagined_states = agent.world_model.level(0).step(states[:-1], actions).state
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
        is_imagined = random < self.stage.imagined_fraction
        state = torch.where(
            is_imagined, self.imagined_states[graph, start], self.states[graph, start]
        )
        steps = self.steps[graph[..., None], start[..., None], goal[:, None]].to(state.dtype)
        goal_state = self.states[graph, goal]
        return path_regression_loss(self.module, state[:, :, None], goal_state[:, None], steps)

    def finish(self) -> None:
        """The trained copy becomes the critic."""
        self.critic.load_state_dict(self.module.state_dict())
