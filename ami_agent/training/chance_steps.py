"""Which recorded steps are chance: what state and action do not explain."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ami_agent.agent import Agent
from modules.memory.replay_buffer import Parts, ReplayBuffer
from modules.types import Trajectory
from modules.world_model.jepa import WorldModel

FAST_STEP = 0.95
"""The quantile of motion that counts as a fast step."""
CHANCE_FACTOR = 2.0
"""A step is chance where the prediction misses by more than so many fast steps."""
NUM_SAMPLES = 16_384
"""Recorded steps of which the size of a fast step is taken."""


def chance_threshold(motion: Tensor) -> Tensor:
    """Changes of the state in single steps `[N, D]` -> the error, in each dimension `[D]`, above
    which a prediction was not just inaccurate."""
    fast_step = motion.detach().abs().quantile(FAST_STEP, 0)
    # dimensions that hardly move by themselves count in a tenth of the mean unit at least
    return CHANCE_FACTOR * fast_step.clamp_min(0.1 * fast_step.mean())


def replace_chance(predicted: Tensor, targets: Tensor, threshold: Tensor) -> Tensor:
    """The targets `[N, T, D]` of predictions over T steps, replaced by the predictions, so that
    they have no error and no gradient, from the first step on in which chance moved the agent.
    `threshold` `[D]`: that of one step; the error after t steps may be t times as large."""
    steps = torch.arange(1, 1 + targets.shape[1], device=targets.device)
    error = (predicted - targets).detach().abs()
    is_chance = (error > steps[:, None] * threshold).any(-1).cummax(1).values
    return torch.where(is_chance[..., None], predicted.detach(), targets)


@dataclass(frozen=True)
class ChanceDetector:
    """Tells recorded steps in which chance moved the agent: the next state differs from the most
    likely prediction by more than `threshold` `[D]` in some dimension. A wrong prediction at a
    wall is off by less than a step; a gust or a jump is not."""

    world_model: WorldModel
    threshold: Tensor

    @classmethod
    @torch.no_grad()
    def fit(cls, agent: Agent, buffer: ReplayBuffer) -> ChanceDetector:
        """The detector for a buffer of states; the threshold depends on the agent's own motion
        alone, as its world model predicts it."""
        model, generator = agent.world_model, torch.Generator().manual_seed(0)
        parts = Parts(interoception=False)
        state, next_state = _predict(model, buffer.sample(NUM_SAMPLES, 1, generator, parts=parts))
        return cls(model, chance_threshold(next_state - state))

    @torch.no_grad()
    def __call__(self, steps: Trajectory) -> Tensor:
        """Windows of one step, states `[N, 2, D]` -> which are chance, `[N]` bool."""
        _, predicted = _predict(self.world_model, steps)
        return ((steps.states[:, 1] - predicted).abs() > self.threshold).any(-1)


def split_at_chance(agent: Agent, buffer: ReplayBuffer) -> tuple[ReplayBuffer, Tensor]:
    """A buffer of states with its episodes split where chance moved the agent, and the states
    before and after each of these M steps, `[M, 2, D]`."""
    detector, events = ChanceDetector.fit(agent, buffer), []

    def split_at(steps: Trajectory) -> Tensor:
        is_chance = detector(steps)
        events.append(steps.states[is_chance])
        return is_chance

    return buffer.split_episodes(split_at), torch.cat(events)


def _predict(model: WorldModel, steps: Trajectory) -> tuple[Tensor, Tensor]:
    """States before the steps, and the most likely states after them, `[N, D]` each."""
    state = steps.states[:, 0]
    return state, model.step(state, steps.actions[:, 0].to(state)).state
