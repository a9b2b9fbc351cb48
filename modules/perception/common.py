"""What encoders share: which observations are images, gains, and the first layer over patches."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from modules.types import Observation, Shape, UnusableInput

Shapes = Mapping[str, tuple[int, ...]]
"""What each sense delivers, by name."""


def image_of(shapes: Shapes, patch: int) -> Shape:
    """The shape of the one image there is; raises UnusableInput for anything else."""
    found = [shape for shape in shapes.values() if _is_image(shape, patch)]
    if len(shapes) != 1 or not found:
        raise UnusableInput(
            f"observations of shape {_told(shapes)} are no images [channels, height, width] "
            f"of at least {patch} by {patch} pixels, which this perception needs"
        )
    return found[0]  # type: ignore[return-value]


def _is_image(shape: tuple[int, ...], patch: int) -> bool:
    return len(shape) == 3 and min(shape[1:]) >= patch


def _told(shapes: Shapes) -> str:
    return " ".join(str(s) if n == "obs" else f"{n} {s}" for n, s in shapes.items())


def amplify(part: Tensor, gain: float | Tensor) -> Tensor:
    """`[B, ...]` times its gain, one number or `[B]`."""
    if isinstance(gain, Tensor):
        return part * gain.reshape(-1, *[1] * (part.ndim - 1))
    return part if gain == 1 else part * gain


class Encoder(nn.Module):
    """Observations `[B, *O]` -> states `[B, D]`; D folds into `shape`."""

    shape: Shape

    def adapt(self, obs: Observation) -> None:
        """Takes observations `[N, *O]` as the unit of what is seen; most need none."""


class Patches(nn.Module):
    """The first layer of both: every patch of `[N, C, S, S]` uint8 pixels by itself -> `[N, C', h,
    w]`. A matrix product over bytes rearranged is several times faster than a strided convolution,
    and pixels beyond the last whole patch are not seen, as in a vision transformer."""

    def __init__(self, channels: int, patch: int, width: int) -> None:
        super().__init__()
        self.patch = patch
        self.project = nn.Linear(channels * patch * patch, width)

    def forward(self, obs: Tensor) -> Tensor:
        size = self.patch
        pieces = obs.unfold(2, size, size).unfold(3, size, size)  # [N, C, h, w, p, p]
        pieces = pieces.permute(0, 2, 3, 1, 4, 5).flatten(3)  # [N, h, w, C p p], still bytes
        weight = self.project.weight
        return nn.functional.linear(
            pieces.to(weight.dtype), weight / 255, self.project.bias
        ).permute(0, 3, 1, 2)
