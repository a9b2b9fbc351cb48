"""Dynamics models of one step of a level: the forward model s, a, z -> s' and the inverse model
s, s' -> a, over flat states. Action and latent variable come as one tensor, `[..., A + Z]`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Annotated, Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from modules.nets import (
    ByHand,
    DerivedFromWeights,
    GlimpseConfig,
    MapConvolution,
    Pullback,
    fourier_linear,
    own_weights,
    to_cells,
    version,
)
from modules.types import WIDTH, MapShape, Settings


def _zero_init(layer: nn.Linear | nn.Conv2d) -> nn.Module:
    """A residual branch that starts at zero keeps long rollouts stable at the start of training."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


Modulation: TypeAlias = tuple[Tensor, Tensor]
"""Factor and shift of features, `[..., F]` each."""


class FiLM(nn.Module):
    """Features, scaled and shifted by functions of the action: products of state and action, which
    a sum of both is slow to learn (FiLM, Perez et al. 2018)."""

    def __init__(self, action_dim: int, features: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(action_dim, 2 * features)

    def forward(self, action: Tensor) -> Modulation:
        """`[..., A]` -> the modulation under that action."""
        layer = self.modulation  # in two halves: the gradient of one product's halves is copied
        scale, shift = (
            nn.functional.linear(action, weight, bias)
            for weight, bias in zip(layer.weight.chunk(2), layer.bias.chunk(2), strict=True)
        )
        return 1 + scale, shift


def modulate(features: Tensor, modulation: Modulation) -> Tensor:
    """Features `[N, F]` -> the activations `[N, F]` under a modulation."""
    factor, shift = modulation
    return nn.functional.silu(torch.addcmul(shift, features, factor))


class UnrolledByHand(nn.Module):
    """Dynamics with an unroll whose gradient is written by hand, for constant weights."""

    def unroll_by_hand(self) -> Callable[[Tensor, Tensor], tuple[Tensor, Pullback]] | None:
        """States `[B, D]`, P action sequences from each `[B, P, H, A]` -> the states, time first,
        `[H + 1, B, P, D]`, and the pullback to start and actions, whose gradient may lack the first
        states. None if the weights take a gradient."""
        constants = self._constants()
        return None if constants is None else constants.unroll

    def frozen_unroll(self, state: Tensor, actions: Tensor) -> Tensor | None:
        """The same states, `[B, P, H + 1, D]`, for autograd. None as for `unroll_by_hand`, and for
        no actions."""
        constants = self._constants()
        if constants is None or not actions.numel():
            return None
        if torch.is_grad_enabled() and (state.requires_grad or actions.requires_grad):
            states = ByHand.apply(constants.unroll, state, actions)
        else:
            states = constants.states(state, actions)
        return states.permute(1, 2, 0, 3)

    def _constants(self) -> UnrollConstants | ConvConstants | None:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class MLPDynamicsConfig(Settings):
    hidden: Annotated[int, WIDTH] = 128

    def build(self, shape: MapShape, action_dim: int, latent_dim: int = 0) -> MLPDynamics:
        input_layer = nn.Linear(prod(shape), self.hidden)
        return MLPDynamics(input_layer, self.hidden, prod(shape), action_dim, latent_dim)


class MLPDynamics(UnrolledByHand):
    """s' = s + MLP(s | a) for vector states; the action modulates every hidden layer (FiLM). Only
    the first `moving_dims` numbers of a state change."""

    def __init__(
        self,
        input_layer: nn.Module,
        hidden: int,
        moving_dims: int,
        action_dim: int,
        latent_dim: int,
    ) -> None:
        super().__init__()
        self.input_layer, self.moving_dims = input_layer, moving_dims
        self.hidden_layer = nn.Linear(hidden, hidden)
        self.films = nn.ModuleList([FiLM(action_dim + latent_dim, hidden) for _ in range(2)])
        self.delta_head = _zero_init(nn.Linear(hidden, moving_dims))
        self.inverse_head = nn.Sequential(
            nn.Linear(2 * moving_dims, hidden), nn.SiLU(), nn.Linear(hidden, action_dim)
        )
        self.constants: DerivedFromWeights[UnrollConstants] = DerivedFromWeights()

    def forward(self, state: Tensor, action_latent: Tensor) -> Tensor:
        """`[N, D]`, `[N, A + Z]` -> `[N, D]`"""
        first, second = self.films
        return self._step(state, first(action_latent), second(action_latent))

    def unroll(self, state: Tensor, action_latents: Tensor) -> list[Tensor]:
        """`[N, D]`, `[N, H, A + Z]` -> H + 1 states `[N, D]`. What depends on the actions alone is
        computed for all steps at once."""
        modulations = [film(action_latents.transpose(0, 1)) for film in self.films]  # [H, N, F]
        by_step = [list(zip(*(part.unbind(0) for part in m), strict=True)) for m in modulations]
        states = [state]
        for first, second in zip(*by_step, strict=True):
            states.append(self._step(states[-1], first, second))
        return states

    def frozen_follow(
        self, state: Tensor, act: Callable[[Tensor, int], Tensor], shape: torch.Size
    ) -> tuple[Tensor, Tensor] | None:
        """States `[B, D]` -> the states `[B, P, H + 1, D]` and actions `[B, P, H, A]` (`shape`), if
        every step takes the actions `act(states, step)`, `[B * P, D]` -> `[B * P, A]`. Without
        gradients; None as for `frozen_unroll`."""
        constants = self._constants()
        if constants is None or not shape.numel():
            return None
        unroll = constants.take(shape)
        states, actions = unroll.follow(state, act)
        constants.give_back(unroll)
        return states, actions

    def _constants(self) -> UnrollConstants | None:
        """None also where the first layer is not linear."""
        if not isinstance(self.input_layer, nn.Linear):
            return None
        layers = (self.input_layer, self.hidden_layer, self.delta_head)
        weights = own_weights(*layers, *(film.modulation for film in self.films))  # type: ignore[arg-type]
        return self.constants.get(weights, lambda: UnrollConstants(*weights))

    def _step(self, state: Tensor, first: Modulation, second: Modulation) -> Tensor:
        features = modulate(self.input_layer(state), first)
        delta = self.delta_head(modulate(self.hidden_layer(features), second))
        num_still = state.shape[-1] - self.moving_dims
        return state + (nn.functional.pad(delta, (0, num_still)) if num_still else delta)

    def inverse(self, state: Tensor, next_state: Tensor) -> Tensor:
        """`[..., D]`, `[..., D]` -> `[..., A]`"""
        both = state[..., : self.moving_dims], next_state[..., : self.moving_dims]
        return self.inverse_head(torch.cat(both, -1))


KEPT_NUMBERS = 2**21
"""Largest number of activations in an unroll whose buffers are kept for the next."""


def _t(weight: Tensor) -> Tensor:
    """A copy, since products with transposed views are slower."""
    return weight.t().contiguous()


class UnrollConstants:
    """The weights of an `MLPDynamics` as the unroll of constant weights reads them, and its buffers
    that are not in use."""

    def __init__(
        self, in_weight: Tensor, in_bias: Tensor, mid_weight: Tensor, mid_bias: Tensor,
        out_weight: Tensor, out_bias: Tensor, *films: Tensor,
    ) -> None:  # fmt: skip
        """`films`: weight and bias of the modulation of both hidden layers."""
        self.in_weight, self.in_weight_t = in_weight, _t(in_weight)
        self.mid_weight, self.mid_weight_t = mid_weight, _t(mid_weight)
        self.out_weight, self.out_weight_t, self.out_bias = out_weight, _t(out_weight), out_bias
        # rows: factor and shift of the first layer, then of the second
        self.film_weight, self.film_bias = torch.cat(films[::2]), torch.cat(films[1::2])
        self.film_bias.view(2, 2, -1)[:, 0] += 1
        # shift + factor * (u + bias) = (shift + factor * bias) + factor * u
        biases = torch.stack([in_bias, mid_bias])[..., None]
        for rows in (self.film_weight, self.film_bias[:, None]):
            factors, shifts = rows.view(2, 2, len(in_bias), -1).unbind(1)
            shifts.addcmul_(factors, biases)
        self.film_weight_t = _t(self.film_weight)
        self.free: dict[torch.Size, list[Unroll]] = {}

    def take(self, shape: torch.Size) -> Unroll:
        """Buffers for actions `[B, P, H, A]` that no other call uses."""
        try:
            return self.free[shape].pop()
        except LookupError:  # none is free
            with torch.inference_mode(False):  # its buffers may be used again outside
                return Unroll(self, shape)

    def give_back(self, unroll: Unroll) -> None:
        """They may be used again."""
        if unroll.inputs.numel() <= KEPT_NUMBERS:
            if len(self.free) > 8:
                self.free.clear()
            self.free.setdefault(unroll.shape, []).append(unroll)

    def states(self, state: Tensor, actions: Tensor) -> Tensor:
        """`[B, D]`, `[B, P, H, A]` -> `[H + 1, B, P, D]`"""
        unroll = self.take(actions.shape)
        states = unroll.forward(state, actions)
        self.give_back(unroll)
        return states

    def unroll(self, state: Tensor, actions: Tensor) -> tuple[Tensor, Pullback]:
        """As `MLPDynamics.unroll_by_hand`."""
        unrolls = [self.take(actions.shape)]
        states = unrolls[0].forward(state, actions)

        def pullback(grad: Tensor) -> tuple[Tensor | None, Tensor]:
            if unrolls:
                unroll = unrolls.pop()
            else:  # a second gradient of the same futures
                unroll = self.take(actions.shape)
                unroll.forward(state, actions)
            grads = unroll.gradient(grad, state.requires_grad)
            self.give_back(unroll)
            return grads

        return states, pullback


class StepBuffers(NamedTuple):
    """Views of the buffers of an unroll that belong to one step, `[N, ...]`."""

    factor_1: Tensor
    factor_2: Tensor
    shift_1: Tensor
    shift_2: Tensor
    u: Tensor  # product of the state and the weights of the input layer
    v: Tensor  # the same of the layer between the hidden ones
    x: Tensor  # what both activations act on
    y: Tensor
    delta: Tensor
    modulation: Tensor  # `[N, 4 F]`: factor and shift of both layers


class Unroll:
    """H steps of `MLPDynamics` with constant weights, and their gradient with respect to actions
    and start alone, both written by hand: a planner's time goes into the number of operations.

    The input layer is linear, so its product u_t = W_in s_t has its own recurrence,

        d_t = W_out silu(FiLM(W_mid silu(FiLM(u_t)))) + b_out,   u_{t+1} = u_t + W_in d_t,

    and all states follow from all d_t at once. The other biases are in the shifts of FiLM. Buffers
    are `[layer, H, N, F]`, N = B * P."""

    def __init__(self, constants: UnrollConstants, shape: torch.Size) -> None:
        self.constants, self.shape = constants, shape
        batch, count, horizon, _ = shape
        rows, (hidden, size) = batch * count, constants.in_weight.shape
        new = constants.in_weight.new_empty
        modulations = new(rows, horizon, 2, 2, hidden)
        self.factors, self.shifts = modulations.permute(3, 2, 1, 0, 4).unbind(0)
        self.modulation_rows = modulations.view(rows * horizon, -1)
        self.features, self.inputs, self.slopes = (new(2, horizon, rows, hidden) for _ in range(3))
        self.path = new(horizon + 1, batch, count, size)
        self.later_states = new(horizon, horizon).fill_(1).triu_()
        self.start_state: tuple[Tensor | None, Any] = None, 0  # and its version
        # views that the steps read and write
        self.start, self.first_features = self.path[0], self.features[0, 0]
        self.start_rows = self.start.view(rows, size)
        modulation = modulations.view(rows, horizon, -1).unbind(1)
        by_layer = (*self.factors, *self.shifts, *self.features, *self.inputs)
        by_step = [part.unbind(0) for part in (*by_layer, self.path[1:].view(horizon, rows, size))]
        self.forward_steps = [
            StepBuffers(*parts) for parts in zip(*by_step, modulation, strict=True)
        ]
        self.backward_steps = list(
            zip(*(part.unbind(0) for part in (*self.shifts, *self.slopes)), strict=True)
        )[::-1]

    def forward(self, state: Tensor, actions: Tensor) -> Tensor:
        """`[B, D]`, `[B, P, H, A]` -> states `[H + 1, B, P, D]`"""
        c = self.constants
        action_rows = actions.reshape(-1, actions.shape[-1])
        torch.addmm(c.film_bias, action_rows, c.film_weight_t, out=self.modulation_rows)
        if self.start_state[0] is not state or self.start_state[1] != version(state):
            self.start.copy_(state[:, None])
            torch.mm(self.start_rows, c.in_weight_t, out=self.first_features)
            self.start_state = state, version(state)
        last: StepBuffers | None = None
        for step in self.forward_steps:
            if last is not None:
                torch.addmm(last.u, last.delta, c.in_weight_t, out=step.u)
            torch.addmm(c.out_bias, self._outputs(step), c.out_weight_t, out=step.delta)
            last = step
        return self.path.cumsum(0)

    def _outputs(self, step: StepBuffers) -> Tensor:
        """The product of the input layer -> the outputs of the last hidden layer, `[N, F]`."""
        factor_1, factor_2, shift_1, shift_2, u, v, x, y, _, _ = step
        torch.addcmul(shift_1, u, factor_1, out=x)
        torch.mm(nn.functional.silu(x), self.constants.mid_weight_t, out=v)
        torch.addcmul(shift_2, v, factor_2, out=y)
        return nn.functional.silu(y)

    def follow(self, state: Tensor, act: Callable[[Tensor, int], Tensor]) -> tuple[Tensor, Tensor]:
        """States `[B, D]` -> states `[B, P, H + 1, D]` and actions `[B, P, H, A]`, where every step
        takes the actions `act(states, step)` of all states `[N, D]`."""
        c, actions, self.start_state = self.constants, [], (None, 0)
        current = state if self.shape[1] == 1 else state.repeat_interleave(self.shape[1], 0)
        states = [current]
        for number, step in enumerate(self.forward_steps):
            actions.append(act(current, number))
            torch.addmm(c.film_bias, actions[-1], c.film_weight_t, out=step.modulation)
            torch.mm(current, c.in_weight_t, out=step.u)
            current = torch.addmm(current + c.out_bias, self._outputs(step), c.out_weight_t)
            states.append(current)
        batch = self.shape[:2]
        return torch.stack(states, 1).unflatten(0, batch), torch.stack(actions, 1).view(self.shape)

    def gradient(self, grad: Tensor, to_start: bool) -> tuple[Tensor | None, Tensor]:
        """Gradients of the states `[H + 1, B, P, D]`, or of those after the first -> those of the
        start `[B, D]`, or None, and of the actions `[B, P, H, A]`. The gradients of the modulations
        take the place of the modulations, so `forward` must come before each call: memory that the
        processor has at hand is scarce."""
        c, silu_backward = self.constants, torch.ops.aten.silu_backward.grad_input
        by_time = grad.reshape(len(grad), -1)
        if len(grad) == len(self.path):
            by_time = by_time[1:]
        # each state adds to all later ones
        direct = (self.later_states @ by_time).view(-1, len(self.start_rows), grad.shape[-1])
        silu_backward(self.factors, self.inputs, grad_input=self.slopes)
        grad_u = None  # [N, F], the sum over all later steps
        last = self.backward_steps[-1]
        for grad_delta, step in zip(reversed(direct.unbind(0)), self.backward_steps, strict=True):
            grad_h, grad_k, slope_1, slope_2 = step
            if grad_u is not None:
                grad_delta = torch.addmm(grad_delta, grad_u, c.in_weight)
            torch.mm(grad_delta, c.out_weight, out=grad_k)
            torch.mm(grad_k * slope_2, c.mid_weight, out=grad_h)
            if step is not last or to_start:
                grad_u = grad_h * slope_1 if grad_u is None else grad_u.addcmul_(grad_h, slope_1)
        silu_backward(self.shifts, self.inputs, grad_input=self.shifts)
        torch.mul(self.shifts, self.features, out=self.factors)
        grad_actions = (self.modulation_rows @ c.film_weight).view(self.shape)
        grad_start = None
        if to_start:
            assert grad_u is not None
            grad_start = grad.sum((0, 2)) + (grad_u @ c.in_weight).view_as(self.start).sum(1)
        return grad_start, grad_actions


@dataclass(frozen=True, kw_only=True)
class FourierDynamicsConfig(Settings):
    """`MLPDynamics` on Fourier features of the state: for sharp changes of the dynamics, at thin
    walls for instance, in a smooth representation."""

    hidden: Annotated[int, WIDTH] = 256
    num_frequencies: Annotated[int, WIDTH] = 128
    frequency_scale: Annotated[float, (0.0, 1e6)] = 4.0
    """Standard deviation of the frequencies, in radians per unit of the state."""

    def build(self, shape: MapShape, action_dim: int, latent_dim: int = 0) -> MLPDynamics:
        size = prod(shape)
        layer = fourier_linear(size, self.num_frequencies, self.frequency_scale, self.hidden)
        return MLPDynamics(layer, self.hidden, size, action_dim, latent_dim)


@dataclass(frozen=True, kw_only=True)
class GlimpseDynamicsConfig(Settings):
    """`MLPDynamics` on the keypoints of a state and the map around each, for states of a
    `KeypointMapEncoder`: the effect of a wall is learnt once for all positions and all layouts."""

    hidden: Annotated[int, WIDTH] = 256
    glimpse: GlimpseConfig = field(default_factory=GlimpseConfig)

    def build(self, shape: MapShape, action_dim: int, latent_dim: int = 0) -> MLPDynamics:
        glimpse = self.glimpse.build(shape)
        layer = nn.Sequential(glimpse, nn.Linear(glimpse.out, self.hidden))
        return MLPDynamics(layer, self.hidden, glimpse.moving_dims, action_dim, latent_dim)


@dataclass(frozen=True, kw_only=True)
class ConvDynamicsConfig(Settings):
    hidden: Annotated[int, WIDTH] = 64

    def build(self, shape: MapShape, action_dim: int, latent_dim: int = 0) -> ConvDynamics:
        return ConvDynamics(self, shape, action_dim, latent_dim)


class ConvDynamics(UnrolledByHand):
    """s' = s + convolutions(s | a) for map states: the change of a cell is a function of its
    neighbourhood, the same in every cell; the action modulates the features (FiLM)."""

    def __init__(
        self, config: ConvDynamicsConfig, shape: MapShape, action_dim: int, latent_dim: int
    ) -> None:
        super().__init__()
        self.shape, channels, hidden = shape, shape[0], config.hidden
        self.input_layer = nn.Conv2d(channels, hidden, 3, padding=1)
        self.film = nn.Linear(action_dim + latent_dim, 2 * hidden)
        self.hidden_layer = nn.Conv2d(hidden, hidden, 1)
        self.delta_head = _zero_init(nn.Conv2d(hidden, channels, 3, padding=1))
        self.pair_encoder = nn.Conv2d(2 * channels, hidden, 3, padding=1)
        self.inverse_head = nn.Linear(hidden, action_dim)
        self.constants: DerivedFromWeights[ConvConstants] = DerivedFromWeights()

    def forward(self, state: Tensor, action_latent: Tensor) -> Tensor:
        """`[N, D]`, `[N, A + Z]` -> `[N, D]`"""
        scale, shift = self.film(action_latent)[..., None, None].chunk(2, dim=1)
        features = self.input_layer(state.unflatten(-1, self.shape))
        features = nn.functional.silu(torch.addcmul(features + shift, features, scale))
        return state + self.delta_head(nn.functional.silu(self.hidden_layer(features))).flatten(1)

    def _constants(self) -> ConvConstants | None:
        weights = own_weights(self.input_layer, self.film, self.hidden_layer, self.delta_head)
        return self.constants.get(weights, lambda: ConvConstants(self.shape, *weights))

    def inverse(self, state: Tensor, next_state: Tensor) -> Tensor:
        """`[..., D]`, `[..., D]` -> `[..., A]`"""
        both = torch.cat([s.unflatten(-1, self.shape) for s in (state, next_state)], -3)
        features = nn.functional.silu(self.pair_encoder(both.flatten(0, -4)))
        return self.inverse_head(features.sum((-2, -1))).unflatten(0, state.shape[:-1])


class ConvConstants:
    """The weights of a `ConvDynamics` as its unroll with constant weights reads them. Inside, maps
    are cells `[N, h w, C]`, N = B * P."""

    def __init__(
        self, shape: MapShape, in_weight: Tensor, in_bias: Tensor, film_weight: Tensor,
        film_bias: Tensor, mid_weight: Tensor, mid_bias: Tensor, out_weight: Tensor,
        out_bias: Tensor,
    ) -> None:  # fmt: skip
        self.channels, self.hidden = shape[0], len(mid_bias)
        self.input, self.input_pullback = MapConvolution.with_pullback(in_weight, shape[1:])
        self.delta, self.delta_pullback = MapConvolution.with_pullback(out_weight, shape[1:])
        self.out_bias = out_bias
        self.film_weight, self.film_bias = film_weight.clone(), film_bias.clone()
        self.film_bias[: self.hidden] += 1
        # shift + factor * (u + bias) = (shift + factor * bias) + factor * u
        for rows in (self.film_weight, self.film_bias[:, None]):
            rows[self.hidden :].addcmul_(rows[: self.hidden], in_bias[:, None])
        self.film_weight_t = _t(self.film_weight)
        self.mid_weight, self.mid_bias = mid_weight.flatten(1), mid_bias
        self.mid_weight_t = _t(self.mid_weight)
        self.last_start: tuple[Any, ...] = None, 0, 0, None  # state, version, P; what it gives

    def start(self, state: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """`[B, D]` -> cells `[B * P * h * w, ...]` of the states and of the input layer without
        bias; kept, because a planner imagines from the same state many times."""
        kept, kept_version, kept_count, result = self.last_start
        if kept is not state or kept_version != version(state) or kept_count != count:
            cells = to_cells(state, self.channels).reshape(-1, self.channels)
            result = tuple(
                part.unflatten(0, (len(state), 1, -1)).expand(-1, count, -1, -1).flatten(0, 2)
                for part in (cells, self.input(cells))
            )
            self.last_start = state, version(state), count, result
        return result

    def states(self, state: Tensor, actions: Tensor) -> Tensor:
        """`[B, D]`, `[B, P, H, A]` -> `[H + 1, B, P, D]`"""
        return self.unroll(state, actions)[0]

    def unroll(self, state: Tensor, actions: Tensor) -> tuple[Tensor, Pullback]:
        """As `ConvDynamics.unroll_by_hand`."""
        silu, (batch, count, horizon, _) = nn.functional.silu, actions.shape
        to_start, shape = state.requires_grad, actions.shape
        modulations = torch.addmm(self.film_bias, actions.flatten(0, 2), self.film_weight_t)
        # [H, N, 1, F]
        factors, shifts = (
            modulations.view(batch * count, horizon, 1, -1).transpose(0, 1).chunk(2, -1)
        )
        steps: list[tuple[Tensor, ...]] = []
        start, first = self.start(state, count)
        padded = start.new_zeros(horizon + 1, len(start) + 1, self.channels)
        path = padded[:, :-1]
        path[0].copy_(start)
        by_step = zip(factors, shifts, path, padded, path[1:], strict=False)
        for factor, shift, cells, padded_cells, next_cells in by_step:
            if steps:
                first = self.input(cells, padded_cells)
            u = first.view(batch * count, -1, self.hidden)
            x = torch.addcmul(shift, u, factor)
            y = torch.addmm(self.mid_bias, silu(x).view(-1, self.hidden), self.mid_weight_t)
            steps.append((factor, u, x, y))
            torch.add(self.delta(silu(y)).add_(self.out_bias), cells, out=next_cells)
        # two copies of long rows are faster than one of single numbers
        maps = path.permute(2, 0, 1).contiguous()
        maps = maps.view(self.channels, horizon + 1, batch, count, -1).permute(1, 2, 3, 0, 4)

        def pullback(grad: Tensor) -> tuple[Tensor | None, Tensor]:
            return self._gradient(grad, steps, to_start, shape)

        return maps.flatten(-2), pullback

    def _gradient(
        self, grad: Tensor, steps: Sequence[tuple[Tensor, ...]], to_start: bool, shape: torch.Size
    ) -> tuple[Tensor | None, Tensor]:
        """The gradient of the states `[H + 1, B, P, D]`, or of those after the first -> those of
        the start `[B, D]`, or None, and of the actions (`shape`). `steps`: factor, u, x and y of
        each."""
        silu_backward = torch.ops.aten.silu_backward.grad_input
        by_time = to_cells(grad, self.channels).reshape(len(grad), -1, self.channels).unbind(0)
        padded = grad.new_zeros(len(by_time[-1]) + 1, self.channels)
        grad_state, grad_factors, grad_shifts = padded[:-1].copy_(by_time[-1]), [], []
        for step, (factor, u, x, y) in enumerate(reversed(steps), 1):
            grad_k = self.delta_pullback(grad_state, padded)
            grad_h = (silu_backward(grad_k, y, grad_input=grad_k) @ self.mid_weight).view_as(x)
            grad_x = silu_backward(grad_h, x, grad_input=grad_h)
            grad_shifts.append(grad_x.sum(1))
            grad_factors.append((grad_x * u).sum(1))
            if step < len(steps) or to_start:
                grad_u = grad_x.mul_(factor).view(-1, self.hidden)
                grad_state.add_(self.input_pullback(grad_u))
                if step < len(by_time):
                    grad_state.add_(by_time[-1 - step])
        parts = torch.stack([*grad_factors[::-1], *grad_shifts[::-1]], 1)  # [N, 2 H, F]
        by_step = parts.unflatten(1, (2, -1)).transpose(1, 2).flatten(2)
        grad_actions = (by_step @ self.film_weight).view(shape)
        if not to_start:
            return None, grad_actions
        in_cells = grad_state.view(*shape[:2], -1, self.channels).sum(1)
        return in_cells.mT.flatten(1), grad_actions
