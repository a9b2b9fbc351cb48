"""Training of the value critics: they predict the discounted sum of each drive's future costs."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ami_agent.adapters.env import EnvConfig
from ami_agent.training.base import OfflineStage, SGDStageRun, StageRun, encode_buffer
from ami_agent.training.hindsight import SamplesTrajectories
from ami_agent.training.masking import ValidSteps
from ami_agent.training.optim import OptimConfig
from modules.actor.planning.evaluator import RandomProposals
from modules.cost.cost import ValueCritics
from modules.memory.replay_buffer import Parts
from modules.perception.target_encoder import EMATarget
from modules.types import FRACTION, HORIZON, ConfigError, validate_ranges

if TYPE_CHECKING:
    from ami_agent.agent import Agent
    from modules.memory.replay_buffer import ReplayBuffer

DEFAULT_EPISODE_STEPS = 1000
"""Steps of an episode, where none has ended."""


def lambda_returns(
    cost: Tensor, next_values: Tensor, continues: Tensor, discount: float, td_lambda: float,
    terminal: Tensor | None = None, valid: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """TD(lambda) returns `[B, T, W]` of T states (Sutton & Barto 2018, 12.8).

    `cost` `[B, T, W]` is that of arrival at each next state, and `next_values` `[B, T, W]` is its
    value; `continues` `[B, T]`, from 0 to 1, is the probability that the episode goes on there.
    `terminal` `[W]`: the value of an episode's end, 0 if not given. `valid` `[B, T]`: the returns
    of padded windows take nothing from beyond their last valid step."""
    discounts = continues.to(cost)[..., None] * discount
    if terminal is not None:
        cost = cost + (discount - discounts) * terminal
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


@dataclass(frozen=True, kw_only=True)
class TrainValue(OfflineStage):
    """Trains the value critics on recorded states and the intrinsic costs that followed: TD(lambda)
    with a slow copy as target (LeCun 2022, 4.3.2); where `num_imagined` is not 0, on imagined
    rollouts as well, of which the cheapest is the target (fitted value iteration)."""

    optim: OptimConfig = field(default_factory=lambda: OptimConfig(steps=3000, batch_size=256))
    length: int = 8
    """Recorded steps of which a return is computed."""
    td_lambda: float = 0.8
    """Lambda of TD(lambda)."""
    expectile: float = 0.8
    """Weight of costs lower than predicted; costs higher than predicted weigh 1 minus this. 0.5:
    both weigh the same."""
    ema_decay: float = 0.98
    """Decay of the slow copy of the critics."""
    num_imagined: int = 0
    """Imagined rollouts from each state, P."""
    horizon: int = 4
    """Steps of an imagined rollout, H."""

    def __post_init__(self) -> None:
        validate_ranges(
            self, length=HORIZON, td_lambda=FRACTION, expectile=FRACTION, ema_decay=FRACTION
        )
        validate_ranges(self, num_imagined=(0, 1_000_000), horizon=HORIZON)

    def start(self, agent: Agent, env: EnvConfig, seed: int) -> StageRun:
        return ValueRun(self, agent, seed)


class ValueRun(SGDStageRun):
    """Trains on lambda returns. Logs `correlation`, that of predicted and computed returns, and
    `bias`, the mean of predicted minus computed."""

    def __init__(self, config: TrainValue, agent: Agent, seed: int) -> None:
        self.value_critics = value_critics_of(agent)
        self.stage, self.buffer = config, encode_buffer(agent)
        self.drives = agent.cost.interoceptive_cost.drives
        self.random_proposals = RandomProposals(
            agent.evaluator.action_space, agent.evaluator.action_dim
        )
        self.model = deepcopy(agent.world_model).requires_grad_(False)
        init_value_units(agent, self.buffer, config.length)
        self.target_critics = EMATarget(self.value_critics, config.ema_decay)
        self.prediction_metrics: dict[str, Tensor] = {}
        super().__init__(
            nn.ModuleList([self.value_critics, self.target_critics]), self._loss, config.optim,
            weights={}, seed=seed,
            post_step=lambda: self.target_critics.update(self.value_critics),
        )  # fmt: skip
        self.log_drawn_fraction(self.buffer, "the value critics", config.length)

    def update(self) -> dict[str, Tensor]:
        return {**super().update(), **self.prediction_metrics}

    def _loss(self, generator: torch.Generator) -> dict[str, Tensor]:
        batch = self.buffer.sample(self.stage.optim.batch_size, self.stage.length, generator)
        states, valid_steps, critics = batch.states, ValidSteps(batch.valid), self.value_critics
        with torch.no_grad():
            interoception = batch.interoception.to(states.device)
            costs = self.drives(self.model.interoception_head.subtract_offset(interoception))
            returns = lambda_returns(
                costs, self.target_critics.average(states[:, 1:]),
                ~batch.terminated.to(states.device), critics.discount, self.stage.td_lambda,
                critics.terminal, batch.valid,
            )  # fmt: skip
            returns = valid_steps(returns)
        predicted = critics.all_values(valid_steps(states[:, :-1]))  # [K, B, T, W], or [K, N, W]
        self.prediction_metrics = _prediction_metrics(predicted.detach().amax(0), returns)
        scale = critics.scale
        terms = expectile_value_loss(predicted / scale, returns / scale, self.stage.expectile)
        if self.stage.num_imagined:
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


def describe_discount(discount: float, max_episode_steps: float, source: str) -> str:
    """A line for the log: how long an episode lasts, and the discount; either may be 0, unknown.
    `source`: what states the length."""
    limit_text = "nothing states how long an episode lasts"
    if max_episode_steps:
        limit_text = f"an episode lasts at most {max_episode_steps:g} steps ({source})"
    if discount:
        return f"{limit_text}; discount {discount:.3g}"
    return f"{limit_text}; the discount follows from the episodes that are collected first"


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
