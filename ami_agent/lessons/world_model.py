"""Perception and world model learn to predict."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ami_agent.learning import Learning, unroll_loss, world_model_loss
from ami_agent.lessons.base import GradientPupil, Pupil, Study, as_states
from ami_agent.life import WorldConfig
from modules.objectives import Weights
from modules.targets import Itself, MovingAverage
from modules.types import Trajectory, require

if TYPE_CHECKING:
    from ami_agent.agent import Agent


@dataclass(frozen=True, kw_only=True)
class Predict(Study):
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


@dataclass(frozen=True, kw_only=True)
class Refine(Study):
    """The dynamics alone go on learning, in states as they are by now: on all of memory, and as
    much on the latest life. What a state means stays as it is, and so does the critic."""

    learning: Learning = field(default_factory=lambda: Learning(steps=400, batch=128))
    length: int = 5
    """Steps unrolled, T."""

    def __post_init__(self) -> None:
        require(self, length=1)
        self.learning.groups(2)

    def begin(self, agent: Agent, world: WorldConfig, seed: int) -> Pupil:
        memory, level, half = as_states(agent), agent.world_model.level(0), self.learning.batch // 2
        device = agent.device

        def loss(random: torch.Generator) -> dict[str, Tensor]:
            drawn = (memory.sample(half, self.length, random, latest=new) for new in (False, True))
            old, new = (unroll_loss(level, _to(batch, device)) for batch in drawn)
            return {"prediction": old, "latest": new}

        return GradientPupil(level, loss, self.learning, weights={}, seed=seed)


def _to(batch: Trajectory, device: torch.device) -> Trajectory:
    obs = batch.obs.to(device) if isinstance(batch.obs, Tensor) else batch.obs
    return Trajectory(
        obs, batch.actions.to(device), batch.interoception.to(device), batch.episode.to(device)
    )
