"""What the world model is asked to predict: the state as it is seen, or as a slow copy sees it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from modules.types import FRACTION, ModalityWeights, Observation, validate_ranges


@dataclass(frozen=True, kw_only=True)
class OnlineTargetConfig:
    def build(self, perception: nn.Module) -> OnlineTarget:
        return OnlineTarget()


class OnlineTarget(nn.Module):
    """The target is the state itself; its gradient is not stopped (as in PLDM and VICReg)."""

    def forward(
        self, obs: Observation, features: Tensor, modality_weights: ModalityWeights
    ) -> Tensor:
        """Observations `[N, *O]` and their features `[N, D]` -> targets `[N, D]`."""
        return features

    def update(self, perception: nn.Module) -> None:
        """Nothing lags behind."""


@dataclass(frozen=True, kw_only=True)
class StopGradientTargetConfig:
    def build(self, perception: nn.Module) -> StopGradientTarget:
        return StopGradientTarget()


class StopGradientTarget(OnlineTarget):
    """The target is the state itself, and no gradient flows into it: the prediction alone moves
    (SimSiam, Chen & He 2021)."""

    def forward(
        self, obs: Observation, features: Tensor, modality_weights: ModalityWeights
    ) -> Tensor:
        return features.detach()


@dataclass(frozen=True, kw_only=True)
class EMATargetConfig:
    decay: float = 0.99

    def __post_init__(self) -> None:
        validate_ranges(self, decay=FRACTION)

    def build(self, perception: nn.Module) -> EMATarget:
        return EMATarget(perception, self.decay)


class EMATarget(nn.Module):
    """The target is seen by an exponential moving average of the perception; no gradient flows
    into it (BYOL, Grill et al. 2020; I-JEPA, Assran et al. 2023)."""

    def __init__(self, perception: nn.Module, decay: float) -> None:
        super().__init__()
        self.average = AveragedModel(perception, multi_avg_fn=get_ema_multi_avg_fn(decay))

    @torch.no_grad()
    def forward(
        self, obs: Observation, features: Tensor, modality_weights: ModalityWeights
    ) -> Tensor:
        return self.average(obs, modality_weights)

    def update(self, perception: nn.Module) -> None:
        """Takes one small step towards the perception; to be called after each update."""
        self.average.update_parameters(perception)


TargetEncoder = OnlineTarget | EMATarget | StopGradientTarget
