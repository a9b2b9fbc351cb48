"""Masked pretraining of perception: the features of hidden patches are predicted from the rest of
an image (I-JEPA, Assran et al. 2023), or of a few consecutive images (V-JEPA, Bardes et al. 2024).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from torch import Tensor, nn

from ami_agent.adapters.env import EnvConfig
from ami_agent.agent import Agent
from ami_agent.training import representation_losses
from ami_agent.training.base import SGDStage, SGDStageRun, StageRun, check_window
from ami_agent.training.distributed import split
from ami_agent.training.jepa import adapt_units
from ami_agent.training.masks import MaskConfig, Masks, draw_masks
from ami_agent.training.optim import OptimConfig
from ami_agent.training.precision import full
from ami_agent.training.representation_losses import directions
from modules.memory.replay_buffer import OBS_ONLY
from modules.perception.image import MaskableImage, select_patches
from modules.perception.masked_predictor import (
    FlowHead,
    MaskedPredictor,
    MaskedPredictorConfig,
    warp,
)
from modules.perception.target_encoder import (
    EMATarget,
    EMATargetConfig,
    OnlineTarget,
    OnlineTargetConfig,
    StopGradientTargetConfig,
)
from modules.types import (
    HORIZON,
    WEIGHT,
    ConfigError,
    Observation,
    as_dict,
    validate_ranges,
)

if TYPE_CHECKING:
    from ami_agent.config import Config

DRAWN_WINDOWS = 6


@dataclass(frozen=True, kw_only=True)
class MaskedLossWeights:
    """The weight of each term of masked pretraining; a term of weight 0 is left out."""

    prediction: float = 1.0
    """Squared error of the predicted features of hidden patches."""
    variance: float = 0.0
    """The standard deviation over the batch of each feature of each patch, and of a vector state,
    is at least 1 (VICReg)."""
    covariance: float = 0.0
    """Different features of a patch, and of a vector state, are uncorrelated (VICReg)."""
    sigreg: float = 0.0
    """Replaces variance and covariance: the features of a patch, and a vector state, have a
    standard normal distribution (SIGReg)."""
    flow: float = 0.0
    """Error of each frame, warped back by the motion that is read from the features of both frames,
    from the frame before it (MC-JEPA); needs num_frames of 2 or more."""
    flow_smoothness: float = 0.1
    """The motion of neighbouring pixels is equal; only with a weight of `flow`."""

    def __post_init__(self) -> None:
        validate_ranges(self, **dict.fromkeys(vars(self), WEIGHT))

    @property
    def needs_patches(self) -> bool:
        """Whether a term needs the features of whole images, beside the targets."""
        return bool(self.variance or self.covariance or self.sigreg or self.flow)


@dataclass(frozen=True, kw_only=True)
class PretrainMasked(SGDStage):
    """Trains perception alone, on recorded images: it predicts the features of hidden patches from
    what is left of an image (I-JEPA, V-JEPA)."""

    weights: MaskedLossWeights = field(
        default_factory=lambda: MaskedLossWeights(variance=2.0, covariance=1.0)
    )
    """I-JEPA has the prediction alone, with which the states of Two Rooms collapse."""
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(steps=1000, batch_size=64))
    masks: MaskConfig = field(default_factory=MaskConfig)
    num_frames: Annotated[int, HORIZON] = 1
    """T: consecutive images that are masked alike, in a tube over time (V-JEPA: 16)."""
    predictor: MaskedPredictorConfig = field(default_factory=MaskedPredictorConfig)
    target_encoder: EMATargetConfig | StopGradientTargetConfig | OnlineTargetConfig = field(
        default_factory=lambda: EMATargetConfig(decay=0.996, final_decay=1.0)
    )

    def check(self, config: Config, name: str) -> None:
        check_window(f"{name}.num_frames", self.num_frames, config.collect.steps)
        weights = self.weights
        if not (weights.prediction or weights.flow):
            raise ConfigError(
                f"{name}.weights.prediction and .flow are 0: one of them must not be, or nothing "
                "is learnt from the images"
            )
        if weights.flow and self.num_frames < 2:
            raise ConfigError(
                f"{name}.num_frames is {self.num_frames}; it must be at least 2 for the weight "
                f"{name}.weights.flow, which is about the motion between two frames"
            )
        is_online = isinstance(self.target_encoder, OnlineTargetConfig)
        if is_online and not (weights.variance or weights.sigreg):
            raise ConfigError(
                f"{name}.target_encoder OnlineTarget gives all images the same features unless "
                f"{name}.weights.variance or .sigreg is above 0"
            )

    def check_agent(self, agent: Agent, name: str) -> None:
        for image in _images(agent).values():
            try:
                self.masks.check(image.grid)
            except ConfigError as error:
                raise ConfigError(f"{name}.masks: {error}") from None

    def start(self, agent: Agent, env: EnvConfig, seed: int) -> StageRun:
        buffer, device, perception = agent.replay_buffer, agent.device, agent.perception
        adapt_units(agent, buffer)
        target_encoder = self.target_encoder.build(perception, self.optim.steps)
        images = _images(agent)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            losses = {
                name: MaskedImageLoss(self, image, target_encoder, name).to(device)
                for name, image in images.items()
            }
        window = max(1, self.num_frames - 1)

        def sample(count: int, generator: torch.Generator) -> dict[str, tuple[Tensor, Masks]]:
            """By modality: images `[N, T, C, S, S]` on the device, and their masks."""
            obs = buffer.sample(count, window, generator, parts=OBS_ONLY).obs
            return {
                name: (
                    _modality(obs, name)[:, : self.num_frames].to(device),
                    self.masks.sample(image.grid, count, generator),
                )
                for name, image in images.items()
            }

        def loss(generator: torch.Generator) -> dict[str, Tensor]:
            found: dict[str, Tensor] = {}
            for name, (frames, masks) in sample(self.optim.batch_size, generator).items():
                on_device = Masks(*(part.to(device) for part in masks))
                terms = losses[name](images[name], frames, on_device, generator)
                found = {n: term + found.get(n, 0) for n, term in terms.items()}
            return found

        heads = nn.ModuleList(losses.values())
        drawn = sample(DRAWN_WINDOWS, torch.Generator().manual_seed(seed))
        stage_run = MaskedRun(
            nn.ModuleList([perception, target_encoder, heads]), loss, self.optim,
            weights=asdict(self.weights), seed=seed, post_step=target_encoder.update,
        )  # fmt: skip
        stage_run.log_drawn_fraction(buffer, "perception", window)
        stage_run.drawn = {
            "-".join(filter(None, ["masks", name])): draw_masks(frames.cpu(), masks, images[name])
            for name, (frames, masks) in drawn.items()
        }
        return stage_run


class MaskedRun(SGDStageRun):
    """Masked pretraining while it runs."""

    drawn: Mapping[str, np.ndarray]

    @property
    def pictures(self) -> Mapping[str, np.ndarray]:
        """The masks of a few windows, for each modality."""
        return self.drawn


class MaskedImageLoss(nn.Module):
    """The terms of masked pretraining of one image, and the networks that they need beside the
    encoder."""

    def __init__(
        self, stage: PretrainMasked, image: MaskableImage,
        target_encoder: EMATarget | OnlineTarget, name: str,
    ) -> None:  # fmt: skip
        """`name`: the modality, by which the image of a copied encoder is found."""
        super().__init__()
        self.weights = stage.weights
        self.predictor: MaskedPredictor = stage.predictor.build(image, stage.num_frames)
        self.flow_head = FlowHead((image.patch_dim, *image.grid)) if stage.weights.flow else None
        self.copy: MaskableImage | None = None
        if isinstance(target_encoder, EMATarget):
            copied: Any = target_encoder.average.module
            self.copy = copied.maskable_images()[name]
        self.stop_gradient = self.copy is not None or target_encoder.stop_gradient

    def forward(
        self, image: MaskableImage, frames: Tensor, masks: Masks, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """The terms by name, of images `[N, T, C, S, S]`.

        prediction: 1/M sum_i 1/|B_i| sum_(j in B_i) |s'_j - s_j|^2 / F over the blocks B_i of each
        image, s' predicted and s target features (I-JEPA, Assran et al. 2023). Targets without
        gradient are normalised, each by a LayerNorm without weights: features of a smaller scale
        would lower the error.

        variance, covariance, sigreg: of the features of every patch of whole images and, where the
        state is a vector, of the state of what is visible."""

        def compute(frames: Tensor, shown: Tensor, hidden: Tensor) -> tuple[Tensor, ...]:
            return self._compute(image, frames, shown, hidden)

        error, patches, context = split(compute, frames, masks.context, masks.targets)
        weights = self.weights
        # each [N T, L, F]
        samples = [patches, context] if image.has_vector_state else [patches]
        regularizers: dict[str, Callable[[Tensor], Tensor]] = {
            "variance": lambda part: representation_losses.variance(part.flatten(1)),
            "covariance": lambda part: representation_losses.covariance(part.flatten(0, 1)),
            "sigreg": lambda part: representation_losses.sigreg(
                part.flatten(0, 1), directions(part.shape[2], generator).to(part)
            ),
        }
        terms = {
            name: torch.stack([term(part.flatten(0, 1)) for part in samples]).mean()
            for name, term in regularizers.items()
            if getattr(weights, name)
        }
        if weights.prediction:
            terms["prediction"] = error.mean()
        return terms | (self._flow_terms(frames, patches) if self.flow_head else {})

    def _compute(
        self, image: MaskableImage, frames: Tensor, shown: Tensor, hidden: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The error of each frame `[N, T]`, the features of whole images `[N, T, L, F]`, with L = 0
        where no term needs them, and the tokens of the context `[N, T, K, F']`."""
        num_frames, flat = frames.shape[1], frames.flatten(0, 1)

        def by_frame(part: Tensor) -> Tensor:
            return full(part).unflatten(0, (-1, num_frames))

        context = by_frame(image.encode_context(flat, shown.repeat_interleave(num_frames, 0)))
        if self.weights.needs_patches or self.copy is None:
            patches = by_frame(image.encode_patches(flat))
        else:
            patches = context[:, :, :0]
        targets = patches
        if self.copy is not None:
            with torch.no_grad():
                targets = by_frame(self.copy.encode_patches(flat))
        if self.stop_gradient:
            targets = nn.functional.layer_norm(targets.detach(), targets.shape[-1:])
        predicted = full(self.predictor(context, shown, hidden)).transpose(1, 2)
        blocks = hidden.flatten(1).repeat_interleave(num_frames, 0)  # [N T, M K']
        chosen = by_frame(select_patches(targets.flatten(0, 1), blocks))
        chosen = chosen.unflatten(2, hidden.shape[1:])  # [N, T, M, K', F]
        return (predicted - chosen).square().mean((2, 3, 4)), patches, context

    def _flow_terms(self, frames: Tensor, patches: Tensor) -> dict[str, Tensor]:
        """MC-JEPA's terms, of every two consecutive frames."""
        assert self.flow_head is not None
        pixels = frames if frames.is_floating_point() else frames / 255
        before, after = patches[:, :-1].flatten(0, 1), patches[:, 1:].flatten(0, 1)
        flow = full(self.flow_head(before, after, (pixels.shape[3], pixels.shape[4])))
        warped = warp(pixels[:, 1:].flatten(0, 1), flow)
        terms = {"flow": representation_losses.photometric(warped, pixels[:, :-1].flatten(0, 1))}
        if self.weights.flow_smoothness:
            terms["flow_smoothness"] = representation_losses.flow_smoothness(flow)
        return terms


def _images(agent: Agent) -> Mapping[str, MaskableImage]:
    """The images that perception learns from, by modality: those whose weight is not 0. ConfigError
    where there is none."""
    weights = agent.configurator.default_modality_weights
    found = agent.perception.maskable_images()  # type: ignore[operator]
    images = {name: image for name, image in found.items() if not name or weights.get(name, 1)}
    if not images:
        shapes = agent.spec.describe_obs()
        raise ConfigError(
            f"the stage PretrainMasked hides patches of images, and perception "
            f"{type(agent.perception).__name__} has none to hide in observations {shapes}: use "
            "PatchTransformerEncoder, SpatialEncoder, ImageEncoder or, with an image among the "
            "observations, MultiModalEncoder"
        )
    return images


def _modality(obs: Observation, name: str) -> Tensor:
    parts = as_dict(obs)
    return parts[name] if name else next(iter(parts.values()))
