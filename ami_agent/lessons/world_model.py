"""Perception and world model learn to predict."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ami_agent.learning import Learning, world_model_loss
from ami_agent.lessons.base import GradientPupil, Pupil
from ami_agent.life import WorldConfig
from modules.objectives import Weights
from modules.targets import Itself, MovingAverage
from modules.types import Trajectory, require

if TYPE_CHECKING:
    from ami_agent.agent import Agent


@dataclass(frozen=True, kw_only=True)
class Predict:
    """Perception and world model together: predict in representation space, don't collapse."""

    weights: Weights = field(default_factory=Weights)
    learning: Learning = field(default_factory=lambda: Learning(steps=1200, batch=128))
    length: int = 8
    """Steps unrolled, T."""
    together: int = 1
    """Windows that come from one episode, for the statistics within it."""
    target: Itself.Config | MovingAverage.Config = field(default_factory=Itself.Config)

    def __post_init__(self) -> None:
        require(self, length=1)
        self.learning.groups(self.together)

    def begin(self, agent: Agent, world: WorldConfig, seed: int) -> Pupil:
        target = self.target.build(agent.perception)
        level = agent.world_model.level(0)
        channels = agent.shape[0]

        def loss(random: torch.Generator) -> dict[str, Tensor]:
            batch = agent.memory.sample(self.learning.batch, self.length, random, self.together)
            return world_model_loss(
                _to(batch, next(level.parameters()).device), agent.perception, target, level,
                channels=channels, together=self.together,
            )  # fmt: skip

        return GradientPupil(
            nn.ModuleList([agent.perception, agent.world_model, target]),
            loss,
            self.learning,
            weights=asdict(self.weights),
            seed=seed,
            after=lambda: target.follow(agent.perception),
        )


def _to(batch: Trajectory, device: torch.device) -> Trajectory:
    obs = batch.obs.to(device) if isinstance(batch.obs, Tensor) else batch.obs
    return Trajectory(
        obs, batch.actions.to(device), batch.interoception.to(device), batch.episode.to(device)
    )
