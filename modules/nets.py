"""Networks that several modules share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import isqrt, prod
from typing import Annotated, Any, Generic, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from modules.types import WIDTH, ConfigError, MapShape, Settings


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # what is kept may be used outside
def _empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=device)


def no_numbers(like: Tensor, *shape: int) -> Tensor:
    """A tensor of this shape, which holds no number, of the type and device of `like`; one tensor
    for all of this shape."""
    return _empty(shape, like.dtype, like.device)


def version(tensor: Tensor) -> Any:
    """Differs once the tensor is changed in place; of a tensor of inference mode, which does not
    count, it always does."""
    return object() if tensor.is_inference() else tensor._version


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # what is kept may be used outside
def row_numbers(count: int, device: torch.device) -> Tensor:
    """0 .. count - 1, to be read only; one tensor for all of this length."""
    return torch.arange(count, device=device)


def own_weights(*layers: nn.Module) -> list[Tensor]:
    """The weights of these layers, in their order."""
    # the dict itself: `parameters()` takes longer than an operation
    return [part for layer in layers for part in layer._parameters.values() if part is not None]


class _Tracing(threading.local):
    active = False


tracing = _Tracing()
"""Whether this thread traces a function, to compile it: what is prepared from weights, or kept from
call to call, must then be computed, so that the compiled function computes it too."""

Value = TypeVar("Value")


class DerivedFromWeights(Generic[Value]):
    """What is computed from weights alone, kept until a weight changes. Nothing is computed for
    weights that take a gradient: a fused optimizer changes them without counting up their
    version, and a gradient would be missing."""

    def __init__(self) -> None:
        # one value, so that threads may share it
        self.kept: tuple[Any, Value | None, list[Tensor]] = None, None, []

    def get(self, weights: Sequence[Tensor], make: Callable[[], Value]) -> Value | None:
        """`make()` of the weights as they are; None if a weight takes a gradient, or a function is
        being traced."""
        if tracing.active or any(
            weight.requires_grad or weight.is_inference() for weight in weights
        ):
            return None
        key = [(weight.data_ptr(), weight._version) for weight in weights]
        kept = self.kept
        if key != kept[0]:
            with torch.inference_mode(False), torch.no_grad():
                # the weights too, so that no others come to lie in their place
                kept = self.kept = key, make(), [weight.detach() for weight in weights]
        return kept[1]

    def __deepcopy__(self, memo: Any) -> DerivedFromWeights[Value]:
        return type(self)()

    def __reduce__(self) -> Any:
        return type(self), ()


Pullback: TypeAlias = Callable[[Tensor], tuple[Tensor | None, ...]]
"""The gradient with respect to a function's output -> those with respect to its inputs."""


class ByHand(torch.autograd.Function):
    """`function(*inputs)` -> its output and its pullback, which is written by hand and takes fewer
    operations than autograd's: as a function that autograd differentiates, once."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., tuple[Tensor, Pullback]], *inputs: Any) -> Tensor:
        ctx.save_for_backward(*inputs)  # so that autograd notices if one is changed in place
        output, ctx.pullback = function(*inputs)
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = ctx.saved_tensors
        return None, *ctx.pullback(grad)


PathEnergy: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Callable[[float], Tensor]]]
"""Imagined states `[H, B, P, D]`, time first as they lie in memory; goals `[B, D]` or `[1, D]` ->
an energy `[B, P]`, and its gradient with respect to the states as a function of its weight."""


def differentiable(energy: PathEnergy, states: Tensor, goal: Tensor) -> Tensor:
    """The energy of states `[B, P, H + 1, D]` after the first, for autograd."""
    if not (states.requires_grad and torch.is_grad_enabled()):
        return energy(after_first(states), goal)[0]

    def function(states: Tensor) -> tuple[Tensor, Pullback]:
        value, slope = energy(states, goal)
        return value, lambda grad: (slope(1) * grad[..., None],)

    return ByHand.apply(function, after_first(states))


def after_first(states: Tensor) -> Tensor:
    """`[B, P, H + 1, D]` -> the states after the first, time first, `[H, B, P, D]`."""
    return states.permute(2, 0, 1, 3)[1:]


def silu_mlp(size: int, hidden: int, out: int) -> nn.Sequential:
    """`[..., size]` -> two hidden layers -> `[..., out]`"""
    return nn.Sequential(
        nn.Linear(size, hidden),
        nn.SiLU(),
        nn.Linear(hidden, hidden),
        nn.SiLU(),
        nn.Linear(hidden, out),
    )


def check_goal_dims(goal_dims: int, shape: MapShape) -> int:
    """Returns `goal_dims`; raises ConfigError if a state has fewer numbers."""
    if goal_dims > prod(shape):
        raise ConfigError(f"goal_dims is {goal_dims}, but a state has {prod(shape)} numbers")
    return goal_dims


class MLPConstants:
    """A `silu_mlp` whose weights take no gradient, `[N, size]` -> `[N, out]`, and the gradient with
    respect to its input alone: for planners, whose time goes into the number of operations."""

    def __init__(self, *weights: Tensor) -> None:
        """Weight and bias of each of the three layers."""
        self.weights, self.biases = weights[::2], weights[1::2]
        self.transposed = [weight.t().contiguous() for weight in self.weights]
        self.last_input: tuple[Any, int, Any] = (None, 0, None)  # its version, its output

    @staticmethod
    def weights_of(layers: nn.Module) -> list[Tensor] | None:
        """None for layers that are no `silu_mlp`."""
        if not isinstance(layers, nn.Sequential):
            return None
        if [type(layer) for layer in layers] != [nn.Linear, nn.SiLU] * 2 + [nn.Linear]:
            return None
        return own_weights(*layers)

    def forward(self, inputs: Tensor, first_bias: Tensor | None = None) -> tuple[Tensor, ...]:
        """The numbers before both activations, and the output. `first_bias` `[N, hidden]`: another
        bias of the first layer."""
        silu, bias = nn.functional.silu, self.biases[0] if first_bias is None else first_bias
        first = torch.addmm(bias, inputs, self.transposed[0])
        second = torch.addmm(self.biases[1], silu(first), self.transposed[1])
        return first, second, torch.addmm(self.biases[2], silu(second), self.transposed[2])

    def gradient(self, grad: Tensor, *inner: Tensor, scale: float = 1) -> Tensor:
        """The gradient of the output -> that of the input, times `scale`. `inner`: the numbers
        before the activations."""
        silu_backward, (first, second) = torch.ops.aten.silu_backward, inner
        grad_second = torch.addmm(second, grad, self.weights[2], beta=0, alpha=scale)
        grad = silu_backward(grad_second, second)
        return silu_backward(grad @ self.weights[1], first) @ self.weights[0]


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # what is kept may be used outside
def _neighbours(
    maps: int, height: int, width: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Of the rows `[cells * 9, C]`, the products of each cell with 9 taps: those that a cell of the
    convolution adds up, one cell after the other, and where each cell's begin. Then the cells that
    each cell's 9 taps multiply, `[cells * 9]`, one more than there are for those beyond the
    edge."""
    count = maps * height * width
    cells = torch.arange(count).view(maps, height, width)
    padded = nn.functional.pad(cells, (1, 1, 1, 1), value=count)
    around = padded.unfold(1, 3, 1).unfold(2, 3, 1).reshape(-1, 9)
    rows, is_cell = 9 * around + torch.arange(9), around < count
    starts = nn.functional.pad(is_cell.sum(1).cumsum(0), (1, -1))
    return rows[is_cell].to(device), starts.to(device), around.flatten().to(device)


class MapConvolution:
    """A convolution 3x3 with padding 1 and without bias whose kernel takes no gradient, on maps
    `[N * h * w, C]`. On small maps it takes less than half the time of `conv2d`. With fewer inputs
    than outputs it is one product of the taps with the 9 cells around each cell; otherwise one
    product of each cell with all taps, of which each cell adds up those of its neighbours."""

    def __init__(self, kernel: Tensor, size: tuple[int, int]) -> None:
        """`[out, in, 3, 3]`, height and width of the maps."""
        self.size, (num_out, num_in, *_) = size, kernel.shape
        self.gathers = num_in < num_out
        if self.gathers:
            self.taps = kernel.permute(2, 3, 1, 0).flatten(0, 2).contiguous()  # [9 in, out]
        else:
            self.taps = kernel.permute(1, 2, 3, 0).flatten(1).contiguous()  # [in, 9 out]

    @classmethod
    def with_pullback(
        cls, kernel: Tensor, size: tuple[int, int]
    ) -> tuple[MapConvolution, MapConvolution]:
        """The convolution, and the one that maps the gradient of its output to that of its
        input."""
        return cls(kernel, size), cls(kernel.flip(2, 3).transpose(0, 1), size)

    def __call__(self, cells: Tensor, padded: Tensor | None = None) -> Tensor:
        """`[N * h * w, in]` -> `[N * h * w, out]`. `padded`: the same cells and a row of zeros,
        where there are such, which saves a copy."""
        taps = self.taps
        key = cells.shape[0], taps.shape[not self.gathers], self.size, taps.dtype, taps.device
        parts = _memory.parts.get(key) or _parts(*key)
        if len(parts) == 1:
            return self._convolve(cells, padded, *parts[0][1:])
        return torch.cat([self._convolve(cells[part[0]], None, *part[1:]) for part in parts])

    def _convolve(
        self, cells: Tensor, padded: Tensor | None, memory: Tensor, by_tap: Tensor,
        neighbours: tuple[Tensor, ...],
    ) -> Tensor:  # fmt: skip
        rows, starts, around = neighbours
        if self.gathers:
            if padded is None:
                padded = nn.functional.pad(cells, (0, 0, 0, 1))
            torch.index_select(padded, 0, around, out=by_tap)
            return memory @ self.taps
        torch.mm(cells, self.taps, out=memory)
        return torch.embedding_bag(by_tap, rows, starts)[0]


MAX_PRODUCTS = 2**19
"""Numbers that a `MapConvolution` computes at once."""

_Part: TypeAlias = tuple[slice, Tensor, Tensor, tuple[Tensor, ...]]


class _Memory(threading.local):
    """What all calls of a thread overwrite: new memory takes more time than the products."""

    def __init__(self) -> None:
        self.products: dict[Any, Tensor] = {}  # by type and device
        self.parts: dict[Any, list[_Part]] = {}


_memory = _Memory()


def _parts(
    cells: int, numbers: int, size: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> list[_Part]:
    """For so many cells, a few maps at once: which cells, memory for so many numbers of each, its
    rows by tap, and `_neighbours`."""
    per_map, memory = prod(size), _memory.products.get((dtype, device))
    at_once = min(cells, per_map * max(1, MAX_PRODUCTS // (per_map * numbers)))
    if len(_memory.parts) > 64 or memory is None or len(memory) < at_once * numbers:
        _memory.parts.clear()
        with torch.inference_mode(False):  # its tensors can't be overwritten outside
            memory = torch.empty(max(MAX_PRODUCTS, at_once * numbers), dtype=dtype, device=device)
        _memory.products[dtype, device] = memory
    parts: list[_Part] = []
    for start in range(0, cells, at_once):
        count = min(at_once, cells - start)
        numbers_of_part = memory[: count * numbers].view(count, numbers)
        neighbours = _neighbours(count // per_map, *size, device)
        by_tap = numbers_of_part.view(9 * count, -1)
        parts.append((slice(start, start + count), numbers_of_part, by_tap, neighbours))
    _memory.parts[cells, numbers, size, dtype, device] = parts
    return parts


def to_cells(maps: Tensor, channels: int) -> Tensor:
    """Flat maps `[..., C h w]` -> their cells `[..., h w, C]`; a view."""
    return maps.unflatten(-1, (channels, -1)).mT


class TakeFirst(nn.Module):
    """`[..., D]` -> the first `count` numbers, `[..., count]`."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, state: Tensor) -> Tensor:
        return state[..., : self.count]


def mean_and_std(values: Tensor) -> tuple[Tensor, Tensor]:
    """`[M, N]` -> mean and standard deviation of each column, `[N]` float64. The standard deviation
    is 0 where a column varies by no more than its rounding error."""
    if not values.is_floating_point():
        values = values.double()
    exact, mean, std = values.double(), values.mean(0).double(), values.std(0).double()
    in_range = (std > 1e-15) & (std < 1e15)  # beyond, squares leave the range of float32
    mean = torch.where(in_range, mean, exact.mean(0))
    std = torch.where(in_range, std, exact.std(0))
    rounding = 4 * torch.finfo(values.dtype).eps * exact.abs().amax(0)
    return mean, torch.where(std > rounding, std, 0.0)


OUTLIER_FACTOR = 100.0
"""A scale is outdated for data that deviate from the mean by more than this many scales, or never
by more than 1 / this many."""
LARGE_MEAN_FACTOR = 10.0
"""A mean of more than this many standard deviations is subtracted; otherwise it would dominate."""


def updated_scale(
    max_deviation: Tensor, std: Tensor, scale: Tensor, was_constant: Tensor
) -> Tensor:
    """New scales `[N]` for data with these largest deviations from the mean and standard
    deviations: `scale`, unless it is outdated. Columns that were constant when `scale` was set
    (`was_constant`) take the largest deviation, so that a rare reward becomes about 1."""
    has_left = (std > 0) & (
        (max_deviation > OUTLIER_FACTOR * scale) | (max_deviation < scale / OUTLIER_FACTOR)
    )
    unit = torch.where(
        was_constant, max_deviation, torch.maximum(std, max_deviation / LARGE_MEAN_FACTOR)
    )
    return torch.where(has_left, unit, scale)


class StandardizedHead(nn.Module):
    """Layers that predict `[..., N]` standardized numbers, and the mean and scale (the unit) of
    each."""

    mean: Tensor
    scale: Tensor
    offset: Tensor  # [N] float64: subtracted from the targets before they are cast to float32

    CONSTANT_UNIT = 1.0
    """The scale of a target that never varied, relative to its absolute value."""

    def __init__(self, layers: nn.Module, size: int) -> None:
        super().__init__()
        self.layers = layers
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))
        self.register_buffer("offset", torch.zeros(size, dtype=torch.float64))

    def adapt(self, targets: Tensor, centred: Tensor | None = None) -> None:
        """Takes mean and scale from the targets `[M, N]`. The scale of a constant target is its
        absolute value, or 1 where it is 0, since it may vary later. Where `centred` `[N]` bool
        allows it, a mean much larger than the standard deviation becomes the offset."""
        self.offset.zero_()
        if centred is not None:
            mean, std = mean_and_std(targets.double())
            self.offset.copy_(torch.where(centred & _is_large_mean(mean, std), mean, 0.0))
        mean, std = mean_and_std(self.subtract_offset(targets))
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(std > 0, std, self._constant_units()))

    def subtract_offset(self, targets: Tensor) -> Tensor:
        """Targets `[..., N]` of any precision -> what the head is trained on: less the offset."""
        return (targets.double() - self.offset).to(self.mean.dtype)

    def update_units(self, targets: Tensor, centred: Tensor) -> Tensor:
        """Takes new scales where those of the targets `[M, N]` are outdated. Where a scale grows,
        the layers are rescaled so that predictions stay the same (PopArt, van Hasselt et al. 2016).
        Returns the factor by which each scale has grown, `[N]`."""
        targets = targets.double()
        mean, std = mean_and_std(targets)
        was_constant = (self.scale == self._constant_units()) | (self.scale == 0)
        needs_offset = centred & (self.offset == 0) & _is_large_mean(mean, std)
        constant = torch.where(was_constant, self.mean.double(), mean)
        offset = torch.where(needs_offset, constant, self.offset)
        center = torch.where(needs_offset, 0.0, self.mean)
        max_deviation = (targets - offset - center.double()).abs().amax(0)
        # with the mean subtracted the old scale is too coarse; 0 makes it outdated
        previous_scale = torch.where(needs_offset, 0.0, self.scale.double())
        unit = updated_scale(max_deviation, std, previous_scale, was_constant).to(self.scale.dtype)
        self.offset.copy_(offset)
        self.mean.copy_(center)
        unit = torch.where((std == 0) & ~centred & self.offset.any(), 0.0, unit)
        growth = torch.where((unit > 0) & (self.scale > 0), unit / self.scale, 1.0)
        self.scale.copy_(unit)
        self.rescale(growth)
        return growth

    def has_outliers(self, targets: Tensor) -> Tensor:
        """Whether any target `[M, N]` is more than OUTLIER_FACTOR scales from the mean."""
        deviation = (self.subtract_offset(targets) - self.mean).abs()
        return (deviation > OUTLIER_FACTOR * self.scale).any()

    def rescale(self, growth: Tensor) -> None:
        """Divides the outputs of the layers by the factors `[N]` by which the scales have grown.
        Where a scale shrinks they stay: outputs that were negligible in a scale that was too large
        remain negligible."""
        heads = self.layers if isinstance(self.layers, EnsembleHead) else [self.layers]
        with torch.no_grad():
            for head in heads:
                last = [layer for layer in head.modules() if isinstance(layer, nn.Linear)][-1]
                last.weight.div_(growth.clamp_min(1)[:, None])
                last.bias.div_(growth.clamp_min(1))

    def error_scale(self) -> Tensor:
        """The unit of errors, `[N]`; 1 where the scale is 0, whose predictions are exact."""
        return torch.where(self.scale > 0, self.scale, 1.0)

    def _constant_units(self) -> Tensor:
        """The scales of constant targets, `[N]`. If any target has an offset they are 0: the end of
        an episode then costs the discounted sum of the offset, so a small error of the predicted
        continuation, which was always 1, would dominate every other cost."""
        size = torch.where(self.mean == 0, 1.0, self.CONSTANT_UNIT * self.mean.abs())
        return torch.where(self.offset.any(), 0.0, size)

    def forward(self, state: Tensor) -> Tensor:
        """`[..., D]` -> `[..., N]`"""
        return self.mean + self.scale * self.layers(state)


def _is_large_mean(mean: Tensor, std: Tensor) -> Tensor:
    return (std > 0) & (mean.abs() > LARGE_MEAN_FACTOR * std)


def relu_mlp(size: int, hidden: int, out: int, norm: bool = False) -> nn.Sequential:
    """`[..., size]` -> three hidden ReLU layers -> `[..., out]`: for functions that change within a
    small part of the state space, which smooth layers are slow to learn. `norm`: with
    LayerNorm."""
    layers: list[nn.Module] = []
    for width in (size, hidden, hidden):
        norm_layers = [nn.LayerNorm(hidden)] if norm else []
        layers += [nn.Linear(width, hidden), *norm_layers, nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(hidden, out))


class EnsembleHead(nn.ModuleList):
    """K networks that predict the same targets, `[..., D]` -> `[K, ..., N]`."""

    def forward(self, state: Tensor) -> Tensor:
        return torch.stack([member(state) for member in self])


class FourierFeatures(nn.Module):
    """Numbers `[..., N]` -> the numbers, and sines and cosines of them at W random frequencies,
    `[..., N + 2 W]`: small differences of the input become large ones, which an MLP alone is slow
    to learn (Fourier features, Tancik et al. 2020)."""

    frequencies: Tensor

    def __init__(self, size: int, num_frequencies: int, frequency_scale: float) -> None:
        super().__init__()
        self.out = size + 2 * num_frequencies
        self.register_buffer("frequencies", frequency_scale * torch.randn(size, num_frequencies))

    def forward(self, values: Tensor) -> Tensor:
        values = values.to(self.frequencies.dtype)
        phase = values @ self.frequencies
        return torch.cat([values, phase.sin(), phase.cos()], -1)


def fourier_linear(
    size: int, num_frequencies: int, frequency_scale: float, out: int
) -> nn.Sequential:
    """`[..., size]` -> a linear layer on Fourier features, `[..., out]`"""
    features = FourierFeatures(size, num_frequencies, frequency_scale)
    return nn.Sequential(features, nn.Linear(features.out, out))


class ConvHead(nn.Module):
    """Flat states `[..., D]`, folded into maps -> two convolutions and an MLP -> `[..., out]`."""

    def __init__(self, shape: MapShape, channels: int, hidden: int, out: int) -> None:
        super().__init__()
        self.shape = shape
        self.layers = nn.Sequential(
            nn.Unflatten(-1, shape),
            nn.Conv2d(shape[0], channels, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.SiLU(),
            nn.Flatten(),
            silu_mlp(channels * shape[1] * shape[2], hidden, out),
        )
        self.weighted = tuple(layer for layer in self.modules() if layer._parameters)

    def forward(self, state: Tensor) -> Tensor:
        return self.layers(state.flatten(0, -2)).unflatten(0, state.shape[:-1])


class ConvHeadConstants(MLPConstants):
    """A `ConvHead` whose weights take no gradient, as `MLPConstants`."""

    def __init__(self, shape: MapShape, *weights: Tensor) -> None:
        """Weight and bias of both convolutions, then of the MLP."""
        self.channels, self.conv_biases = shape[0], weights[1:4:2]
        both = (MapConvolution.with_pullback(weight, shape[1:]) for weight in weights[0:4:2])
        self.convolutions, self.pullbacks = zip(*both, strict=True)
        by_cell = to_cells(weights[4], len(weights[2])).flatten(1)
        super().__init__(by_cell, *weights[5:])

    @staticmethod
    def weights_of(layers: nn.Module) -> list[Tensor]:
        assert isinstance(layers, ConvHead)
        return own_weights(*layers.weighted)

    def forward(self, inputs: Tensor, first_bias: Tensor | None = None) -> tuple[Tensor, ...]:
        """The numbers before all four activations, and the output."""
        silu, cells = nn.functional.silu, to_cells(inputs, self.channels)
        cells = cells.reshape(-1, self.channels)
        one = self.convolutions[0](cells).add_(self.conv_biases[0])
        two = self.convolutions[1](silu(one)).add_(self.conv_biases[1])
        return one, two, *super().forward(silu(two).view(len(inputs), -1), first_bias)

    def gradient(self, grad: Tensor, *inner: Tensor, scale: float = 1) -> Tensor:
        silu_backward, (one, two, *rest) = torch.ops.aten.silu_backward.grad_input, inner
        grad_two = super().gradient(grad, *rest, scale=scale).view_as(two)
        grad_one = self.pullbacks[1](silu_backward(grad_two, two, grad_input=grad_two))
        grad_cells = self.pullbacks[0](silu_backward(grad_one, one, grad_input=grad_one))
        return grad_cells.view(len(grad), -1, self.channels).mT.flatten(1)


POSITION_SCALE = 2.0
"""Factor on keypoint positions, which lie from -1 to 1: with it they vary by about 1, as the other
numbers of a state do."""


@dataclass(frozen=True, kw_only=True)
class GlimpseConfig(Settings):
    points: Annotated[int, WIDTH] = 1
    """Keypoints in the state."""
    channels: Annotated[int, WIDTH] = 4
    """Channels C of the feature map in the state."""
    radius: Annotated[int, (0, 1000)] = 2
    """Cells of the map that the glimpse covers to every side of a keypoint."""

    def build(self, shape: MapShape) -> Glimpse:
        side = isqrt(max(0, prod(shape) - 4 * self.points) // self.channels)
        if side < 2 or 4 * self.points + self.channels * side**2 != prod(shape):
            raise ConfigError(
                f"a state of {prod(shape)} numbers does not hold {self.points} points and a map of "
                f"{self.channels} channels; perception must be a KeypointMapEncoder with as many"
            )
        return Glimpse(self, side)


class Glimpse(nn.Module):
    """Keypoints and the part of a feature map around each. The state `[..., D]` is that of a
    `KeypointMapEncoder`: x and y of each keypoint, their motion, then the map `[C, S, S]` of the
    static scene. Relative to a keypoint, a wall looks the same wherever it stands (a glimpse, Mnih
    et al. 2014; sampled bilinearly, as in spatial transformers, Jaderberg et al. 2015)."""

    offsets: Tensor

    def __init__(self, config: GlimpseConfig, side: int) -> None:
        super().__init__()
        self.map_shape, self.moving_dims = (config.channels, side, side), 4 * config.points
        steps = torch.arange(-config.radius, config.radius + 1) * (2 / (side - 1))
        grid = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1)
        self.register_buffer("offsets", grid.flatten(0, 1))  # [R, 2], in half widths of the map
        self.out = self.moving_dims + config.points * config.channels * len(self.offsets)

    def forward(self, state: Tensor) -> Tensor:
        """`[..., D]` -> `[..., out]`, the keypoints and their motion first"""
        flat = state.flatten(0, -2)
        moving, static = flat.split([self.moving_dims, flat.shape[-1] - self.moving_dims], -1)
        position = moving[:, : self.moving_dims // 2].unflatten(-1, (2, -1)).mT  # [N, K, 2]
        glimpse = nn.functional.grid_sample(
            static.unflatten(-1, self.map_shape),
            (position / POSITION_SCALE)[:, :, None] + self.offsets,
            align_corners=True,
            padding_mode="border",
        )
        return torch.cat([moving, glimpse.flatten(1)], -1).unflatten(0, state.shape[:-1])
