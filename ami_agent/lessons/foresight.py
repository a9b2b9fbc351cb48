"""The critics of the drives learn what is still to come."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ami_agent.learning import Learning
from ami_agent.lessons.base import GradientPupil, Pupil, Study, as_states
from ami_agent.lessons.hindsight import Remembered
from ami_agent.life import WorldConfig
from ami_agent.losses import Keep, foresight_loss, lambda_returns
from modules.cost import Foresight
from modules.memory import Parts
from modules.planners.common import Guesses
from modules.targets import MovingAverage
from modules.types import FRACTION, HORIZON, UnusableInput, require

if TYPE_CHECKING:
    from ami_agent.agent import Agent
    from modules.memory import Memory


@dataclass(frozen=True, kw_only=True)
class Foresee(Study):
    """Pairs of a state and the intrinsic costs felt later, from memory: TD(lambda) towards a slow
    copy (LeCun 2022, 4.3.2), and, where `futures` is not 0, from imagination as well: the cheapest
    of some imagined futures is what a state promises (fitted value iteration)."""

    learning: Learning = field(default_factory=lambda: Learning(steps=3000, batch=256))
    length: int = 8
    """Steps of life that a return is made of."""
    trace: float = 0.8
    """lambda"""
    expectile: float = 0.8
    """How much more a cost counts that was lower than foreseen than one that was higher; 0.5: as
    much."""
    lag: float = 0.98
    """Decay of the slow copy."""
    futures: int = 0
    """Imagined futures from each state, P."""
    horizon: int = 4
    """Their steps, H."""

    def __post_init__(self) -> None:
        require(self, length=HORIZON, trace=FRACTION, expectile=FRACTION, lag=FRACTION)
        require(self, futures=(0, 1_000_000), horizon=HORIZON)

    def begin(self, agent: Agent, world: WorldConfig, seed: int) -> Pupil:
        return Foreseer(self, agent, seed)


def foresight_of(agent: Agent) -> Foresight:
    """The critics that are to learn; raises UnusableInput if there are none."""
    foresight = agent.cost.body.foresight
    if not isinstance(foresight, Foresight) or not agent.cost.body.drives.names:
        raise UnusableInput("an agent without drives or foresight can't foresee them")
    return foresight


def promise(agent: Agent, memory: Remembered, length: int) -> None:
    """What the critics foresee to begin with, and their unit: from what was felt in some windows of
    that length, as if it went on like that."""
    foresight, drives = foresight_of(agent), agent.cost.body.drives
    if not foresight.discount:
        foresight.look_ahead(discount_for(longest_episode(agent.memory)))
    some = memory.sample(
        4096, length, torch.Generator().manual_seed(0), parts=Parts(obs=(), actions=False)
    )
    feeling = agent.world_model.feeling
    interoception = some.interoception.to(agent.device)
    felt = drives(feeling.relative(interoception))  # [N, T, W]
    fade = foresight.discount ** torch.arange(length).to(felt)
    if some.valid is None:
        returns, lasts = torch.einsum("ntw,t->nw", felt, fade), fade.sum()
    else:
        counted = fade * some.valid.to(felt.device)
        returns, lasts = torch.einsum("ntw,nt->nw", felt, counted), counted.sum(1, keepdim=True)
    foresight.adapt(returns / (1 - foresight.discount) / lasts)
    # what was felt all the same, as a reward for every step alive, will not be so for ever
    foresight.scale.copy_(torch.maximum(foresight.scale, 0.1 * foresight.mean.abs()))
    shift = drives.shift(feeling.relative, torch.zeros_like(interoception[0, 0]))
    foresight.end(shift, bool(some.terminated.any()))


EPISODE_STEPS = 1000
"""Steps of an episode, where nothing says how long one lasts."""


def longest_episode(memory: Memory) -> int:
    """Steps of the longest episode that was collected; EPISODE_STEPS where none has ended."""
    return memory.longest() if memory.has_ended() else EPISODE_STEPS


def discount_for(steps: float) -> float:
    """How far an episode of so many steps is to be foreseen: to a fifth of it, 1 / (1 - gamma),
    within bounds (the heuristic of TD-MPC2, Hansen et al. 2024)."""
    return min(max(1 - 5 / steps, 0.95), 0.99)


class Foreseer(GradientPupil):
    """Logs how well what is foreseen agrees with what is felt: `correlation`, and `bias`, the mean
    of foreseen minus felt."""

    def __init__(self, config: Foresee, agent: Agent, seed: int) -> None:
        foresight = foresight_of(agent)
        self.lesson, self.memory, self.drives = config, as_states(agent), agent.cost.body.drives
        self.guess = Guesses(agent.eye)
        self.model = deepcopy(agent.world_model).requires_grad_(False)
        promise(agent, self.memory, config.length)
        self.foresight, self.slow = foresight, MovingAverage(foresight, config.lag)
        self.agreement: dict[str, Tensor] = {}
        super().__init__(
            torch.nn.ModuleList([foresight, self.slow]), self._loss, config.learning, weights={},
            seed=seed, after=lambda: self.slow.follow(foresight),
        )  # fmt: skip
        self.draws(self.memory, "the value critics", config.length)

    def update(self) -> dict[str, Tensor]:
        return {**super().update(), **self.agreement}

    def _loss(self, random: torch.Generator) -> dict[str, Tensor]:
        batch = self.memory.sample(self.lesson.learning.batch, self.lesson.length, random)
        states, keep = batch.states, Keep(batch.valid)
        with torch.no_grad():
            felt = self.drives(self.model.feeling.relative(batch.interoception.to(states.device)))
            returns = lambda_returns(
                felt, self.slow.average(states[:, 1:]), ~batch.terminated.to(states.device),
                self.foresight.discount, self.lesson.trace, self.foresight.terminal, batch.valid,
            )  # fmt: skip
            returns = keep(returns)
        foreseen = self.foresight.every(keep(states[:, :-1]))  # [K, B, T, W], or [K, N, W]
        self.agreement = _agreement(foreseen.detach().amax(0), returns)
        scale = self.foresight.scale
        terms = foresight_loss(foreseen / scale, returns / scale, self.lesson.expectile)
        if self.lesson.futures:
            promised = self._imagined(states[:, 0], random)
            first = foreseen[:, :, 0] if batch.valid is None else self.foresight.every(states[:, 0])
            terms["imagined"] = ((first - promised) / scale).square().mean()
        return terms

    @torch.no_grad()
    def _imagined(self, state: Tensor, random: torch.Generator) -> Tensor:
        """The cheapest of some futures for each drive by itself: `[B, D]` -> `[B, W]`"""
        held = self.guess.held(state, self.lesson.futures, self.lesson.horizon, random)
        future = self.model.imagine(state, held)  # the likeliest
        felt = self.drives(future.interoception)  # [B, P, H, W]
        fade = self.foresight.discount ** torch.arange(self.lesson.horizon + 1).to(felt)
        before, after = self.drives.alive(future.interoception)  # [B, P, H]
        soon = torch.einsum("bphw,bph->bpw", felt, before * fade[:-1])
        late = fade[-1] * after[..., -1:] * self.slow.average(future.states[:, :, -1])
        ending = ((before - after) * fade[1:]).sum(-1, keepdim=True)
        late = late + ending * self.foresight.terminal
        return (soon + late).amin(1)


def _agreement(foreseen: Tensor, felt: Tensor) -> dict[str, Tensor]:
    """Mean over the drives of the correlation over all else, and of the difference."""
    one, other = (part.flatten(0, -2) - part.flatten(0, -2).mean(0) for part in (foreseen, felt))
    scale = (one.square().mean(0) * other.square().mean(0)).sqrt().clamp_min(1e-30)
    return {
        "correlation": ((one * other).mean(0) / scale).mean(),
        "bias": (foreseen - felt).mean(),
    }
