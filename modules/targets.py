"""What the world model is asked to predict: the state as it is seen, or as a slow copy sees it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from modules.types import FRACTION, Gains, Observation, require


class Itself(nn.Module):
    """The target is the state itself; its gradient is not stopped (as in PLDM and VICReg)."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        def build(self, perception: nn.Module) -> Itself:
            return Itself()

    def forward(self, obs: Observation, features: Tensor, gains: Gains) -> Tensor:
        """Observations `[N, *O]` and their features `[N, D]` -> targets `[N, D]`."""
        return features

    def follow(self, perception: nn.Module) -> None:
        """Nothing lags behind."""


class Stopped(Itself):
    """The target is the state itself, and no gradient flows into it: the prediction alone moves
    (SimSiam, Chen & He 2021)."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        def build(self, perception: nn.Module) -> Stopped:
            return Stopped()

    def forward(self, obs: Observation, features: Tensor, gains: Gains) -> Tensor:
        return features.detach()


class MovingAverage(nn.Module):
    """The target is seen by an exponential moving average of the perception; no gradient flows
    into it (BYOL, Grill et al. 2020; I-JEPA, Assran et al. 2023)."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        decay: float = 0.99

        def __post_init__(self) -> None:
            require(self, decay=FRACTION)

        def build(self, perception: nn.Module) -> MovingAverage:
            return MovingAverage(perception, self.decay)

    def __init__(self, perception: nn.Module, decay: float) -> None:
        super().__init__()
        self.average = AveragedModel(perception, multi_avg_fn=get_ema_multi_avg_fn(decay))

    @torch.no_grad()
    def forward(self, obs: Observation, features: Tensor, gains: Gains) -> Tensor:
        return self.average(obs, gains)

    def follow(self, perception: nn.Module) -> None:
        """Takes one small step towards the perception; to be called after each update."""
        self.average.update_parameters(perception)


Target = Itself | MovingAverage | Stopped
