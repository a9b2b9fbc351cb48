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

    def build(self, perception: nn.Module, steps: int = 1) -> OnlineTarget:
        return OnlineTarget(stop_gradient=False)


@dataclass(frozen=True, kw_only=True)
class StopGradientTargetConfig:
    """The target is the encoder's own state, without gradient (SimSiam, Chen & He 2021)."""

    def build(self, perception: nn.Module, steps: int = 1) -> OnlineTarget:
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
    final_decay: Annotated[float | None, FRACTION] = None
    """Decay at the end of the stage, which is reached linearly (I-JEPA: from 0.996 to 1); None:
    `decay` throughout."""

    def build(self, perception: nn.Module, steps: int = 1) -> EMATarget:
        """`steps`: updates of the stage."""
        return EMATarget(perception, self.decay, self.final_decay, steps)


class EMATarget(nn.Module):
    """The target is the state of an exponential moving average of the encoder, without gradient
    (BYOL, Grill et al. 2020; I-JEPA, Assran et al. 2023)."""

    def __init__(
        self, perception: nn.Module, decay: float, final_decay: float | None = None, steps: int = 1
    ) -> None:
        """`final_decay`: the decay after `steps` updates, reached linearly; None: `decay`."""
        super().__init__()
        self.average, self.decay, self.steps = AveragedModel(perception), decay, steps
        self.final_decay = decay if final_decay is None else final_decay
        # `AveragedModel.update_parameters` takes most of its time to list them
        modules = (self.average.module, perception)
        self.parameters_of: list[list[Tensor]] = [list(module.parameters()) for module in modules]

    @torch.no_grad()
    def forward(
        self, obs: Observation, features: Tensor, modality_weights: ModalityWeights
    ) -> Tensor:
        return self.average(obs, modality_weights)

    def decay_at(self, step: int) -> float:
        """The decay of update `step`, counted from 0; the first update makes a copy, decay 0."""
        if not step:
            return 0.0
        progress = min(1.0, step / max(1, self.steps - 1))
        return self.decay + (self.final_decay - self.decay) * progress

    @torch.no_grad()
    def update(self) -> None:
        """Moves the average towards the encoder; called after each gradient step. The first call
        makes them equal."""
        average, current = self.parameters_of
        if average:
            torch._foreach_lerp_(average, current, 1 - self.decay_at(int(self.average.n_averaged)))
        self.average.n_averaged += 1
