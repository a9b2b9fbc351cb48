"""Memory is filled by living."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ami_agent.lessons.base import Pupil
from ami_agent.life import WorldConfig, live, walk
from modules.types import require

if TYPE_CHECKING:
    from ami_agent.agent import Agent


@dataclass(frozen=True, kw_only=True)
class Live:
    """Walks in many worlds at once, remembered; no reward, and nobody judges them.

    Where the world has walks of its own, its keyword `errands` is the share of stretches that lead
    to some place in the other room, as the published protocols force a share of crossings."""

    worlds: int = 1500
    steps: int = 64
    """Steps lived in each world."""
    options: dict[str, int | float | str] = field(default_factory=dict)
    """Keyword arguments of the world that hold for this lesson only."""

    def __post_init__(self) -> None:
        require(self, worlds=1, steps=1)

    def begin(self, agent: Agent, world: WorldConfig, seed: int) -> Pupil:
        return Explorer(self, agent, world, seed)


class Explorer:
    """Walks and remembers. It begins anew when it is interrupted: the same seed walks the same."""

    def __init__(self, config: Live, agent: Agent, world: WorldConfig, seed: int) -> None:
        self.total, self.step, self.agent = config.steps, 0, agent
        self.world = world.build(config.worlds, "cpu", **config.options)
        obs, _ = self.world.reset(seed)
        self.life = live(walk(self.world), self.world, obs)

    def update(self) -> dict[str, Tensor]:
        transition = next(self.life).transition
        self.agent.observe(transition)
        self.step += 1
        return {"worlds": torch.tensor(float(self.world.count))}

    def finish(self) -> None:
        self.world.close()

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Begins anew."""
