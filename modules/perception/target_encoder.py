"""Target encoders: the states that the world model is trained to predict, from the encoder itself
or from a slow copy of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from modules.types import FRACTION, ModalityWeights, Observation, Settings


@dataclass(frozen=True, kw_only=True)
class OnlineTargetConfig:
    """The target is the encoder's own state, with gradient (as in PLDM and VICReg)."""

    def build(self, perception: nn.Module) -> OnlineTarget:
        return OnlineTarget(stop_gradient=False)


@dataclass(frozen=True, kw_only=True)
class StopGradientTargetConfig:
    """The target is the encoder's own state, without gradient (SimSiam, Chen & He 2021)."""

    def build(self, perception: nn.Module) -> OnlineTarget:
        return OnlineTarget(stop_gradient=True)


class OnlineTarget(nn.Module):
    """The encoder's own state as the target."""

    def __init__(self, stop_gradient: bool) -> None:
        super().__init__()
        self.stop_gradient = stop_gradient

    def forward(
        self, obs: Observation, features: Tensor, modality_weights: ModalityWeights
    ) -> Tensor:
        """Observations `[N, *O]` and their features `[N, D]` -> targets `[N, D]`."""
        return features.detach() if self.stop_gradient else features

    def update(self) -> None:
        """There is no copy to update."""


@dataclass(frozen=True, kw_only=True)
class EMATargetConfig(Settings):
    decay: Annotated[float, FRACTION] = 0.99

    def build(self, perception: nn.Module) -> EMATarget:
        return EMATarget(perception, self.decay)


class EMATarget(nn.Module):
    """The target is the state of an exponential moving average of the encoder, without gradient
    (BYOL, Grill et al. 2020; I-JEPA, Assran et al. 2023)."""

    def __init__(self, perception: nn.Module, decay: float) -> None:
        super().__init__()
        self.average, self.decay = AveragedModel(perception), decay
        # `AveragedModel.update_parameters` takes most of its time to list them
        modules = (self.average.module, perception)
        self.parameters_of: list[list[Tensor]] = [list(module.parameters()) for module in modules]

    @torch.no_grad()
    def forward(
        self, obs: Observation, features: Tensor, modality_weights: ModalityWeights
    ) -> Tensor:
        return self.average(obs, modality_weights)

    @torch.no_grad()
    def update(self) -> None:
        """Moves the average towards the encoder; called after each gradient step. The first call
        makes them equal."""
        average, current = self.parameters_of
        if average:
            torch._foreach_lerp_(average, current, 1 - self.decay if self.average.n_averaged else 1)
        self.average.n_averaged += 1
