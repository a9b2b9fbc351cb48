"""Training of the critics: the goal critic, a quasimetric that predicts the number of steps from a
state to a goal, and the value critics, which predict the discounted sum of each drive's costs."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import torch
from torch import Tensor, nn

from ami_agent.adapters.env import EnvConfig
from ami_agent.agent import Agent
from ami_agent.training.base import (
    SGDStage,
    SGDStageRun,
    StageRun,
    ValidSteps,
    check_window,
    encode_buffer,
)
from ami_agent.training.chance_steps import split_at_chance
from ami_agent.training.distributed import split_states
from ami_agent.training.hindsight import SamplesTrajectories
from ami_agent.training.optim import OptimConfig
from ami_agent.training.precision import exact
from modules.actor.planning.evaluator import RandomProposals
from modules.cost.goal_critic import GoalCritic, GoalCriticConfig, Quasimetric
from modules.cost.value_critics import ValueCritics
from modules.memory.replay_buffer import Parts, ReplayBuffer
from modules.perception.target_encoder import EMATarget
from modules.types import BATCH, FRACTION, HORIZON, ConfigError
from modules.world_model.hjepa import HierarchicalJEPAConfig, SharedCriticConfig

if TYPE_CHECKING:
    from ami_agent.config import Config

EPSILON = 0.05
"""Root mean square by which recorded steps may exceed a distance of 1."""
DEFAULT_EPISODE_STEPS = 1000
"""Steps of an episode, where none has ended."""


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
    max_distance: float, log_push: bool = False,
) -> dict[str, Tensor]:  # fmt: skip
    """Quasimetric RL (Wang et al. 2023, equation 10): push all states apart, under the constraint
    that no recorded step is longer than 1.

    States and next states `[..., B, D]`, drawn at random: the goal of a state is its neighbour
    among the B. `max_distance`: in steps. `log_push`: the gradient of the push is
    `max_distance` / (1 + d); the optimum is the same, the largest distances that the constraint
    allows, but short distances are learnt first.

    Distances are float32 in any precision: bfloat16 would round them by as much as the constraint
    allows."""
    with exact(state.device):
        embedding, next_embedding = split_states(distance.embed, state, next_state)
    distances = distance.from_embeddings(embedding, embedding.roll(1, -2))  # [..., B]
    push = (
        -max_distance * distances.log1p()
        if log_push
        else nn.functional.softplus(max_distance - distances, beta=0.1)
    )
    step_lengths = distance.from_embeddings(embedding, next_embedding)
    violation = (step_lengths - 1).relu().square().mean() - EPSILON**2
    value = multiplier()
    return {
        "push": push.mean(),
        "constraint": value.detach() * violation,
        "multiplier": -value * violation.detach(),
    }


def critic_of(agent: Agent) -> Quasimetric:
    """The distance of the agent's goal critic; ConfigError if it has none."""
    if not isinstance(agent.cost.goal_critic, GoalCritic):
        raise ConfigError("an agent without a goal critic has no distances to train or to use")
    return agent.cost.goal_critic.distance


def check_goal_critic(config: Config, name: str) -> None:
    """Raises ConfigError for a stage that trains a goal critic, where there is none."""
    if config.cost.goal_critic is None:
        raise ConfigError(
            f"the agent has no goal critic, which the stage {name} trains: leave the stage "
            "out (on the command line, --without goal_critic)"
        )


@dataclass(frozen=True, kw_only=True)
class TrainQuasimetric(SGDStage):
    """Trains the goal critic by quasimetric reinforcement learning: distances are as large as the
    recorded steps allow."""

    optim: OptimConfig = field(default_factory=lambda: OptimConfig(steps=1200, batch_size=256))
    max_distance: Annotated[float, (0.0, 1e6)] = 30.0
    """Steps beyond which distances are hardly pushed further."""
    log_push: bool = False
    """Whether the push gets weaker with the distance d, as `max_distance` / (1 + d). Then close
    states are separated first, as the dead ends on either side of a junction."""
    group_size: Annotated[int, BATCH] = 1
    """States of one episode that are pushed apart from each other. 1: all states of the batch, for
    environments whose layout never changes."""
    length: Annotated[int, HORIZON] = 1
    """Recorded steps that make a distance of 1; more where the agent moves slowly."""
    exclude_chance: bool = False
    """Whether a step in which chance moved the agent joins no states: it is no way from one to the
    other (`ChanceDetector`; the world model must be trained before)."""

    def check(self, config: Config, name: str) -> None:
        check_goal_critic(config, name)
        check_window(f"{name}.length", self.length, config.collect.steps)
        critic, levels = config.cost.goal_critic, config.actor.subgoals
        if (
            self.length > 1
            and isinstance(levels, HierarchicalJEPAConfig)
            and isinstance(levels.level.distance, SharedCriticConfig)
        ):
            raise ConfigError(
                f"{name}.length is {self.length}, so that many recorded steps make a distance of "
                "1; where subgoals.level.distance is SharedCritic, which counts single steps, it "
                "must be 1"
            )
        if self.length > 1 and isinstance(critic, GoalCriticConfig) and critic.reachability:
            raise ConfigError(
                f"{name}.length is {self.length}, so that many recorded steps make a distance of "
                "1; with goal_critic.reachability above 0 it must be 1"
            )
        if self.exclude_chance and "train_jepa" not in config.stages:
            raise ConfigError(
                f"{name}.exclude_chance needs the stage train_jepa: what the world model does not "
                "predict is chance"
            )

    def start(self, agent: Agent, env: EnvConfig, seed: int) -> StageRun:
        distance, buffer = critic_of(agent), encode_buffer(agent)
        num_steps = len(buffer)
        if self.exclude_chance:
            buffer, _ = split_at_chance(agent, buffer)
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
                log_push=self.log_push,
            )  # fmt: skip

        stage_run = SGDStageRun(nn.ModuleList([distance, multiplier]), loss, self.optim, seed=seed)
        stage_run.log_drawn_fraction(buffer, "the critic", self.length)
        if self.exclude_chance:
            chance_fraction = torch.tensor(1 - len(buffer) / num_steps)
            stage_run.constant_metrics["chance_fraction"] = chance_fraction
        return stage_run


def with_terminal_values(
    cost: Tensor, continues: Tensor, discount: float, terminal: Tensor
) -> Tensor:
    """The cost of arrival at each next state `[B, T, W]`, and the value of the episode's end,
    `terminal` `[W]`, where it ends there; `continues` `[B, T]` as in `lambda_returns`."""
    discounts = continues.to(cost)[..., None] * discount
    return cost + (discount - discounts) * terminal


def lambda_returns(
    cost: Tensor, next_values: Tensor, continues: Tensor, discount: float, td_lambda: float,
    valid: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """TD(lambda) returns `[B, T, W]` of T states (Sutton & Barto 2018, 12.8).

    `cost` `[B, T, W]` is that of arrival at each next state, and `next_values` `[B, T, W]` is its
    value; `continues` `[B, T]`, from 0 to 1, is the probability that the episode goes on there.
    `valid` `[B, T]`: the returns of padded windows take nothing from beyond their last valid
    step."""
    discounts = continues.to(cost)[..., None] * discount
    bootstrap, returns = next_values[:, -1], []
    for step in reversed(range(cost.shape[1])):
        if valid is not None and step + 1 < cost.shape[1]:
            is_valid = valid[:, step + 1, None].to(cost.device)
            bootstrap = torch.where(is_valid, bootstrap, next_values[:, step])
        target = (1 - td_lambda) * next_values[:, step] + td_lambda * bootstrap
        bootstrap = cost[:, step] + discounts[:, step] * target
        returns.append(bootstrap)
    return torch.stack(returns[::-1], 1)


def expectile_value_loss(predicted: Tensor, returns: Tensor, expectile: float) -> dict[str, Tensor]:
    """Expectile regression on returns, each `[..., W]` (IQL, Kostrikov et al. 2022). The recorded
    behaviour had other aims, so returns below the prediction weigh `expectile`, and those above it
    the rest."""
    error = returns - predicted
    weight = torch.where(error < 0, expectile, 1 - expectile)
    return {"value": (weight * error.square()).mean()}


def check_value_critics(config: Config, name: str) -> None:
    """Raises ConfigError for a stage that trains value critics, where there are none."""
    has_value_critics = config.cost.value_critics is not None
    if not (config.cost.drives and has_value_critics):
        raise ConfigError(
            f"the stage {name} trains the critics of drives: it needs drives and value_critics"
        )


@dataclass(frozen=True, kw_only=True)
class TrainValue(SGDStage):
    """Trains the value critics on recorded states and the intrinsic costs that followed: TD(lambda)
    with a slow copy as target (LeCun 2022, 3.3); where `num_imagined` is not 0, on imagined
    rollouts as well, of which the cheapest is the target (fitted value iteration)."""

    optim: OptimConfig = field(default_factory=lambda: OptimConfig(steps=3000, batch_size=256))
    length: Annotated[int, HORIZON] = 8
    """Recorded steps of which a return is computed."""
    td_lambda: Annotated[float, FRACTION] = 0.8
    """Lambda of TD(lambda)."""
    expectile: Annotated[float, FRACTION] = 0.8
    """Weight of costs lower than predicted; costs higher than predicted weigh 1 minus this. 0.5:
    both weigh the same."""
    ema_decay: Annotated[float, FRACTION] = 0.98
    """Decay of the slow copy of the critics."""
    num_imagined: Annotated[int, (0, 1_000_000)] = 0
    """Imagined rollouts from each state, P."""
    horizon: Annotated[int, HORIZON] = 4
    """Steps of an imagined rollout, H."""

    def check(self, config: Config, name: str) -> None:
        check_value_critics(config, name)
        check_window(f"{name}.length", self.length, config.collect.steps)

    def start(self, agent: Agent, env: EnvConfig, seed: int) -> StageRun:
        return ValueRun(self, agent, seed)


class ValueRun(SGDStageRun):
    """Trains on lambda returns. Logs `correlation`, that of predicted and computed returns, and
    `bias`, the mean of predicted minus computed."""

    def __init__(self, stage: TrainValue, agent: Agent, seed: int) -> None:
        self.value_critics = value_critics_of(agent)
        self.stage, self.buffer = stage, encode_buffer(agent)
        self.drives = agent.cost.interoceptive_cost.drives
        self.random_proposals = RandomProposals(
            agent.evaluator.action_space, agent.evaluator.action_dim
        )
        self.model = deepcopy(agent.world_model).requires_grad_(False)
        init_value_units(agent, self.buffer, stage.length)
        self.target_critics = EMATarget(self.value_critics, stage.ema_decay)
        self.prediction_metrics: dict[str, Tensor] = {}
        super().__init__(
            nn.ModuleList([self.value_critics, self.target_critics]), self._loss, stage.optim,
            seed=seed, post_step=self.target_critics.update,
        )  # fmt: skip
        self.log_drawn_fraction(self.buffer, "the value critics", stage.length)

    def update(self) -> dict[str, Tensor]:
        return {**super().update(), **self.prediction_metrics}

    def _loss(self, generator: torch.Generator) -> dict[str, Tensor]:
        stage, critics = self.stage, self.value_critics
        batch = self.buffer.sample(stage.optim.batch_size, stage.length, generator)
        states, valid_steps = batch.states, ValidSteps(batch.valid)
        with torch.no_grad():
            interoception = batch.interoception.to(states.device)
            costs = self.drives(self.model.interoception_head.subtract_offset(interoception))
            continues = ~batch.terminated.to(states.device)
            costs = with_terminal_values(costs, continues, critics.discount, critics.terminal)
            next_values = self.target_critics.average(states[:, 1:])
            returns = lambda_returns(
                costs, next_values, continues, critics.discount, stage.td_lambda, batch.valid
            )
            returns = valid_steps(returns)
        predicted = critics.all_values(valid_steps(states[:, :-1]))  # [K, B, T, W], or [K, N, W]
        self.prediction_metrics = _prediction_metrics(predicted.detach().amax(0), returns)
        scale = critics.scale
        terms = expectile_value_loss(predicted / scale, returns / scale, stage.expectile)
        if stage.num_imagined:
            imagined_value = self._imagined_value(states[:, 0], generator)
            first_value = (
                predicted[:, :, 0] if batch.valid is None else critics.all_values(states[:, 0])
            )
            terms["imagined"] = ((first_value - imagined_value) / scale).square().mean()
        return terms

    @torch.no_grad()
    def _imagined_value(self, state: Tensor, generator: torch.Generator) -> Tensor:
        """The lowest discounted cost among random rollouts, for each drive by itself: `[B, D]` ->
        `[B, W]`."""
        horizon, critics = self.stage.horizon, self.value_critics
        actions = self.random_proposals.piecewise_constant(
            state, self.stage.num_imagined, horizon, generator
        )
        rollout = self.model.imagine(state, actions)
        costs = self.drives(rollout.interoception)  # [B, P, H, W]
        discounts = critics.discount ** torch.arange(horizon + 1).to(costs)
        alive_before, alive_after = self.drives.survival(rollout.interoception)  # [B, P, H]
        immediate = torch.einsum("bphw,bph->bpw", costs, alive_before * discounts[:-1])
        last_values = self.target_critics.average(rollout.states[:, :, -1])
        bootstrap = discounts[-1] * alive_after[..., -1:] * last_values
        end_prob = ((alive_before - alive_after) * discounts[1:]).sum(-1, keepdim=True)
        bootstrap = bootstrap + end_prob * critics.terminal
        return (immediate + bootstrap).amin(1)


def value_critics_of(agent: Agent) -> ValueCritics:
    """The agent's value critics; ConfigError if it has none, or no drives."""
    interoceptive_cost = agent.cost.interoceptive_cost
    if not isinstance(interoceptive_cost.value_critics, ValueCritics) or (
        not interoceptive_cost.drives.names
    ):
        raise ConfigError("an agent without drives or value_critics has no values to learn")
    return interoceptive_cost.value_critics


def init_value_units(agent: Agent, buffer: SamplesTrajectories, length: int) -> None:
    """Sets the critics' discount, where the settings leave it open, their initial value and its
    unit: those of the costs in a sample of windows of `length` steps, as if they continued."""
    value_critics, drives = value_critics_of(agent), agent.cost.interoceptive_cost.drives
    if not value_critics.discount:
        value_critics.set_discount(discount_for(longest_episode(agent.replay_buffer)))
    sample = buffer.sample(
        4096, length, torch.Generator().manual_seed(0), parts=Parts(obs=(), actions=False)
    )
    interoception_head = agent.world_model.interoception_head
    interoception = sample.interoception.to(agent.device)
    costs = drives(interoception_head.subtract_offset(interoception))  # [N, T, W]
    discounts = value_critics.discount ** torch.arange(length).to(costs)
    if sample.valid is None:
        returns, discount_sum = torch.einsum("ntw,t->nw", costs, discounts), discounts.sum()
    else:
        valid_discounts = discounts * sample.valid.to(costs.device)
        returns = torch.einsum("ntw,nt->nw", costs, valid_discounts)
        discount_sum = valid_discounts.sum(1, keepdim=True)
    value_critics.adapt(returns / (1 - value_critics.discount) / discount_sum)
    # a cost that is the same at every step has no spread; it ends with the episode all the same
    value_critics.scale.copy_(torch.maximum(value_critics.scale, 0.1 * value_critics.mean.abs()))
    shift = drives.step_shift(
        interoception_head.subtract_offset, torch.zeros_like(interoception[0, 0])
    )
    value_critics.set_terminal_value(shift, bool(sample.terminated.any()))


def longest_episode(buffer: ReplayBuffer) -> int:
    """Steps of the longest episode in the buffer; `DEFAULT_EPISODE_STEPS` where none has ended."""
    return buffer.max_window() if buffer.has_episode_end() else DEFAULT_EPISODE_STEPS


def discount_for(steps: float) -> float:
    """The discount for episodes of so many steps: 1 / (1 - gamma) is a fifth of them, within bounds
    (the heuristic of TD-MPC2, Hansen et al. 2024)."""
    return min(max(1 - 5 / steps, 0.95), 0.99)


def _prediction_metrics(predicted: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Correlation and mean difference of two `[..., W]` over all but the drives, whose mean is
    taken."""
    predicted_centred, target_centred = (
        part.flatten(0, -2) - part.flatten(0, -2).mean(0) for part in (predicted, target)
    )
    square = predicted_centred.square().mean(0) * target_centred.square().mean(0)
    scale = square.sqrt().clamp_min(1e-30)
    return {
        "correlation": ((predicted_centred * target_centred).mean(0) / scale).mean(),
        "bias": (predicted - target).mean(),
    }
