"""The critics of the drives learn what is still to come."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ami_agent.adapters.env import EnvConfig
from ami_agent.losses import ValidSteps, expectile_value_loss, lambda_returns
from ami_agent.training.base import OfflineStage, SGDStageRun, StageRun, encode_buffer
from ami_agent.training.hindsight import SamplesTrajectories
from ami_agent.training.optim import OptimConfig
from modules.actor.planning.evaluator import RandomProposals
from modules.cost.cost import ValueCritics
from modules.memory.replay_buffer import Parts
from modules.perception.target_encoder import EMATarget
from modules.types import FRACTION, HORIZON, ConfigError, validate_ranges

if TYPE_CHECKING:
    from ami_agent.agent import Agent
    from modules.memory.replay_buffer import ReplayBuffer


@dataclass(frozen=True, kw_only=True)
class TrainValue(OfflineStage):
    """Pairs of a state and the intrinsic costs felt later, from memory: TD(lambda) towards a slow
    copy (LeCun 2022, 4.3.2), and, where `futures` is not 0, from imagination as well: the cheapest
    of some imagined futures is what a state promises (fitted value iteration)."""

    optim: OptimConfig = field(default_factory=lambda: OptimConfig(steps=3000, batch_size=256))
    length: int = 8
    """Steps of life that a return is made of."""
    td_lambda: float = 0.8
    """lambda"""
    expectile: float = 0.8
    """How much more a cost counts that was lower than foreseen than one that was higher; 0.5: as
    much."""
    ema_decay: float = 0.98
    """Decay of the slow copy."""
    num_imagined: int = 0
    """Imagined futures from each state, P."""
    horizon: int = 4
    """Their steps, H."""

    def __post_init__(self) -> None:
        validate_ranges(
            self, length=HORIZON, td_lambda=FRACTION, expectile=FRACTION, ema_decay=FRACTION
        )
        validate_ranges(self, num_imagined=(0, 1_000_000), horizon=HORIZON)

    def start(self, agent: Agent, env: EnvConfig, seed: int) -> StageRun:
        return ValueRun(self, agent, seed)


def value_critics_of(agent: Agent) -> ValueCritics:
    """The critics that are to learn; raises ConfigError if there are none."""
    value_critics = agent.cost.interoceptive_cost.value_critics
    if (
        not isinstance(value_critics, ValueCritics)
        or not agent.cost.interoceptive_cost.drives.names
    ):
        raise ConfigError("an agent without drives or foresight can't foresee them")
    return value_critics


def init_value_units(agent: Agent, buffer: SamplesTrajectories, length: int) -> None:
    """What the critics foresee to begin with, and their unit: from what was felt in some windows of
    that length, as if it went on like that."""
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
        returns, discount_sum = (
            torch.einsum("ntw,nt->nw", costs, valid_discounts),
            valid_discounts.sum(1, keepdim=True),
        )
    value_critics.adapt(returns / (1 - value_critics.discount) / discount_sum)
    # what was felt all the same, as a reward for every step alive, will not be so for ever
    value_critics.scale.copy_(torch.maximum(value_critics.scale, 0.1 * value_critics.mean.abs()))
    shift = drives.step_shift(
        interoception_head.subtract_offset, torch.zeros_like(interoception[0, 0])
    )
    value_critics.set_terminal_value(shift, bool(sample.terminated.any()))


DEFAULT_EPISODE_STEPS = 1000
"""Steps of an episode, where nothing says how long one lasts."""


def longest_episode(buffer: ReplayBuffer) -> int:
    """Steps of the longest episode that was collected; EPISODE_STEPS where none has ended."""
    return buffer.max_window() if buffer.has_episode_end() else DEFAULT_EPISODE_STEPS


def discount_for(steps: float) -> float:
    """How far an episode of so many steps is to be foreseen: to a fifth of it, 1 / (1 - gamma),
    within bounds (the heuristic of TD-MPC2, Hansen et al. 2024)."""
    return min(max(1 - 5 / steps, 0.95), 0.99)


class ValueRun(SGDStageRun):
    """Logs how well what is foreseen agrees with what is felt: `correlation`, and `bias`, the mean
    of foreseen minus felt."""

    def __init__(self, config: TrainValue, agent: Agent, seed: int) -> None:
        value_critics = value_critics_of(agent)
        self.stage, self.buffer, self.drives = (
            config,
            encode_buffer(agent),
            agent.cost.interoceptive_cost.drives,
        )
        self.random_proposals = RandomProposals(agent.evaluator)
        self.model = deepcopy(agent.world_model).requires_grad_(False)
        init_value_units(agent, self.buffer, config.length)
        self.value_critics, self.target_critics = (
            value_critics,
            EMATarget(value_critics, config.ema_decay),
        )
        self.prediction_metrics: dict[str, Tensor] = {}
        super().__init__(
            torch.nn.ModuleList([value_critics, self.target_critics]), self._loss, config.optim, weights={},
            seed=seed, post_step=lambda: self.target_critics.update(value_critics),
        )  # fmt: skip
        self.log_drawn_fraction(self.buffer, "the value critics", config.length)

    def update(self) -> dict[str, Tensor]:
        return {**super().update(), **self.prediction_metrics}

    def _loss(self, generator: torch.Generator) -> dict[str, Tensor]:
        batch = self.buffer.sample(self.stage.optim.batch_size, self.stage.length, generator)
        states, valid_steps = batch.states, ValidSteps(batch.valid)
        with torch.no_grad():
            costs = self.drives(
                self.model.interoception_head.subtract_offset(batch.interoception.to(states.device))
            )
            returns = lambda_returns(
                costs, self.target_critics.average(states[:, 1:]), ~batch.terminated.to(states.device),
                self.value_critics.discount, self.stage.td_lambda, self.value_critics.terminal, batch.valid,
            )  # fmt: skip
            returns = valid_steps(returns)
        predicted = self.value_critics.all_values(
            valid_steps(states[:, :-1])
        )  # [K, B, T, W], or [K, N, W]
        self.prediction_metrics = _prediction_metrics(predicted.detach().amax(0), returns)
        scale = self.value_critics.scale
        terms = expectile_value_loss(predicted / scale, returns / scale, self.stage.expectile)
        if self.stage.num_imagined:
            imagined_value = self._imagined(states[:, 0], generator)
            first_value = (
                predicted[:, :, 0]
                if batch.valid is None
                else self.value_critics.all_values(states[:, 0])
            )
            terms["imagined"] = ((first_value - imagined_value) / scale).square().mean()
        return terms

    @torch.no_grad()
    def _imagined(self, state: Tensor, generator: torch.Generator) -> Tensor:
        """The cheapest of some futures for each drive by itself: `[B, D]` -> `[B, W]`"""
        actions = self.random_proposals.piecewise_constant(
            state, self.stage.num_imagined, self.stage.horizon, generator
        )
        rollout = self.model.imagine(state, actions)  # the likeliest
        costs = self.drives(rollout.interoception)  # [B, P, H, W]
        discounts = self.value_critics.discount ** torch.arange(self.stage.horizon + 1).to(costs)
        alive_before, alive_after = self.drives.survival(rollout.interoception)  # [B, P, H]
        immediate = torch.einsum("bphw,bph->bpw", costs, alive_before * discounts[:-1])
        bootstrap = (
            discounts[-1]
            * alive_after[..., -1:]
            * self.target_critics.average(rollout.states[:, :, -1])
        )
        end_prob = ((alive_before - alive_after) * discounts[1:]).sum(-1, keepdim=True)
        bootstrap = bootstrap + end_prob * self.value_critics.terminal
        return (immediate + bootstrap).amin(1)


def _prediction_metrics(predicted: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Mean over the drives of the correlation over all else, and of the difference."""
    predicted_centered, target_centered = (
        part.flatten(0, -2) - part.flatten(0, -2).mean(0) for part in (predicted, target)
    )
    scale = (
        (predicted_centered.square().mean(0) * target_centered.square().mean(0))
        .sqrt()
        .clamp_min(1e-30)
    )
    return {
        "correlation": ((predicted_centered * target_centered).mean(0) / scale).mean(),
        "bias": (predicted - target).mean(),
    }
